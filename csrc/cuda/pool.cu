// Max pooling of spikes: 32 steps at a time as bits of words, their gradient as numbers. A thread owns a neuron at the
// steps of one word, of the gradient at half of them; lanes lie along the channels, so that every access is coalesced.
#include <string>

#include "geometry.h"
#include "launch.h"

namespace fastlif::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kSteps = 16;  // of the gradient, that a thread sums in registers; they lie in one word

// A connection of windows, and the maps on both sides.
struct Windows {
  int kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int in_height, in_width, out_height, out_width, channels;
  Map in, out;

  explicit Windows(const Connection& c)
      : kernel_h(c.kernel_h), kernel_w(c.kernel_w), stride_h(c.stride_h), stride_w(c.stride_w), padding_h(c.padding_h),
        padding_w(c.padding_w), dilation_h(c.dilation_h), dilation_w(c.dilation_w), in_height(c.in.height),
        in_width(c.in.width), out_height(c.out.height), out_width(c.out.width), channels(c.in.channels), in(c.in),
        out(c.out) {}

  // Calls visit(neuron, row and column in the window) for the sources of a window, row by row.
  template <class Visit>
  __device__ __forceinline__ void for_each_source(int out_y, int out_x, int channel, const Visit& visit) const {
#pragma unroll 1
    for (int row = 0; row < kernel_h; ++row) {
      const int y = out_y * stride_h - padding_h + row * dilation_h;
      if (unsigned(y) >= unsigned(in_height)) continue;
#pragma unroll 1
      for (int column = 0; column < kernel_w; ++column) {
        const int x = out_x * stride_w - padding_w + column * dilation_w;
        if (unsigned(x) < unsigned(in_width)) visit((y * in_width + x) * channels + channel, row, column);
      }
    }
  }
};

__global__ void __launch_bounds__(kThreads) pool_words_kernel(const int32_t* words, const Windows windows,
                                                              int32_t* pooled) {
  const int neuron = int(blockIdx.y) * kThreads + int(threadIdx.x);
  if (neuron >= windows.out.neurons) return;
  const Place at = windows.out.place(neuron);
  const int32_t* const from = words + int64_t(blockIdx.x) * windows.in.neurons;  // grid.x: words and samples
  uint32_t any = 0;
  windows.for_each_source(at.y, at.x, at.channel,
                          [&](int source, int, int) { any |= uint32_t(__ldg(from + source)); });
  pooled[int64_t(blockIdx.x) * windows.out.neurons + neuron] = int32_t(any);
}

// Steps, as bits, at which the gradient of a window goes to its source at (row, column).
__device__ __forceinline__ uint32_t steps_won(const Windows& windows, const int32_t* words, int out_y, int out_x,
                                              int channel, int row, int column) {
  uint32_t before = 0, after = 0, own = 0;
  bool is_first = true;
  windows.for_each_source(out_y, out_x, channel, [&](int source, int r, int c) {
    const uint32_t word = uint32_t(__ldg(words + source));
    if (r == row && c == column) {
      own = word;
    } else if (r < row || (r == row && c < column)) {
      before |= word, is_first = false;
    } else {
      after |= word;
    }
  });
  return is_first ? own | ~after : own & ~before;
}

