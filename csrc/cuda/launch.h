// What the bindings call: one host function per kernel. Every pointer is device memory and may be null where a tensor is
// absent; every launch goes to the given stream and allocates nothing, so that all of them can be captured in a graph.
// A launch that fails throws std::runtime_error naming the kernel and the shape.
//
// T steps, B samples, N neurons of a layer. "Flat" tensors are (T, B, N) or (B, N) with the neurons channels last (neuron
// = position * channels + channel); "user" tensors are as torch keeps them, (B, channels, positions). Numbers are float
// or double throughout, by Precision; `kept` is half with float32_half.
//
// Several networks of one shape run in one launch: their weights and biases lie one network's behind the other's, and
// so do their samples in the batch. What has no weights of its own does not tell them apart. Each network gets the bits
// that it gets alone.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../plan.h"
#include "../smorms3.h"
#include "portable.h"

namespace fastlif::cuda {

enum class Precision : int { float32_half = 0, float32_exact = 1, float64 = 2 };
enum class Products : int { exact = 0, tf32 = 1 };  // of W^T dL/dJ and V^T dL/dJ in the backward pass

struct Networks {
  int count = 1;
  bool shared_input = false;  // the input has the samples of one network, which all of them hear
  std::string text() const { return count > 1 ? " of " + std::to_string(count) + " networks" : ""; }
};

// ---- pack.cu
// Why the current device cannot run these kernels, as when the driver or the device is older than what they were
// compiled for; empty when it can.
std::string unusable();
// User layout (T, B, channels, positions), any strides of time and batch, to words int32 (ceil(T/32), B, N flat), bit q of
// word c is step 32 c + q. *not_binary (int32, zeroed by this call) becomes 1 when a value is neither 0 nor 1.
void pack_words(const void* dense, bool is_double, int64_t time_stride, int64_t batch_stride, int64_t n_steps, int64_t batch,
                Shape shape, int32_t* words, int32_t* not_binary, cudaStream_t stream);
// Words to user layout (T, B, channels, positions), contiguous.
void unpack_words(const int32_t* words, int64_t n_steps, int64_t batch, Shape shape, void* dense, bool is_double,
                  cudaStream_t stream);
// Words to masks uint32 (T, B, ceil(N/32)): bit i of mask g of a step is neuron 32 g + i. Bits past N are zero.
void words_to_masks(const int32_t* words, int64_t n_steps, int64_t batch, int64_t neurons, uint32_t* masks,
                    cudaStream_t stream);

// ---- stack_forward.cu
struct ForwardLayer {
  const void* weight = nullptr;            // packed (kernel h, kernel w, in channels, out channels)
  const void* recurrent_weight = nullptr;  // packed likewise
  const void* bias = nullptr;              // (out channels)
  const void* injected = nullptr;          // flat (T, B, N): J without the recurrent part, in place of weight and bias; first layer only
  const void *membrane0 = nullptr, *current0 = nullptr, *pending0 = nullptr;  // user (B, ...)
  void* kept = nullptr;      // flat (T [+ 1 when the reset is differentiated], B, N): U - threshold
  int32_t* words = nullptr;  // (ceil(T/32), B, N); spikes
  void* counts = nullptr;    // user (B, ...)
  void *membrane = nullptr, *current = nullptr, *pending = nullptr;  // final state, user (B, ...)
  void* output = nullptr;    // readout_max: user (B, ...); readout_trace and current: user (T, B, ...); lif: unused
  int32_t* best_step = nullptr;  // readout_max: user (B, ...)
  // Of a layer with inhibition: its synapses, packed likewise, and its states.
  const void* inhibitory_weight = nullptr;
  const void *inhibitory0 = nullptr, *pending_inhibitory0 = nullptr;
  void *inhibitory = nullptr, *pending_inhibitory = nullptr;
};
struct ForwardProblem {
  const Plan* plan = nullptr;
  int first = 0, last = 0;  // layers [first, last) run in one launch
  int64_t n_steps = 0, batch = 0;
  Precision precision = Precision::float32_half;
  Networks networks;
  const uint32_t* input_masks = nullptr;  // (T, B, ceil(N_in/32)), of the input of layer `first`; null when it has `injected`
  std::vector<ForwardLayer> layers;       // of [first, last)
};
// Layers whose launch no other layer shares: max pooling and layers with inhibition, which have kernels of their own, and
// readouts with skips, which are given their current.
inline bool stands_alone(const Layer& layer) {
  return layer.kind == Kind::max_pool || layer.n_inhibitory > 0 || !layer.skips.empty();
}
// Ranges [first, last) of layers, in order, that one launch each can run with `shared_bytes` of shared memory per block;
// throws std::invalid_argument naming the layer when a recurrent layer does not fit at all.
std::vector<std::pair<int, int>> forward_segments(const Plan& plan, Precision precision, int shared_bytes);
void stack_forward(const ForwardProblem& problem, int shared_bytes, cudaStream_t stream);

// ---- stack_backward.cu
struct BackwardLayer {
  const void* weight = nullptr;            // packed (kernel h, kernel w, out channels, in channels); read when the layer below is in the segment
  const void* recurrent_weight = nullptr;  // packed likewise
  const void* grad_spikes = nullptr;       // flat (T, B, N): dL/dS from outside this launch (dL/dU of a readout_trace)
  const void* kept = nullptr;
  const int32_t* words = nullptr;
  const void* grad_score = nullptr;        // readout_max: user (B, ...)
  const int32_t* best_step = nullptr;
  const void *grad_counts = nullptr, *grad_membrane = nullptr, *grad_current = nullptr, *grad_pending = nullptr;  // user (B, ...)
  void* grad_injected = nullptr;           // flat (T, B, N), always written: dL/dJ
  void *grad_membrane0 = nullptr, *grad_current0 = nullptr, *grad_pending0 = nullptr;  // user (B, ...)
};
struct BackwardProblem {
  const Plan* plan = nullptr;
  int first = 0, last = 0;
  int64_t n_steps = 0, batch = 0;
  Precision precision = Precision::float32_half;
  Products products = Products::exact;
  Networks networks;
  std::vector<BackwardLayer> layers;
};
// As forward_segments; a layer that a skip reads is the last of its segment, whose gradient comes from outside the launch.
// A layer without recurrence that is alone in its segment is given to scan_backward instead.
std::vector<std::pair<int, int>> backward_segments(const Plan& plan, Precision precision, int shared_bytes);
void stack_backward(const BackwardProblem& problem, int shared_bytes, cudaStream_t stream);

// ---- scan.cu: one spiking layer without recurrence, its current given; one thread a neuron, the state in registers
void scan_forward(const Layer& layer, const ForwardLayer& pointers, int64_t n_steps, int64_t batch, Precision precision,
                  cudaStream_t stream);   // reads `injected`, writes all that a lif layer has
void scan_backward(const Layer& layer, const BackwardLayer& pointers, int64_t n_steps, int64_t batch, Precision precision,
                   cudaStream_t stream);  // grad_injected may be the same memory as grad_spikes

// ---- dale_forward.cu, dale_backward.cu: a layer with inhibition alone in its segment. Tensors have all its neurons,
// `grad_spikes` only those of the excitatory ones, which alone leave the layer.
struct DaleBackwardLayer : BackwardLayer {
  const void* inhibitory_weight = nullptr;  // packed as the others; `weight` is not read
  const void *grad_inhibitory = nullptr, *grad_pending_inhibitory = nullptr;  // user (B, ...)
  void* grad_inhibitory_injected = nullptr;                                   // flat (T, B, N): dL/dK; null if nobody asks
  void *grad_inhibitory0 = nullptr, *grad_pending_inhibitory0 = nullptr;      // user (B, ...)
};
// Shared memory that a block takes at least.
int64_t dale_forward_bytes(const Layer& layer, Precision precision);
int64_t dale_backward_bytes(const Layer& layer, Precision precision);
void dale_forward(const Layer& layer, const ForwardLayer& pointers, const uint32_t* input_masks, int64_t n_steps,
                  int64_t batch, Networks networks, Precision precision, int shared_bytes, cudaStream_t stream);
void dale_backward(const Layer& layer, const DaleBackwardLayer& pointers, int64_t n_steps, int64_t batch,
                   Networks networks, Precision precision, int shared_bytes, cudaStream_t stream);

// ---- pool.cu: `windows` keeps the channels
// Words (ceil(T/32), B, N) of the sources to words of the windows: spikes where any source of the window does.
void pool_words(const Connection& windows, const int32_t* words, int64_t n_steps, int64_t batch, int32_t* pooled,
                cudaStream_t stream);
// From dL/dS of the windows to dL/dS of the sources, both flat (T, B, N): to the first source of a window that spikes, row
// by row, to the first of all if none does.
void pool_gradient(const Connection& windows, const int32_t* words, const void* grad_pooled, int64_t n_steps,
                   int64_t batch, bool is_double, void* grad_spikes, cudaStream_t stream);

// ---- weight_gradient.cu
// grad (kernel h, kernel w, in channels, out channels) = sum over steps, samples and positions of spikes times dL/dJ, in a
// fixed order, of every network. `partials` is room for weight_gradient_splits(...) times the size of grad.
int weight_gradient_splits(const Connection& connection, int64_t n_steps, int64_t samples_of_network);
void weight_gradient(const Connection& connection, const int32_t* words, const void* grad_injected, int64_t n_steps,
                     int64_t batch, Networks networks, bool is_double, void* partials, void* grad,
                     cudaStream_t stream);

// ---- means.cu: what losses are made of
// (rows, columns), contiguous, to the mean of each row; its bits depend on that row alone.
void row_means(const void* values, int64_t rows, int64_t columns, bool is_double, void* means, cudaStream_t stream);

// ---- smorms3.cu
struct DeviceOptimizedTensor : OptimizedTensor {
  const void* lr_at = nullptr;  // one number on the device in place of `lr`
  bool lr_at_is_double = false;
};
// One step of all, as many in a launch as fit its arguments.
void smorms3(const std::vector<DeviceOptimizedTensor>& tensors, bool is_double, const Smorms3Options& options,
             cudaStream_t stream);

}  // namespace fastlif::cuda
