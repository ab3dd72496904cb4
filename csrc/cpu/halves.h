// The half types: converted in registers.
#pragma once

#include "registers.h"

namespace fused_mi::FUSED_MI_PATH {

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

}  // namespace fused_mi::FUSED_MI_PATH
