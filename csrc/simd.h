// Vectors of the instruction set this file is compiled for (FASTLIF_ISA names it), on the compiler's vector types.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastlif {
namespace FASTLIF_ISA {
namespace {  // a copy for each source file: forward and backward differ in contraction

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kRegisters = 16;
#else
constexpr int kVectorBytes = 16, kRegisters = 16;
#endif

template <class Real>
struct Simd {
  static constexpr int lanes = kVectorBytes / int(sizeof(Real));
  using Int = typename std::conditional<sizeof(Real) == 4, int32_t, int64_t>::type;
  typedef Real vec __attribute__((vector_size(kVectorBytes)));
  typedef Int mask __attribute__((vector_size(kVectorBytes)));         // 0 or -1 per lane
  typedef int32_t words __attribute__((vector_size(4 * lanes)));       // one int32 per lane
  typedef Real loose_vec __attribute__((vector_size(kVectorBytes), aligned(alignof(Real)), may_alias));
  typedef int32_t loose_words __attribute__((vector_size(4 * lanes), aligned(4), may_alias));

  static vec load(const Real* p) { return *reinterpret_cast<const loose_vec*>(p); }
  static void store(Real* p, vec v) { *reinterpret_cast<loose_vec*>(p) = v; }
  static words load_words(const int32_t* p) { return *reinterpret_cast<const loose_words*>(p); }
  static void store_words(int32_t* p, words w) { *reinterpret_cast<loose_words*>(p) = w; }
  static vec all(Real x) { return x - vec{}; }
  static vec select(mask m, vec a, vec b) { return m ? a : b; }
  static words narrow(mask m) { return __builtin_convertvector(m, words); }
  static mask widen(words w) { return __builtin_convertvector(w, mask); }
};

#if defined(__AVX512F__) && defined(__AVX512DQ__)
inline unsigned movemask(Simd<float>::mask m) { return _mm512_movepi32_mask((__m512i)m); }
inline unsigned movemask(Simd<double>::mask m) { return _mm512_movepi64_mask((__m512i)m); }
#elif defined(__AVX2__)
inline unsigned movemask(Simd<float>::mask m) { return unsigned(_mm256_movemask_ps((__m256)m)); }
inline unsigned movemask(Simd<double>::mask m) { return unsigned(_mm256_movemask_pd((__m256d)m)); }
#elif defined(__SSE2__)
inline unsigned movemask(Simd<float>::mask m) { return unsigned(_mm_movemask_ps((__m128)m)); }
inline unsigned movemask(Simd<double>::mask m) { return unsigned(_mm_movemask_pd((__m128d)m)); }
#else
template <class Mask>
inline unsigned movemask(Mask m) {
  unsigned bits = 0;
  for (unsigned i = 0; i < sizeof(m) / sizeof(m[0]); ++i) bits |= (m[i] ? 1u : 0u) << i;
  return bits;
}
#endif

inline Simd<float>::vec absolute(Simd<float>::vec v) {
  return (Simd<float>::vec)((Simd<float>::mask)v & 0x7fffffff);
}
inline Simd<double>::vec absolute(Simd<double>::vec v) {
  return (Simd<double>::vec)((Simd<double>::mask)v & 0x7fffffffffffffff);
}

// 1 / v for v >= 1, within 2 units in the last place; not 0 but tiny for infinity, where the step would give NaN.
inline Simd<float>::vec reciprocal(Simd<float>::vec v) {
#if defined(__AVX512F__)
  v = (Simd<float>::vec)_mm512_min_ps(_mm512_set1_ps(3.4e38f), (__m512)v);  // in this order, NaN stays
  const auto guess = (Simd<float>::vec)_mm512_rcp14_ps((__m512)v);
  return guess * (2.0f - v * guess);
#else
  return 1.0f / v;
#endif
}
inline Simd<double>::vec reciprocal(Simd<double>::vec v) { return 1.0 / v; }

// Appends codes[i] for every set bit i of a mask of 16 lanes; may write 16 entries past `to`. Returns how many.
inline int append_codes(const uint32_t* codes, unsigned mask, uint32_t* to) {
#if defined(__AVX512F__)
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(__mmask16(mask), _mm512_loadu_si512(codes)));
  return __builtin_popcount(mask);
#else
  int n = 0;
  for (; mask; mask &= mask - 1) to[n++] = codes[__builtin_ctz(mask)];
  return n;
#endif
}

// Lanes of 16 words in which any of these bits is set.
inline unsigned lanes_with_any(const int32_t* words, uint32_t bits) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(_mm512_loadu_si512(words), _mm512_set1_epi32(int32_t(bits)));
#else
  unsigned mask = 0;
  for (int i = 0; i < 16; ++i) mask |= unsigned((uint32_t(words[i]) & bits) != 0) << i;
  return mask;
#endif
}

// The kept distance to threshold: float16, float32 or float64.
struct Half {
  uint16_t bits;
};

#if !defined(__F16C__) && !defined(__AVX512F__)
// Round to nearest, ties to even; |x| <= 65504 or NaN.
inline uint16_t half_from_float(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00u);  // NaN
  if (magnitude < 0x38800000u) {                                // subnormal in float16: units of 2^-24
    float absolute_value;
    std::memcpy(&absolute_value, &magnitude, 4);
    const float shifted = absolute_value + 0.5f;  // the unit in the last place of 0.5 is 2^-24: the sum rounds
    uint32_t sum;
    std::memcpy(&sum, &shifted, 4);
    return uint16_t(sign | (sum - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return uint16_t(sign | ((rounded - 0x38000000u) >> 13));
}

inline float float_from_half(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  uint32_t bits;
  if (magnitude < 0x0400u) {
    const float value = float(magnitude) * 5.9604644775390625e-8f;  // 2^-24
    std::memcpy(&bits, &value, 4);
  } else {
    bits = (magnitude << 13) + (magnitude >= 0x7c00u ? 0x70000000u : 0x38000000u);
  }
  bits |= sign;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
#endif

// Saturates at the largest float16: an infinite distance would turn gradients into NaN. NaN itself stays.
inline void store_kept(Half* p, Simd<float>::vec v) {
  v = v > 65504.0f ? Simd<float>::all(65504.0f) : v;
  v = v < -65504.0f ? Simd<float>::all(-65504.0f) : v;
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < Simd<float>::lanes; ++i) p[i].bits = half_from_float(v[i]);
#endif
}
inline void store_kept(float* p, Simd<float>::vec v) { Simd<float>::store(p, v); }
inline void store_kept(double* p, Simd<double>::vec v) { Simd<double>::store(p, v); }

inline Simd<float>::vec load_kept(const Half* p) {
#if defined(__AVX512F__)
  return (Simd<float>::vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
  return (Simd<float>::vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  Simd<float>::vec v;
  for (int i = 0; i < Simd<float>::lanes; ++i) v[i] = float_from_half(p[i].bits);
  return v;
#endif
}
inline Simd<float>::vec load_kept(const float* p) { return Simd<float>::load(p); }
inline Simd<double>::vec load_kept(const double* p) { return Simd<double>::load(p); }

// Decaying currents and gradients end in subnormal numbers, which cost a hundred cycles each: flush them to zero
// while a kernel runs.
class FlushSubnormals {
 public:
#if defined(__SSE2__)
  FlushSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~FlushSubnormals() { _mm_setcsr(saved_); }
  FlushSubnormals(const FlushSubnormals&) = delete;

 private:
  unsigned saved_;
#endif
};

}  // namespace
}  // namespace FASTLIF_ISA
}  // namespace fastlif
