// Interface between the bindings and the kernels, which are compiled once per instruction set.
#pragma once

#include <cstdint>
#include <vector>

#include "plan.h"
#include "smorms3.h"

namespace fastlif {

enum class Precision : int { float32_half = 0, float32_exact = 1, float64 = 2 };  // of the membrane kept for backward
enum class InputKind : int { bits = 0, values = 1, current = 2 };

struct Input {
  InputKind kind = InputKind::bits;
  const void* data = nullptr;  // bits: int32 [word][batch][neuron, channels last]; else [time][batch][channels, positions]
  int64_t time_stride = 0, batch_stride = 0;  // in elements, for values and current
};

// All pointers may be null where a tensor is absent. Per-sample tensors are (batch, channels, positions), real. Parameters
// and their gradients lie one network behind the other.
struct LayerPointers {
  const void *weight = nullptr, *bias = nullptr, *recurrent_weight = nullptr;
  const void *membrane0 = nullptr, *current0 = nullptr, *pending0 = nullptr;
  const void *inhibitory_weight = nullptr, *inhibitory0 = nullptr, *pending_inhibitory0 = nullptr;
  void* kept = nullptr;      // (batch, steps [+ 1 when the reset is differentiated], neurons channels last): membrane - threshold
  int32_t* words = nullptr;  // [word][batch][neuron, channels last]
  void* counts = nullptr;    // (batch, channels, positions)
  void *membrane = nullptr, *current = nullptr, *pending = nullptr;  // final state
  void *inhibitory = nullptr, *pending_inhibitory = nullptr;
  const void *grad_counts = nullptr, *grad_membrane = nullptr, *grad_current = nullptr, *grad_pending = nullptr;
  void *grad_weight = nullptr, *grad_bias = nullptr, *grad_recurrent_weight = nullptr;
  void *grad_membrane0 = nullptr, *grad_current0 = nullptr, *grad_pending0 = nullptr;
  const void *grad_inhibitory = nullptr, *grad_pending_inhibitory = nullptr;
  void *grad_inhibitory_weight = nullptr, *grad_inhibitory0 = nullptr, *grad_pending_inhibitory0 = nullptr;
};

struct Problem {
  const Plan* plan = nullptr;
  int64_t n_steps = 0, batch = 0;  // samples of all networks, one network behind the other
  int64_t networks = 1, input_batch = 0;  // input_batch: `batch`, or what every network gets all samples of
  int threads = 1;
  Input input;
  std::vector<LayerPointers> layers;
  void* output = nullptr;             // forward: spikes, scores, trace or current of the last layer
  int32_t* best_step = nullptr;       // readout_max: (batch, channels)
  const void* grad_output = nullptr;  // backward
  void* grad_input = nullptr;         // (time, batch, channels, positions), contiguous; null when not needed

  int64_t words() const { return (n_steps + kWordSteps - 1) / kWordSteps; }
  int64_t samples_per_network() const { return batch / networks; }
  int64_t input_sample(int64_t sample) const { return sample % input_batch; }
  int64_t kept_rows(const Layer& layer) const { return n_steps + (layer.detach_reset ? 0 : 1); }
};

struct Kernels {
  const char* name;
  void (*forward)(const Problem&, Precision);
  void (*backward)(const Problem&, Precision);
};

// The kernels compiled for each instruction set; entries this build or processor lacks are not returned.
std::vector<Kernels> available_kernels();

// pack.cpp
// Dense (time, batch, channels, positions) to words; returns false (words undefined) when a value is neither 0 nor 1.
template <class Real>
bool pack_dense(const Real* dense, int64_t time_stride, int64_t batch_stride, int64_t n_steps, int64_t batch, Shape shape,
                int threads, int32_t* words);
template <class Real>
void unpack_dense(const int32_t* words, int64_t n_steps, int64_t batch, Shape shape, int threads, Real* dense);
void pack_events(const int32_t* step, const int32_t* feature, const int64_t* offsets, int64_t n_steps, int64_t batch,
                 int64_t features, int threads, int32_t* words);
void advise_huge_pages(void* data, int64_t bytes);

// smorms3.cpp
void smorms3(const std::vector<OptimizedTensor>& tensors, bool is_double, const Smorms3Options& options, int threads);

}  // namespace fastlif
