// The step of SMORMS3 of many parameters in one launch, whose descriptions are arguments of the kernel. A block works on
// one of them.
#include <algorithm>
#include <string>

#include "launch.h"

namespace fastlif::cuda {
namespace {

constexpr int kThreads = 256, kNumbers = 4 * kThreads;  // of a block
constexpr int kMostTensors = 48;

struct Tensors {
  DeviceOptimizedTensor each[kMostTensors];
  unsigned first_block[kMostTensors + 1];
};
static_assert(sizeof(Tensors) + sizeof(Smorms3Options) <= 4096, "what all versions of CUDA take as arguments");

template <class Real>
// With no more blocks than these asked for, ptxas spills nothing to make room for others.
__global__ void __launch_bounds__(kThreads, 4)
    smorms3_kernel(const __grid_constant__ Tensors tensors, const Smorms3Options options) {
  int own = 0;
  while (blockIdx.x >= tensors.first_block[own + 1]) ++own;
  const DeviceOptimizedTensor& tensor = tensors.each[own];
  Real* const parameter = static_cast<Real*>(tensor.parameter);
  Real *const mean = static_cast<Real*>(tensor.mean), *const mean_square = static_cast<Real*>(tensor.mean_square);
  Real* const window = static_cast<Real*>(tensor.window);
  const Real* const gradient = static_cast<const Real*>(tensor.gradient);
  const Smorms3Constants<Real> constants(options);
  const Real lr = !tensor.lr_at             ? Real(tensor.lr)
                  : tensor.lr_at_is_double ? Real(*static_cast<const double*>(tensor.lr_at))
                                            : Real(*static_cast<const float*>(tensor.lr_at));
  const int64_t first = int64_t(blockIdx.x - tensors.first_block[own]) * kNumbers;
  const int64_t end = first + kNumbers < tensor.size ? first + kNumbers : tensor.size;
  for (int64_t i = first + threadIdx.x; i < end; i += kThreads)
    smorms3_step(constants, lr, gradient[i], parameter[i], mean[i], mean_square[i], window[i]);
}

}  // namespace

void smorms3(const std::vector<DeviceOptimizedTensor>& tensors, bool is_double, const Smorms3Options& options,
             cudaStream_t stream) {
  const auto kernel = is_double ? smorms3_kernel<double> : smorms3_kernel<float>;
  for (size_t first = 0; first < tensors.size(); first += kMostTensors) {
    const size_t count = std::min(tensors.size() - first, size_t(kMostTensors));
    Tensors part{};
    for (size_t i = 0; i < count; ++i) {
      part.each[i] = tensors[first + i];
      part.first_block[i + 1] = part.first_block[i] + unsigned((part.each[i].size + kNumbers - 1) / kNumbers);
    }
    const unsigned blocks = part.first_block[count];
    FASTLIF_LAUNCH("smorms3 (" + std::to_string(count) + " tensors in " + std::to_string(blocks) + " blocks)", kernel,
                   blocks, kThreads, 0, stream, part, options);
  }
}

}  // namespace fastlif::cuda
