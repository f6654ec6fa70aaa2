// A register of floats in GCC's vector extension, as wide as the instruction set that this file is
// compiled for (see isa_*.cc). bfloat16 and float16 are widened on load and rounded to nearest even
// on store.
//
// Everything lies in a namespace of its own per instruction set, and no header with inline
// functions of its own may be included: the linker keeps one copy of an inline function, and that
// copy must not hold instructions which the machine lacks.
#pragma once

#include <stdint.h>

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

#include "kernels/simd/kernel_table.h"

#define SHOAL_INLINE __attribute__((always_inline)) inline

namespace shoal::simd::SHOAL_ISA {

#if defined(__AVX512F__)
inline constexpr int kWidth = 16;
#elif defined(__AVX2__)
inline constexpr int kWidth = 8;
#else
inline constexpr int kWidth = 4;
#endif

typedef float Vector __attribute__((vector_size(kWidth * 4)));
typedef int32_t IntVector __attribute__((vector_size(kWidth * 4)));
typedef uint32_t UintVector __attribute__((vector_size(kWidth * 4)));
typedef uint16_t HalfVector __attribute__((vector_size(kWidth * 2)));
typedef float UnalignedVector __attribute__((vector_size(kWidth * 4), aligned(1), may_alias));
typedef uint32_t UnalignedUintVector
    __attribute__((vector_size(kWidth * 4), aligned(1), may_alias));
typedef uint16_t UnalignedHalfVector
    __attribute__((vector_size(kWidth * 2), aligned(1), may_alias));

SHOAL_INLINE Vector Broadcast(float x) { return x - Vector{}; }
SHOAL_INLINE Vector Load(const float* p) { return *reinterpret_cast<const UnalignedVector*>(p); }
SHOAL_INLINE void Store(float* p, Vector x) { *reinterpret_cast<UnalignedVector*>(p) = x; }

SHOAL_INLINE Vector Widen(HalfVector bits) {
  return reinterpret_cast<Vector>(__builtin_convertvector(bits, UintVector) << 16);
}

// To nearest even; NaN stays NaN (quiet), infinities stay.
SHOAL_INLINE HalfVector Narrow(Vector x) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<HalfVector>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(x)));
#else
  const UintVector bits = reinterpret_cast<UintVector>(x);
  const UintVector rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const UintVector quiet = (bits >> 16) | 0x40;
  return __builtin_convertvector(x == x ? rounded : quiet, HalfVector);
#endif
}

SHOAL_INLINE Vector Load(const Bf16* p) {
  return Widen(*reinterpret_cast<const UnalignedHalfVector*>(p));
}
SHOAL_INLINE void Store(Bf16* p, Vector x) {
  *reinterpret_cast<UnalignedHalfVector*>(p) = Narrow(x);
}

// float16: beyond its range infinity, below its smallest number zero.
SHOAL_INLINE Vector Load(const Fp16* p) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vector>(
      _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__F16C__)
  return reinterpret_cast<Vector>(
      _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  const UintVector bits =
      __builtin_convertvector(*reinterpret_cast<const UnalignedHalfVector*>(p), UintVector);
  // The exponents' bases differ by 112; of infinity and NaN the exponent is all ones.
  const UintVector magnitude = (bits & 0x7fff) << 13;
  const UintVector scaled =
      reinterpret_cast<UintVector>(reinterpret_cast<Vector>(magnitude) * 0x1p112f);
  const UintVector special = magnitude | 0x7f800000;
  return reinterpret_cast<Vector>((magnitude >= 0x0f800000 ? special : scaled) | (bits & 0x8000)
                                                                                     << 16);
#endif
}
SHOAL_INLINE void Store(Fp16* p, Vector x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(reinterpret_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(reinterpret_cast<__m256>(x), _MM_FROUND_TO_NEAREST_INT));
#else
  const UintVector bits = reinterpret_cast<UintVector>(x), magnitude = bits & 0x7fffffff;
  const UintVector normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Added to 0.5, whose last bit is worth the smallest float16, a number is rounded to multiples of
  // that.
  const UintVector small =
      reinterpret_cast<UintVector>(reinterpret_cast<Vector>(magnitude) + 0.5f) - 0x3f000000;
  const UintVector nan = 0x7e00 | ((magnitude >> 13) & 0x1ff);
  UintVector half = magnitude < 0x38800000 ? small : normal;
  half = magnitude >= 0x477ff000 ? (magnitude > 0x7f800000 ? nan : 0x7c00 + UintVector{}) : half;
  *reinterpret_cast<UnalignedHalfVector*>(p) =
      __builtin_convertvector(half | ((bits >> 16) & 0x8000), HalfVector);
#endif
}

// The first `count` < kWidth lanes; the others read as zero and are not written.
template <class T>
SHOAL_INLINE Vector LoadPartial(const T* p, int64_t count) {
  T lanes[kWidth] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return Load(lanes);
}
template <class T>
SHOAL_INLINE void StorePartial(T* p, Vector x, int64_t count) {
  T lanes[kWidth];
  Store(lanes, x);
  for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}

// For loops `for (i = 0; i < n; i += kWidth)`: whole registers, then one partial.
template <class T>
SHOAL_INLINE Vector LoadUpTo(const T* p, int64_t left) {
  return left >= kWidth ? Load(p) : LoadPartial(p, left);
}
template <class T>
SHOAL_INLINE void StoreUpTo(T* p, Vector x, int64_t left) {
  if (left >= kWidth) {
    Store(p, x);
  } else {
    StorePartial(p, x, left);
  }
}

// x rounded to T and back.
template <class T>
SHOAL_INLINE Vector Rounded(Vector x) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return x;
  } else if constexpr (__is_same(T, Bf16)) {
    return Widen(Narrow(x));
  } else {
    T lanes[kWidth];
    Store(lanes, x);
    return Load(lanes);
  }
}

