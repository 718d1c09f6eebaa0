// The words of CUDA C++ that the kernels use, on the emulated machine.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emulation.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

// The place of the caller, as default arguments.
#define FASTLIF_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace fastlif::emulation {

inline void full_mask_only(unsigned mask, const char* operation) {
  if (mask != 0xffffffffu) throw Fault(std::string(operation) + " without all 32 lanes in its mask");
}

template <class T, class Source>
T shuffle(unsigned mask, T value, const Site& site, Source source) {
  full_mask_only(mask, site.operation);
  return machine.exchange(site, value, [&](const T* values, int lane) {
    const int from = source(lane);
    return values[from >= 0 && from < kWarp ? from : lane];
  });
}

// Adds, exchanges ...: no thread comes between.
template <class T, class Change>
T change_atomically(T* address, const Change& change) {
  races::atomic_access(address, sizeof(T));
  const races::Pause pause;
  return std::exchange(*address, change(*address));
}

template <class To, class From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "of one size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

}  // namespace fastlif::emulation

inline void __syncthreads(FASTLIF_CALLER) { fastlif::emulation::machine.wait_for_block({"__syncthreads", file, line}); }
inline int __syncthreads_or(int predicate, FASTLIF_CALLER) {
  return fastlif::emulation::machine.wait_for_block({"__syncthreads_or", file, line}, predicate != 0);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, FASTLIF_CALLER) {
  fastlif::emulation::full_mask_only(mask, "__syncwarp");
  fastlif::emulation::machine.wait_for_warp({"__syncwarp", file, line});
}
inline void __threadfence() {}
inline void __threadfence_block() {}

inline unsigned __ballot_sync(unsigned mask, int predicate, FASTLIF_CALLER) {
  fastlif::emulation::full_mask_only(mask, "__ballot_sync");
  fastlif::emulation::full_mask_only(mask, "__ballot_sync");
  return fastlif::emulation::machine.exchange(fastlif::emulation::Site{"__ballot_sync", file, line}, predicate != 0,
                                              [](const bool* votes, int) {
                                                unsigned bits = 0;
                                                for (int i = 0; i < 32; ++i) bits |= unsigned(votes[i]) << i;
                                                return bits;
                                              });
}
inline int __any_sync(unsigned mask, int predicate, FASTLIF_CALLER) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, FASTLIF_CALLER) {
  return __ballot_sync(mask, predicate, file, line) == 0xffffffffu;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, FASTLIF_CALLER) {
  return fastlif::emulation::shuffle(mask, value, {"__shfl_sync", file, line}, [=](int) { return source & 31; });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, FASTLIF_CALLER) {
  return fastlif::emulation::shuffle(mask, value, {"__shfl_xor_sync", file, line},
                                     [=](int lane) { return lane ^ bits; });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, FASTLIF_CALLER) {
  return fastlif::emulation::shuffle(mask, value, {"__shfl_down_sync", file, line},
                                     [=](int lane) { return lane + int(delta); });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, FASTLIF_CALLER) {
  return fastlif::emulation::shuffle(mask, value, {"__shfl_up_sync", file, line},
                                     [=](int lane) { return lane - int(delta); });
}

template <class T>
T atomicAdd(T* address, std::common_type_t<T> value) {
  static_assert(std::is_integral<T>::value, "sums of floats depend on the order of threads");
  return fastlif::emulation::change_atomically(address, [&](T before) { return T(before + value); });
}
template <class T>
T atomicOr(T* address, std::common_type_t<T> value) {
  return fastlif::emulation::change_atomically(address, [&](T before) { return T(before | value); });
}
template <class T>
T atomicExch(T* address, std::common_type_t<T> value) {
  return fastlif::emulation::change_atomically(address, [&](T) { return value; });
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1u) << (31 - i);
  return reversed;
}
// The low word of (high:low) >> (shift & 31).
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}
// The high word of (high:low) << (shift & 31).
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return unsigned((uint64_t(high) << 32 | low) << (shift & 31) >> 32);
}
template <class T>
T __ldg(const T* address) {
  return *address;
}

inline int __float_as_int(float x) { return fastlif::emulation::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return fastlif::emulation::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return fastlif::emulation::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return fastlif::emulation::bit_cast<float>(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fdividef(float x, float y) { return x / y; }

// Vectors, for wide loads and stores.
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(4) ushort2 { unsigned short x, y; };
struct alignas(8) ushort4 { unsigned short x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}

// Of the runtime library.
using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0 };
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}
