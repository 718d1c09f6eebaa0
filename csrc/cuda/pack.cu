// Binary spikes between the shapes in which they are kept: numbers, words of 32 steps, masks of 32 neurons.
#include <algorithm>
#include <string>

#include "launch.h"

namespace fastlif::cuda {
namespace {

constexpr int kTile = 32, kRows = 8;  // tiles of 32 x 32 neurons, by blocks of 32 x 8 threads

// A map of the user, (channels, positions), and its words, channels last. The tile with its word row in shared memory
// makes both sides coalesced. A map whose two orders agree is one row of neurons and needs no tile.
struct Maps {
  int channels = 0, positions = 0;
  bool same_order = false;
  int tiles_across = 0, tiles = 0;

  explicit Maps(const Shape& shape) : channels(shape.channels), positions(shape.positions()) {
    same_order = channels == 1 || positions == 1;
    if (same_order) {
      tiles_across = tiles = int((shape.size() + kTile * kRows - 1) / (kTile * kRows));
    } else {
      tiles_across = (positions + kTile - 1) / kTile;
      tiles = tiles_across * ((channels + kTile - 1) / kTile);
    }
  }
  FASTLIF_BOTH int64_t size() const { return int64_t(channels) * positions; }
};

// One block's share: word `chunk` of sample `sample`.
struct Share {
  int64_t chunk, sample;
};

__device__ __forceinline__ Share share_of(int64_t batch) {
  return {int64_t(blockIdx.x) / batch, int64_t(blockIdx.x) % batch};
}

// 32 steps of one neuron.
template <class Real>
__device__ __forceinline__ uint32_t pack_steps(const Real* from, int64_t time_stride, int steps, bool& other) {
  uint32_t word = 0;
#pragma unroll 8
  for (int q = 0; q < kWordSteps; ++q) {
    if (q >= steps) continue;
    const Real value = __ldg(from + q * time_stride);
    word |= uint32_t(value != Real(0)) << q;
    other |= value != Real(0) && value != Real(1);
  }
  return word;
}

template <class Real>
__global__ void __launch_bounds__(kTile* kRows, 4)
    pack_words_kernel(const Real* dense, int64_t time_stride, int64_t batch_stride, int64_t n_steps, int64_t batch,
                      const Maps maps, int32_t* words, int32_t* not_binary) {
  FASTLIF_SHARED(uint32_t, tile);
  const Share share = share_of(batch);
  const int64_t left = n_steps - share.chunk * kWordSteps;
  const int steps = left < kWordSteps ? int(left) : kWordSteps, x = threadIdx.x & 31, y = threadIdx.x >> 5;
  const Real* from = dense + share.chunk * kWordSteps * time_stride + share.sample * batch_stride;
  int32_t* to = words + int64_t(blockIdx.x) * maps.size();
  bool other = false;
  for (int t = blockIdx.y; t < maps.tiles; t += gridDim.y) {
    if (maps.same_order) {
      const int64_t i = int64_t(t) * (kTile * kRows) + threadIdx.x;
      if (i < maps.size()) to[i] = int32_t(pack_steps(from + i, time_stride, steps, other));
      continue;
    }
    const int position = t % maps.tiles_across * kTile, channel = t / maps.tiles_across * kTile;
    for (int row = y; row < kTile; row += kRows) {
      const int c = channel + row, p = position + x;
      const bool real = c < maps.channels && p < maps.positions;
      tile[row * (kTile + 1) + x] =
          real ? pack_steps(from + int64_t(c) * maps.positions + p, time_stride, steps, other) : 0;
    }
    __syncthreads();
    for (int row = y; row < kTile; row += kRows) {
      const int c = channel + x, p = position + row;
      if (c < maps.channels && p < maps.positions)
        to[int64_t(p) * maps.channels + c] = int32_t(tile[x * (kTile + 1) + row]);
    }
    __syncthreads();
  }
  if (other) atomicOr(not_binary, 1);
}

template <class Real>
__device__ __forceinline__ void unpack_steps(uint32_t word, Real* to, int64_t time_stride, int steps) {
  for (int q = 0; q < steps; ++q) to[q * time_stride] = Real(word >> q & 1u);
}

template <class Real>
__global__ void __launch_bounds__(kTile* kRows, 4)
    unpack_words_kernel(const int32_t* words, int64_t n_steps, int64_t batch, const Maps maps, Real* dense) {
  FASTLIF_SHARED(uint32_t, tile);
  const Share share = share_of(batch);
  const int64_t left = n_steps - share.chunk * kWordSteps, time_stride = batch * maps.size();
  const int steps = left < kWordSteps ? int(left) : kWordSteps, x = threadIdx.x & 31, y = threadIdx.x >> 5;
  const int32_t* from = words + int64_t(blockIdx.x) * maps.size();
  Real* to = dense + (share.chunk * kWordSteps * batch + share.sample) * maps.size();
  for (int t = blockIdx.y; t < maps.tiles; t += gridDim.y) {
    if (maps.same_order) {
      const int64_t i = int64_t(t) * (kTile * kRows) + threadIdx.x;
      if (i < maps.size()) unpack_steps(uint32_t(__ldg(from + i)), to + i, time_stride, steps);
      continue;
    }
    const int position = t % maps.tiles_across * kTile, channel = t / maps.tiles_across * kTile;
    for (int row = y; row < kTile; row += kRows) {
      const int c = channel + x, p = position + row;
      const bool real = c < maps.channels && p < maps.positions;
      tile[x * (kTile + 1) + row] = real ? uint32_t(__ldg(from + int64_t(p) * maps.channels + c)) : 0;
    }
    __syncthreads();
    for (int row = y; row < kTile; row += kRows) {
      const int c = channel + row, p = position + x;
      if (c < maps.channels && p < maps.positions)
        unpack_steps(tile[row * (kTile + 1) + x], to + int64_t(c) * maps.positions + p, time_stride, steps);
    }
    __syncthreads();
  }
}

// Bit j of lane i becomes bit i of lane j: blocks of 16, 8, 4, 2 and 1 bits change places across the diagonal.
__device__ __forceinline__ uint32_t transpose_bits(uint32_t bits, int lane) {
  uint32_t low = 0x0000ffffu;
#pragma unroll
  for (int size = 16; size > 0; size /= 2) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, bits, size);
    bits = lane & size ? (bits & ~low) | (other & ~low) >> size : (bits & low) | (other & low) << size;
    low ^= low << (size / 2);
  }
  return bits;
}

