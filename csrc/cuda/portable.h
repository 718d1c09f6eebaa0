// CUDA, or the emulation of it on the CPU (emulation.h) when FASTLIF_EMULATED is defined: what the kernels and their
// launchers need from either.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <string>

#include "../qualifiers.h"

#if defined(FASTLIF_EMULATED)
#include "emulation_intrinsics.h"
#elif defined(__CUDACC__)
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include <cuda_runtime_api.h>  // for the bindings, which hand streams on
#endif

namespace fastlif::cuda {

inline void check(cudaError_t status, const std::string& what) {
  if (status == cudaSuccess) return;
#if !defined(FASTLIF_EMULATED)
  cudaGetLastError();  // reported here, not by the next launch, which asks for the last error
#endif
  throw std::runtime_error(what + ": " + cudaGetErrorString(status));
}

// Bytes of shared memory that one block may have on the current device.
inline int max_shared_bytes() {
#if defined(FASTLIF_EMULATED)
  return emulation::kMaxSharedBytes;
#else
  int device = 0, bytes = 0;
  check(cudaGetDevice(&device), "the current device");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "its shared memory");
  return bytes;
#endif
}

}  // namespace fastlif::cuda

#if defined(FASTLIF_EMULATED) || defined(__CUDACC__)

// The block's dynamic shared memory, as `Type* name`; 16-byte aligned. A kernel has only this and carves it up.
#if defined(FASTLIF_EMULATED)
#define FASTLIF_SHARED(Type, name) \
  Type* const name = reinterpret_cast<Type*>(fastlif::emulation::machine.shared_memory())
#else
#define FASTLIF_SHARED(Type, name)                                       \
  extern __shared__ __align__(16) unsigned char fastlif_shared_memory[]; \
  Type* const name = reinterpret_cast<Type*>(fastlif_shared_memory)
#endif

// Starts kernel(arguments...) on the stream; does nothing for an empty grid. A launch that fails throws
// std::runtime_error with `name`, an expression for the kernel and the shape that is evaluated only then.
#define FASTLIF_LAUNCH(name, kernel, grid, block, shared_bytes, stream, ...) \
  fastlif::cuda::launch([&] { return std::string(name); }, kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

namespace fastlif::cuda {

template <class Name, class... Parameters, class... Arguments>
void launch(const Name& name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            [[maybe_unused]] cudaStream_t stream, Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
#if defined(FASTLIF_EMULATED)
  emulation::machine.launch(name, [&] { kernel(arguments...); }, grid, block, shared_bytes);
#else
  std::unique_lock<std::mutex> alone;
  if (shared_bytes > 48 * 1024) {  // more than any kernel may have unasked
    // What is asked for holds for the kernel until the next asks: no other thread may come between it and the launch.
    static std::mutex asking;
    alone = std::unique_lock<std::mutex>(asking);
    if (const cudaError_t status =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)))
      check(status, name() + " with " + std::to_string(shared_bytes) + " bytes of shared memory");
  }
  kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
  if (const cudaError_t status = cudaGetLastError()) check(status, name());
#endif
}

// ---- Numbers

// The 16-bit storage of the kept distance to threshold.
struct Half {
  uint16_t bits;
};

#if defined(FASTLIF_EMULATED)
// Nearest, ties to even; |x| <= 65504 or NaN.
inline Half to_half(float x) {
  const uint32_t bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {uint16_t(0x7fffu)};
  // Below 2^-14 a half is a multiple of 2^-24, the unit in the last place of 0.5: the sum rounds to one.
  if (magnitude < 0x38800000u)
    return {uint16_t(sign | (__float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u))};
  return {uint16_t(sign | ((magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13))};
}
inline float to_float(Half half) {
  const uint32_t sign = uint32_t(half.bits & 0x8000u) << 16, magnitude = half.bits & 0x7fffu;
  if (magnitude < 0x0400u) return __uint_as_float(__float_as_uint(float(magnitude) * 0x1p-24f) | sign);
  return __uint_as_float(sign | ((magnitude << 13) + (magnitude >= 0x7c00u ? 0x70000000u : 0x38000000u)));
}
#else
__device__ __forceinline__ Half to_half(float x) { return {__half_as_ushort(__float2half_rn(x))}; }
__device__ __forceinline__ float to_float(Half half) { return __half2float(__ushort_as_half(half.bits)); }
#endif

// Saturates at the largest half: an infinite distance would turn gradients into NaN. NaN itself stays.
template <class Real>
__device__ __forceinline__ Half to_half_saturated(Real x) {
  return to_half(float(x > Real(65504) ? Real(65504) : x < Real(-65504) ? Real(-65504) : x));
}

template <class Real>
__device__ __forceinline__ Real to_number(Half half) {
  return Real(to_float(half));
}
template <class Real>
__device__ __forceinline__ Real to_number(Real x) {
  return x;
}

// ---- Tensor cores

// To the nearest tf32 (8 bits of exponent, 10 of mantissa), ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(float x) {
#if defined(FASTLIF_EMULATED)
  const uint32_t bits = __float_as_uint(x), magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fffffffu;
  return magnitude == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;
#else
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#endif
}

// d += a b with a 16 x 8, b 8 x 8, d 16 x 8, by the whole warp. With group = lane / 4 and i = lane % 4 a lane holds
//   a: (group, i), (group + 8, i), (group, i + 4), (group + 8, i + 4)      b: (i, group), (i + 4, group)
//   d: (group, 2 i), (group, 2 i + 1), (group + 8, 2 i), (group + 8, 2 i + 1)
#if defined(FASTLIF_EMULATED)
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], FASTLIF_CALLER) {
  struct Operands {
    uint32_t a[4], b[2];
  };
  const Operands own{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const auto number = [](uint32_t bits) { return double(__uint_as_float(bits & ~0x1fffu)); };
  emulation::machine.exchange(emulation::Site{"mma", file, line}, own, [&](const Operands* lanes, int lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      double sum = d[i];
      for (int k = 0; k < 8; ++k)
        sum += number(lanes[row % 8 * 4 + k % 4].a[row / 8 + k / 4 * 2]) * number(lanes[column * 4 + k % 4].b[k / 4]);
      d[i] = float(sum);
    }
  });
}
#else
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

}  // namespace fastlif::cuda
#endif