SHOAL_INLINE Vector Max(Vector a, Vector b) { return a > b ? a : b; }
// Lane numbers, 0 to kWidth - 1.
SHOAL_INLINE IntVector Lanes() {
  IntVector lanes;
  for (int i = 0; i < kWidth; ++i) lanes[i] = i;
  return lanes;
}

// In an order that is fixed for a given width.
SHOAL_INLINE float Sum(Vector x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(x));
#else
  float lanes[kWidth];
  Store(lanes, x);
  for (int step = kWidth / 2; step > 0; step /= 2) {
    for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  }
  return lanes[0];
#endif
}

#if defined(__AVX512F__)
// Lane 4 l + j: the Sum of vectors[4 j + l], to the bit. A quarter of the work of sixteen Sums.
SHOAL_INLINE Vector SumEach(const Vector (&vectors)[16]) {
  __m512 halves[8], quarters[4], pairs[2];
  const auto raw = [&](int i) { return reinterpret_cast<__m512>(vectors[i]); };
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(raw(2 * i), raw(2 * i + 1), 0x44),
                              _mm512_shuffle_f32x4(raw(2 * i), raw(2 * i + 1), 0xEE));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    quarters[i] = _mm512_add_ps(_mm512_shuffle_f32x4(halves[2 * i], halves[2 * i + 1], 0x88),
                                _mm512_shuffle_f32x4(halves[2 * i], halves[2 * i + 1], 0xDD));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    pairs[i] = _mm512_add_ps(_mm512_shuffle_ps(quarters[2 * i], quarters[2 * i + 1], 0x44),
                             _mm512_shuffle_ps(quarters[2 * i], quarters[2 * i + 1], 0xEE));
  }
  return reinterpret_cast<Vector>(_mm512_add_ps(_mm512_shuffle_ps(pairs[0], pairs[1], 0x88),
                                                _mm512_shuffle_ps(pairs[0], pairs[1], 0xDD)));
}
#endif

// Of lanes without NaN; any lane or NaN where there is one.
SHOAL_INLINE float HorizontalMax(Vector x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(reinterpret_cast<__m512>(x));
#else
  float lanes[kWidth];
  Store(lanes, x);
  float best = lanes[0];
  for (int i = 1; i < kWidth; ++i) best = lanes[i] > best ? lanes[i] : best;
  return best;
#endif
}

SHOAL_INLINE Vector Sqrt(Vector x) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vector>(_mm512_sqrt_ps(reinterpret_cast<__m512>(x)));
#else
  for (int i = 0; i < kWidth; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// p * 2^n for p near 1, where `shifted` = n + 1.5 * 2^23 and -126 <= n <= 128.
SHOAL_INLINE Vector ScaleByPowerOfTwo(Vector p, Vector shifted) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vector>(_mm512_scalef_ps(
      reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(shifted - 12582912.0f)));
#else
  return reinterpret_cast<Vector>(reinterpret_cast<UintVector>(p) +
                                  (reinterpret_cast<UintVector>(shifted) << 23));
#endif
}

// At least `low`; NaN stays.
SHOAL_INLINE Vector AtLeast(Vector x, float low) { return x < low ? Broadcast(low) : x; }

// 2^x for x <= 0 or NaN, within 2 ulp of a normal number; 0 far below. The polynomial is Cephes'
// exp2f.
SHOAL_INLINE Vector Exp2OfNonPositive(Vector x) {
#if defined(__AVX512F__)
  constexpr float kLow = -150.0f;  // Scaling rounds it to zero
#else
  constexpr float kLow = -126.0f;
#endif
  const Vector clamped = AtLeast(x, kLow);
  const Vector shifted = clamped + 12582912.0f;  // The integer part lands in the low bits
  const Vector r = clamped - (shifted - 12582912.0f);
  Vector p = Broadcast(1.535336188319500e-4f);
  p = p * r + 1.339887440266574e-3f;
  p = p * r + 9.618437357674640e-3f;
  p = p * r + 5.550332471162809e-2f;
  p = p * r + 2.402264791363012e-1f;
  p = p * r + 6.931472028550421e-1f;
  p = p * r + 1.0f;
  const Vector scaled = ScaleByPowerOfTwo(p, shifted);
#if defined(__AVX512F__)
  return scaled;
#else
  const Vector bounded = x < kLow ? Vector{} : scaled;
  return x == x ? bounded : x;
#endif
}

// e^x, within 2 ulp where the result is a normal number; infinity above, NaN stays. e^x = 2^n e^r
// with r reduced in two steps (Cody and Waite), the polynomial is Cephes' expf.
SHOAL_INLINE Vector Exp(Vector x) {
#if defined(__AVX512F__)
  constexpr float kLow = -110.0f, kHigh = 89.0f;  // Scaling rounds to zero and to infinity
#else
  constexpr float kLow = -87.336544f, kHigh = 88.722839f;
#endif
  const Vector high_bounded = x > kHigh ? Broadcast(kHigh) : x;
  const Vector clamped = AtLeast(high_bounded, kLow);
  const Vector shifted = clamped * 1.44269504f + 12582912.0f;
  const Vector n = shifted - 12582912.0f;
  const Vector r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
  Vector p = Broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Vector scaled = ScaleByPowerOfTwo(p, shifted);
#if defined(__AVX512F__)
  return scaled;
#else
  const Vector bounded = x > kHigh ? Broadcast(__builtin_inff()) : x < kLow ? Vector{} : scaled;
  return x == x ? bounded : x;
#endif
}

SHOAL_INLINE Vector Sigmoid(Vector x) { return 1.0f / (1.0f + Exp(-x)); }

}  // namespace shoal::simd::SHOAL_ISA
