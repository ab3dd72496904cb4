// Vectors as wide as the registers of one instruction path.
//
// GCC and Clang lower the vector types to the registers of the path; there are few intrinsics: for
// what the types cannot say, and for conversions of halves.
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
  typedef uint32_t unsigned_bits __attribute__((vector_size(kBytes)));
  static constexpr int mantissa = 23, bias = 127;
};

template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(kBytes)));
  typedef int64_t bits __attribute__((vector_size(kBytes)));
  typedef uint64_t unsigned_bits __attribute__((vector_size(kBytes)));
  static constexpr int mantissa = 52, bias = 1023;
};

template <class A>
using V = typename Vector<A>::type;
template <class A>
using Bits = typename Vector<A>::bits;
template <class A>
using Unsigned = typename Vector<A>::unsigned_bits;
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

}  // namespace fused_mi::FUSED_MI_PATH
