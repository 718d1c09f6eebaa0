// Means of rows in an order that depends on nothing but their length, so that every network of a pack gets the bits that
// it gets alone. Short rows take a warp each, others a block.
#include <string>

#include "launch.h"

namespace fastlif::cuda {
namespace {

constexpr int kThreads = 256, kWarp = 32;
constexpr int64_t kLongestOfWarp = 1024;
constexpr int kSums = 4;  // of a thread, so that loads do not wait for additions
constexpr unsigned kAllLanes = 0xffffffffu;

template <class Real>
__device__ __forceinline__ Real sum_of_warp(Real sum) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(kAllLanes, sum, distance);
  return sum;
}

template <class Real, int threads>  // of a row
__global__ void __launch_bounds__(kThreads)
    row_means_kernel(const Real* values, int64_t rows, int64_t columns, Real* means) {
  const int own = int(threadIdx.x) % threads;
  const int64_t row = int64_t(blockIdx.x) * (kThreads / threads) + int(threadIdx.x) / threads;
  const int64_t length = row < rows ? columns : 0;
  values += row * columns;
  Real sums[kSums] = {};
  for (int64_t first = own; first < length; first += kSums * threads)
#pragma unroll
    for (int k = 0; k < kSums; ++k)
      if (first + k * threads < length) sums[k] += values[first + k * threads];
  Real sum = sum_of_warp((sums[0] + sums[1]) + (sums[2] + sums[3]));
  if constexpr (threads > kWarp) {
    FASTLIF_SHARED(Real, warp_sums);
    if (own % kWarp == 0) warp_sums[own / kWarp] = sum;
    __syncthreads();
    sum = 0;
    for (int warp = 0; warp < threads / kWarp; ++warp) sum += warp_sums[warp];
  }
  if (own == 0 && row < rows) means[row] = sum / Real(columns);
}

template <class Real>
void row_means_of(const Real* values, int64_t rows, int64_t columns, Real* means, cudaStream_t stream) {
  const bool is_short = columns <= kLongestOfWarp;
  const auto kernel = is_short ? row_means_kernel<Real, kWarp> : row_means_kernel<Real, kThreads>;
  const int64_t rows_of_block = is_short ? kThreads / kWarp : 1;
  const unsigned blocks = unsigned((rows + rows_of_block - 1) / rows_of_block);
  const size_t shared_bytes = is_short ? 0 : kThreads / kWarp * sizeof(Real);
  FASTLIF_LAUNCH("row_means (" + std::to_string(rows) + " rows of " + std::to_string(columns) + ")", kernel, blocks,
                 kThreads, shared_bytes, stream, values, rows, columns, means);
}

}  // namespace

void row_means(const void* values, int64_t rows, int64_t columns, bool is_double, void* means, cudaStream_t stream) {
  if (is_double)
    row_means_of(static_cast<const double*>(values), rows, columns, static_cast<double*>(means), stream);
  else
    row_means_of(static_cast<const float*>(values), rows, columns, static_cast<float*>(means), stream);
}

}  // namespace fastlif::cuda
