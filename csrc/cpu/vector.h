// Vectors of one instruction path, of any input type and of the accumulation type.
//
// GCC and Clang lower the vector types to the registers of the path; there are no intrinsics but
// for the conversion of float16.
#pragma once

#include "tensors.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fused_mi::FUSED_MI_PATH {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

template <class A>
struct Vector;

template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(kBytes)));
  typedef int32_t bits __attribute__((vector_size(kBytes)));
  static constexpr int mantissa = 23, bias = 127;
};

template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(kBytes)));
  typedef int64_t bits __attribute__((vector_size(kBytes)));
  static constexpr int mantissa = 52, bias = 1023;
};

template <class A>
using V = typename Vector<A>::type;
template <class A>
using Bits = typename Vector<A>::bits;
template <class A>
constexpr int kLanes = kBytes / sizeof(A);

template <class A>
FUSED_MI_INLINE V<A> all(A value) {
  return value - V<A>{};
}

template <class A>
FUSED_MI_INLINE bool any(Bits<A> mask) {
  Bits<A> either = mask;
  int64_t words[kBytes / 8], found = 0;
  std::memcpy(words, &either, kBytes);
  for (int i = 0; i < kBytes / 8; ++i) found |= words[i];
  return found != 0;
}

// A whole vector, or the first lanes of one at the end of a block.
struct Whole {};
struct Part {
  int lanes;
};

// The half types: converted in registers.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

typedef uint32_t Words __attribute__((vector_size(kBytes)));
typedef uint16_t Halves __attribute__((vector_size(kBytes / 2)));

FUSED_MI_INLINE float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

FUSED_MI_INLINE uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

FUSED_MI_INLINE float widen(bfloat16 half) {
  return as_float(static_cast<uint32_t>(half.bits) << 16);
}

FUSED_MI_INLINE void narrow(float value, bfloat16& half) {
  uint32_t bits = as_bits(value);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  half.bits = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

FUSED_MI_INLINE float widen(float16 half) {
  uint32_t magnitude = half.bits & 0x7fffu, sign = (half.bits & 0x8000u) << 16;
  // The exponent is moved by a multiplication, which makes denormals normal.
  uint32_t scaled = as_bits(as_float(magnitude << 13) * 0x1p112f);
  uint32_t special = (magnitude << 13) | 0x7f800000u;
  return as_float(sign | (magnitude >= 0x7c00u ? special : scaled));
}

FUSED_MI_INLINE void narrow(float value, float16& half) {
  uint32_t bits = as_bits(value), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  // Denormal results are rounded by an addition whose last bit is theirs.
  uint32_t denormal = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  uint32_t result = magnitude < 0x38800000u ? denormal : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  half.bits = static_cast<uint16_t>(sign | result);
}

FUSED_MI_INLINE float widen(float value) {
  return value;
}

FUSED_MI_INLINE double widen(double value) {
  return value;
}

template <class A>
FUSED_MI_INLINE void narrow(A value, float& to) {
  to = static_cast<float>(value);
}

template <class A>
FUSED_MI_INLINE void narrow(A value, double& to) {
  to = static_cast<double>(value);
}

#if defined(__AVX512F__)  // maskz: the others pass on an undefined vector, of which GCC warns
FUSED_MI_INLINE Words to_words(Halves halves) {
  return (Words)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)halves);
}
FUSED_MI_INLINE Halves low_halves(Words words) {
  return (Halves)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)words);
}
#elif defined(__AVX2__)
FUSED_MI_INLINE Words to_words(Halves halves) {
  return (Words)_mm256_cvtepu16_epi32((__m128i)halves);
}
FUSED_MI_INLINE Halves low_halves(Words words) {
  __m256i packed = _mm256_packus_epi32((__m256i)words, (__m256i)words);
  return (Halves)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}
#else
FUSED_MI_INLINE Words to_words(Halves halves) {
  return __builtin_convertvector(halves, Words);
}
FUSED_MI_INLINE Halves low_halves(Words words) {
  return __builtin_convertvector(words, Halves);
}
#endif

FUSED_MI_INLINE V<float> widen_all(Halves halves, bfloat16) {
  return (V<float>)(to_words(halves) << 16);
}

FUSED_MI_INLINE Halves narrow_all(V<float> value, bfloat16) {
  Words bits = (Words)value;
  Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  Words nan = rounded * 0 + 0x7fc0;
  return low_halves(value == value ? rounded : nan);
}

