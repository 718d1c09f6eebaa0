// What the forward and the backward scan share: access to neighbouring neurons, and how many of them a thread owns.
#pragma once

#include <initializer_list>
#include <type_traits>

#include "launch.h"

namespace fastlif::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kInFlight = 16;  // numbers of a sequence that a thread loads before it uses the first of them
// Two neurons a thread make fewer and wider accesses, one neuron makes more threads: below this many neurons of all
// samples, threads are what is missing. Results are the same.
constexpr int64_t kFewNeurons = 1 << 17;

// Values of neighbouring neurons, read or written at once.
template <class T, int width>
struct alignas(sizeof(T) * width) Neighbours {
  T of[width];
};

template <int width, class T>
__device__ __forceinline__ Neighbours<T, width> load(const T* from) {
  return *reinterpret_cast<const Neighbours<T, width>*>(from);
}

__device__ __forceinline__ float2 paired(float x, float y) { return {x, y}; }
__device__ __forceinline__ double2 paired(double x, double y) { return {x, y}; }
__device__ __forceinline__ int2 paired(int32_t x, int32_t y) { return {x, y}; }
__device__ __forceinline__ ushort2 paired(Half x, Half y) { return {x.bits, y.bits}; }

// Of two values a built-in type is made: the compiler splits the store of any other structure.
template <int width, class T>
__device__ __forceinline__ void store(T* to, const Neighbours<T, width>& values) {
  if constexpr (width == 1)
    *to = values.of[0];
  else
    *reinterpret_cast<decltype(paired(values.of[0], values.of[1]))*>(to) = paired(values.of[0], values.of[1]);
}

// Where the neurons of all samples, counted channels last, stand in user layout.
struct UserLayout {
  int64_t neurons;
  int channels, positions;
  explicit UserLayout(const Shape& shape)
      : neurons(shape.size()), channels(shape.channels), positions(shape.positions()) {}
  __device__ __forceinline__ int64_t at(int64_t flat) const {
    const int64_t sample = flat / neurons;
    const int neuron = int(flat - sample * neurons), position = neuron / channels;
    return sample * neurons + int64_t(neuron - position * channels) * positions + position;
  }
};

template <class Real>
__device__ __forceinline__ Real value_or_zero(const Real* tensor, int64_t at) {
  return tensor ? tensor[at] : Real(0);
}

template <class Real>
__device__ __forceinline__ void store_if(Real* tensor, int64_t at, Real value) {
  if (tensor) tensor[at] = value;
}

// A small number for the tests on how many steps are left.
__device__ __forceinline__ int steps_left(int64_t left) { return left < 2 * kInFlight ? int(left) : 2 * kInFlight; }

template <class Kept, class Real>
__device__ __forceinline__ Kept to_kept(Real distance) {
  if constexpr (std::is_same_v<Kept, Half>)
    return to_half_saturated(distance);
  else
    return distance;
}

template <class T, T value>
using Constant = std::integral_constant<T, value>;

// Calls body(Real(), Kept()) with the types of the precision.
template <class Body>
void with_numbers(Precision precision, const Body& body) {
  switch (precision) {
    case Precision::float32_half: return body(float(), Half());
    case Precision::float32_exact: return body(float(), float());
    case Precision::float64: return body(double(), double());
  }
}

// Calls body with the number of neurons a thread: two when all accesses are aligned and enough threads remain.
template <class Real, class Body>
void with_width(int64_t size, std::initializer_list<const void*> tensors, const Body& body) {
  bool wide = size % 2 == 0 && size >= kFewNeurons;
  for (const void* tensor : tensors) wide = wide && reinterpret_cast<uintptr_t>(tensor) % (2 * sizeof(Real)) == 0;
  wide ? body(Constant<int, 2>()) : body(Constant<int, 1>());
}

}  // namespace
}  // namespace fastlif::cuda