template <class Real>
// With no more blocks than these asked for, ptxas spills nothing to make room for others.
__global__ void __launch_bounds__(kThreads, 4)
    pool_gradient_kernel(const int32_t* words, const Real* grad_pooled, const Windows windows, int64_t n_steps,
                         int64_t batch, Real* grad_spikes) {
  const int neuron = int(blockIdx.y) * kThreads + int(threadIdx.x);
  if (neuron >= windows.in.neurons) return;
  const Place at = windows.in.place(neuron);
  // In 32 bits, which hold the whole grid: a division in 64 bits is a call, and spills registers.
  const unsigned samples = unsigned(batch), chunk_index = blockIdx.x / samples;
  const int64_t chunk = chunk_index, sample = blockIdx.x - chunk_index * samples;
  const int64_t first = chunk * kSteps, left = n_steps - first, row = first * batch + sample;
  const uint32_t exist = (1u << (left < kSteps ? left : kSteps)) - 1u;
  const int32_t* const from = words + (first / kWordSteps * batch + sample) * windows.in.neurons;
  const Real* const grads = grad_pooled + row * windows.out.neurons;
  const int64_t out_step = batch * windows.out.neurons, in_step = batch * windows.in.neurons;
  Real sums[kSteps];
#pragma unroll
  for (int q = 0; q < kSteps; ++q) sums[q] = Real(0);
  // The windows that the neuron is in, in descending order.
#pragma unroll 1
  for (int r = 0; r < windows.kernel_h; ++r) {
    const int from_y = at.y + windows.padding_h - r * windows.dilation_h, y = from_y / windows.stride_h;
    if (from_y < 0 || y * windows.stride_h != from_y || y >= windows.out_height) continue;
#pragma unroll 1
    for (int c = 0; c < windows.kernel_w; ++c) {
      const int from_x = at.x + windows.padding_w - c * windows.dilation_w, x = from_x / windows.stride_w;
      if (from_x < 0 || x * windows.stride_w != from_x || x >= windows.out_width) continue;
      const uint32_t won = steps_won(windows, from, y, x, at.channel, r, c) >> first % kWordSteps & exist;
      const Real* const grad = grads + (y * windows.out_width + x) * windows.channels + at.channel;
#pragma unroll
      for (int q = 0; q < kSteps; ++q)
        if (won >> q & 1u) sums[q] += __ldg(grad + q * out_step);
    }
  }
  Real* const to = grad_spikes + row * windows.in.neurons + neuron;
#pragma unroll
  for (int q = 0; q < kSteps; ++q)
    if (exist >> q & 1u) to[q * in_step] = sums[q];
}

// A thread for each neuron at `steps` steps.
dim3 grid_of(int64_t n_steps, int steps, int64_t batch, int64_t neurons) {
  return dim3(unsigned((n_steps + steps - 1) / steps * batch), unsigned((neurons + kThreads - 1) / kThreads));
}

std::string described(const char* kernel, const Connection& windows, int64_t n_steps, int64_t batch) {
  return std::string(kernel) + " of " + std::to_string(n_steps) + " steps, " + std::to_string(batch) + " samples, " +
         std::to_string(windows.in.size()) + " to " + std::to_string(windows.out.size()) + " neurons";
}

// The second dimension of a grid has 65535 blocks.
void check_neurons(const std::string& name, int64_t neurons) {
  if (neurons > int64_t(kThreads) * 65535) throw std::runtime_error(name + ": too many neurons for one launch");
}

template <class Real>
void gradient(const Connection& windows, const int32_t* words, const void* grad_pooled, int64_t n_steps, int64_t batch,
              void* grad_spikes, cudaStream_t stream) {
  const std::string name = described("pool_gradient", windows, n_steps, batch);
  check_neurons(name, windows.in.size());
  FASTLIF_LAUNCH(name, pool_gradient_kernel<Real>, grid_of(n_steps, kSteps, batch, windows.in.size()), dim3(kThreads),
                 0, stream, words, static_cast<const Real*>(grad_pooled), Windows(windows), n_steps, batch,
                 static_cast<Real*>(grad_spikes));
}

}  // namespace

void pool_words(const Connection& windows, const int32_t* words, int64_t n_steps, int64_t batch, int32_t* pooled,
                cudaStream_t stream) {
  const std::string name = described("pool_words", windows, n_steps, batch);
  check_neurons(name, windows.out.size());
  FASTLIF_LAUNCH(name, pool_words_kernel, grid_of(n_steps, kWordSteps, batch, windows.out.size()), dim3(kThreads), 0,
                 stream, words, Windows(windows), pooled);
}

void pool_gradient(const Connection& windows, const int32_t* words, const void* grad_pooled, int64_t n_steps,
                   int64_t batch, bool is_double, void* grad_spikes, cudaStream_t stream) {
  (is_double ? gradient<double> : gradient<float>)(windows, words, grad_pooled, n_steps, batch, grad_spikes, stream);
}

}  // namespace fastlif::cuda