#if defined(__AVX512F__)
FUSED_MI_INLINE V<float> widen_all(Halves halves, float16) {
  return (V<float>)_mm512_maskz_cvtph_ps(0xffff, (__m256i)halves);
}

FUSED_MI_INLINE Halves narrow_all(V<float> value, float16) {
  return (Halves)_mm512_maskz_cvtps_ph(0xffff, (__m512)value, _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(__F16C__)
FUSED_MI_INLINE V<float> widen_all(Halves halves, float16) {
  return (V<float>)_mm256_cvtph_ps((__m128i)halves);
}

FUSED_MI_INLINE Halves narrow_all(V<float> value, float16) {
  return (Halves)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT);
}
#else
FUSED_MI_INLINE V<float> widen_all(Halves halves, float16) {
  V<float> value{};
  for (int i = 0; i < kLanes<float>; ++i) value[i] = widen(float16{halves[i]});
  return value;
}

FUSED_MI_INLINE Halves narrow_all(V<float> value, float16) {
  Halves halves{};
  for (int i = 0; i < kLanes<float>; ++i) {
    float16 half;
    narrow(value[i], half);
    halves[i] = half.bits;
  }
  return halves;
}
#endif

// A vector, or half of one, that skips the caches.
template <class Out, class Value>
FUSED_MI_INLINE void write_past(Out* to, Value value) {
#if defined(__AVX512F__)
  if constexpr (sizeof value == 64) return _mm512_stream_si512((__m512i*)to, (__m512i)value);
#endif
#if defined(__AVX__)
  if constexpr (sizeof value == 32) return _mm256_stream_si256((__m256i*)to, (__m256i)value);
#endif
#if defined(__SSE2__)
  if constexpr (sizeof value == 16) return _mm_stream_si128((__m128i*)to, (__m128i)value);
#endif
  std::memcpy(to, &value, sizeof value);
}

// Before other threads read what went past the caches.
FUSED_MI_INLINE void finish_writes() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

template <class A, class In>
FUSED_MI_INLINE V<A> load(const In* from, Whole) {
  if constexpr (sizeof(In) == sizeof(A)) {
    V<A> value;
    std::memcpy(&value, from, sizeof value);
    return value;
  } else {
    static_assert(sizeof(In) == 2 && sizeof(A) == 4);
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return widen_all(halves, In{});
  }
}

template <class A, class In>
FUSED_MI_INLINE V<A> load(const In* from, Part part) {
  V<A> value{};
  for (int i = 0; i < part.lanes; ++i) value[i] = static_cast<A>(widen(from[i]));
  return value;
}

// As it lies in memory.
template <class Out>
FUSED_MI_INLINE auto packed(V<float> value, Out out) {
  if constexpr (sizeof(Out) == 2) {
    return narrow_all(value, out);
  } else {
    return value;
  }
}

FUSED_MI_INLINE V<double> packed(V<double> value, double) {
  return value;
}

// `stream`: past the caches, to an aligned address; for outputs that are larger than the caches.
template <class Out, class Packed>
FUSED_MI_INLINE void store(Out* to, Packed value, Whole, bool stream = false) {
  stream ? write_past(to, value) : void(std::memcpy(to, &value, sizeof value));
}

template <class Out, class Packed>
FUSED_MI_INLINE void store(Out* to, Packed value, Part part, bool = false) {
  std::memcpy(to, &value, part.lanes * sizeof(Out));
}

// `other` in the lanes that a part does not have.
template <class A>
FUSED_MI_INLINE V<A> inside(V<A> value, V<A>, Whole) {
  return value;
}

template <class A>
FUSED_MI_INLINE V<A> inside(V<A> value, V<A> other, Part part) {
  for (int i = part.lanes; i < kLanes<A>; ++i) value[i] = other[i];
  return value;
}

// A mask without the lanes that a part does not have.
template <class A>
FUSED_MI_INLINE Bits<A> only(Bits<A> mask, Whole) {
  return mask;
}

template <class A>
FUSED_MI_INLINE Bits<A> only(Bits<A> mask, Part part) {
  for (int i = part.lanes; i < kLanes<A>; ++i) mask[i] = 0;
  return mask;
}

// body(f, Whole or Part) over the vectors of `width` features.
template <class A, class Body>
FUSED_MI_INLINE void over_vectors(int width, Body&& body) {
  int f = 0;
  for (; f + kLanes<A> <= width; f += kLanes<A>) body(f, Whole{});
  if (f < width) body(f, Part{width - f});
}

}  // namespace fused_mi::FUSED_MI_PATH
