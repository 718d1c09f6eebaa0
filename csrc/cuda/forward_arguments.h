// What the forward kernel is given, and numbers as it holds them.
#pragma once

#include "../lif_step.h"
#include "forward_layout.h"
#include "launch.h"

namespace fastlif::cuda::forward {

template <class Real>
struct Synapse {
  const Real* weight = nullptr;  // of the first network
  int64_t weights = 0;           // of a network
  Geometry geometry;
  int rows = 0;  // of the kernel; 0 if there is no such synapse

  Synapse() = default;
  Synapse(const Real* w, const Connection& c)
      : weight(w), weights(c.weight_size()), geometry(c), rows(geometry.kernel_h) {}
  __device__ __forceinline__ const Real* weight_of(int network) const { return weight + network * weights; }
};

// Masks (T, samples, words) of the sources of a segment, which all networks share or of which each has its own samples.
struct InputMasks {
  const uint32_t* masks = nullptr;
  int words = 0;      // of a sample and step
  int64_t batch = 0;  // samples of a step
  int shared = 0;     // samples that every network hears; 0: each hears its own

  InputMasks() = default;
  InputMasks(const uint32_t* m, int64_t samples_of_all, const Networks& networks)
      : masks(m), batch(samples_of_all) {
    if (networks.shared_input) batch /= networks.count, shared = int(batch);
  }
  // `sample` counts through the samples of all networks.
  __device__ __forceinline__ const uint32_t* row(int step, int64_t sample, int network) const {
    return masks + (int64_t(step) * batch + (sample - int64_t(network) * shared)) * words;
  }
};

// Of NeuronConstants what the kernel of stacks reads: how large its arguments are decides whether registers suffice.
template <class Real>
struct ForwardConstants {
  Real decay_mem, gain_mem, decay_syn, threshold;
  explicit ForwardConstants(const NeuronConstants<Real>& k)
      : decay_mem(k.decay_mem), gain_mem(k.gain_mem), decay_syn(k.decay_syn), threshold(k.threshold) {}
};

template <class Real, class Kept>
struct LayerArguments {
  Synapse<Real> synapses[2];  // from the layer below, from the layer itself
  const Real *bias = nullptr, *injected = nullptr;
  const Real *membrane0 = nullptr, *current0 = nullptr, *pending0 = nullptr;
  Kept* kept = nullptr;
  int32_t* words = nullptr;
  Real *counts = nullptr, *membrane = nullptr, *current = nullptr, *pending = nullptr, *output = nullptr;
  int32_t* best_step = nullptr;
  ForwardConstants<Real> constants{NeuronConstants<Real>(Layer{})};
  Map map;
  Kind kind = Kind::lif;
  bool delay = false, keep_unreset = false;
  // Spiking, without delay, gradient through the reset or a given current; all synapses have tables, and products of
  // samples and neurons have 31 bits.
  bool plain = false;
  bool has_bias = false;
};

template <class Real, class Kept>
struct Arguments {
  LayerArguments<Real, Kept> layers[kMostLayers];
  Layout layout;
  InputMasks input;
  int n_steps = 0;
  int64_t batch = 0;
  int samples = 0;  // of a network
};

template <class Real>
struct alignas(2 * sizeof(Real)) Neuron {
  Real membrane, current;
};

// A number that the compiler shall keep in a register, not compute or read again wherever it is used.
template <class Number>
__device__ __forceinline__ Number held(Number number) {
#if !defined(FASTLIF_EMULATED)
  asm volatile("" : "+r"(number));
#endif
  return number;
}

// Distances to threshold as they are kept, of two steps.
template <class Real, class Kept>
struct KeptPair {
  Kept a, b;
  __device__ __forceinline__ KeptPair(Real distance_a, Real distance_b) : a(distance_a), b(distance_b) {}
};
template <>
struct KeptPair<float, Half> {
  Half a, b;
#if defined(FASTLIF_EMULATED)
  KeptPair(float distance_a, float distance_b) : a(to_half_saturated(distance_a)), b(to_half_saturated(distance_b)) {}
#else
  // The same as to_half_saturated of each: what rounds to infinity is brought back, NaN stays.
  __device__ __forceinline__ KeptPair(float distance_a, float distance_b) {
    const __half2 most = __half2half2(__ushort_as_half(0x7bff));
    const __half2 both = __hmax2_nan(__hmin2_nan(__floats2half2_rn(distance_a, distance_b), most), __hneg2(most));
    a = {__half_as_ushort(__low2half(both))}, b = {__half_as_ushort(__high2half(both))};
  }
#endif
};

}  // namespace fastlif::cuda::forward