// A warp turns a group of 32 neurons; a block has 8 groups, whose masks of a step lie side by side.
__global__ void __launch_bounds__(kTile* kRows, 4)
    words_to_masks_kernel(const int32_t* words, int64_t n_steps, int64_t batch, int64_t neurons, uint32_t* masks) {
  FASTLIF_SHARED(uint32_t, tile);  // (32 steps, 8 groups), a group apart
  const Share share = share_of(batch);
  const int64_t groups = (neurons + 31) / 32, tiles = (groups + kRows - 1) / kRows;
  const int32_t* from = words + int64_t(blockIdx.x) * neurons;
  const int lane = threadIdx.x & 31, row = threadIdx.x >> 5;
  for (int64_t t = blockIdx.y; t < tiles; t += gridDim.y) {
    const int64_t neuron = (t * kRows + row) * 32 + lane;
    tile[lane * (kRows + 1) + row] = transpose_bits(neuron < neurons ? uint32_t(__ldg(from + neuron)) : 0, lane);
    __syncthreads();
    const int q = threadIdx.x / kRows, g = threadIdx.x % kRows;
    const int64_t step = share.chunk * kWordSteps + q, group = t * kRows + g;
    if (step < n_steps && group < groups)
      masks[(step * batch + share.sample) * groups + group] = tile[q * (kRows + 1) + g];
    __syncthreads();
  }
}

int64_t words_of(int64_t n_steps) { return (n_steps + kWordSteps - 1) / kWordSteps; }

dim3 grid_of(int64_t n_steps, int64_t batch, int64_t tiles) {
  return dim3(unsigned(words_of(n_steps) * batch), unsigned(std::min<int64_t>(tiles, 65535)));
}

std::string described(const char* kernel, int64_t n_steps, int64_t batch, int64_t neurons) {
  return std::string(kernel) + " of " + std::to_string(n_steps) + " steps, " + std::to_string(batch) + " samples, " +
         std::to_string(neurons) + " neurons";
}

constexpr size_t kTileBytes = kTile * (kTile + 1) * sizeof(uint32_t);

template <class Real>
void pack(const void* dense, int64_t time_stride, int64_t batch_stride, int64_t n_steps, int64_t batch,
          const Maps& maps, int32_t* words, int32_t* not_binary, cudaStream_t stream) {
  FASTLIF_LAUNCH(described("pack_words", n_steps, batch, maps.size()), pack_words_kernel<Real>,
                 grid_of(n_steps, batch, maps.tiles), dim3(kTile * kRows), kTileBytes, stream,
                 static_cast<const Real*>(dense), time_stride, batch_stride, n_steps, batch, maps, words, not_binary);
}

template <class Real>
void unpack(const int32_t* words, int64_t n_steps, int64_t batch, const Maps& maps, void* dense, cudaStream_t stream) {
  FASTLIF_LAUNCH(described("unpack_words", n_steps, batch, maps.size()), unpack_words_kernel<Real>,
                 grid_of(n_steps, batch, maps.tiles), dim3(kTile * kRows), kTileBytes, stream, words, n_steps, batch,
                 maps, static_cast<Real*>(dense));
}

}  // namespace

std::string unusable() {
#if !defined(FASTLIF_EMULATED)
  cudaFuncAttributes attributes;  // of any kernel: all are compiled for the same devices
  if (const cudaError_t status = cudaFuncGetAttributes(&attributes, words_to_masks_kernel)) {
    cudaGetLastError();
    return cudaGetErrorString(status);
  }
#endif
  return "";
}

void pack_words(const void* dense, bool is_double, int64_t time_stride, int64_t batch_stride, int64_t n_steps,
                int64_t batch, Shape shape, int32_t* words, int32_t* not_binary, cudaStream_t stream) {
  check(cudaMemsetAsync(not_binary, 0, sizeof(int32_t), stream), described("pack_words", n_steps, batch, shape.size()));
  const auto run = is_double ? pack<double> : pack<float>;
  run(dense, time_stride, batch_stride, n_steps, batch, Maps(shape), words, not_binary, stream);
}

void unpack_words(const int32_t* words, int64_t n_steps, int64_t batch, Shape shape, void* dense, bool is_double,
                  cudaStream_t stream) {
  const auto run = is_double ? unpack<double> : unpack<float>;
  run(words, n_steps, batch, Maps(shape), dense, stream);
}

void words_to_masks(const int32_t* words, int64_t n_steps, int64_t batch, int64_t neurons, uint32_t* masks,
                    cudaStream_t stream) {
  FASTLIF_LAUNCH(described("words_to_masks", n_steps, batch, neurons), words_to_masks_kernel,
                 grid_of(n_steps, batch, (neurons + 32 * kRows - 1) / (32 * kRows)), dim3(kTile * kRows),
                 kTile * (kRows + 1) * sizeof(uint32_t), stream, words, n_steps, batch, neurons, masks);
}

}  // namespace fastlif::cuda
