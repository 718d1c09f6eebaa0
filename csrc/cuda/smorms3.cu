// The step of SMORMS3 of many parameters in one launch: grid.y counts them, and they stand in the kernel's arguments.
#include <algorithm>
#include <string>

#include "launch.h"

namespace fastlif::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMostTensors = 48;   // whose descriptions fit the 4096 bytes of arguments
constexpr int kMostBlocks = 4096;  // of a tensor

struct Tensors {
  DeviceOptimizedTensor each[kMostTensors];
};

template <class Real>
// With no more blocks than these asked for, ptxas spills nothing to make room for others.
__global__ void __launch_bounds__(kThreads, 4)
    smorms3_kernel(const __grid_constant__ Tensors tensors, const Smorms3Options options) {
  const DeviceOptimizedTensor& tensor = tensors.each[blockIdx.y];
  Real* const parameter = static_cast<Real*>(tensor.parameter);
  Real *const mean = static_cast<Real*>(tensor.mean), *const mean_square = static_cast<Real*>(tensor.mean_square);
  Real* const window = static_cast<Real*>(tensor.window);
  const Real* const gradient = static_cast<const Real*>(tensor.gradient);
  const Smorms3Constants<Real> constants(options);
  const Real largest = !tensor.lr_at             ? Real(tensor.lr)
                       : tensor.lr_at_is_double ? Real(*static_cast<const double*>(tensor.lr_at))
                                                 : Real(*static_cast<const float*>(tensor.lr_at));
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < tensor.size; i += stride)
    smorms3_step(constants, largest, gradient[i], parameter[i], mean[i], mean_square[i], window[i]);
}

}  // namespace

void smorms3(const std::vector<DeviceOptimizedTensor>& tensors, bool is_double, const Smorms3Options& options,
             cudaStream_t stream) {
  const auto kernel = is_double ? smorms3_kernel<double> : smorms3_kernel<float>;
  for (size_t first = 0; first < tensors.size(); first += kMostTensors) {
    const size_t count = std::min(tensors.size() - first, size_t(kMostTensors));
    Tensors part;
    std::copy_n(tensors.begin() + std::ptrdiff_t(first), count, part.each);
    int64_t largest = 0;
    for (size_t i = 0; i < count; ++i) largest = std::max(largest, part.each[i].size);
    const dim3 grid(unsigned(std::min((largest + kThreads - 1) / kThreads, int64_t(kMostBlocks))), unsigned(count));
    FASTLIF_LAUNCH("smorms3 (" + std::to_string(count) + " tensors, the largest of " + std::to_string(largest) +
                       " numbers)",
                   kernel, grid, kThreads, 0, stream, part, options);
  }
}

}  // namespace fastlif::cuda
