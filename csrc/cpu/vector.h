// Vectors of one instruction path, of any input type and of the accumulation type: from memory and to
// it.
#pragma once

#include "halves.h"

namespace fused_mi::FUSED_MI_PATH {

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

// A bit for each lane of float32 that is set.
FUSED_MI_INLINE unsigned lanes_of(Bits<float> mask, Whole) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX__)
  return static_cast<unsigned>(_mm256_movemask_ps((__m256)mask));
#elif defined(__SSE2__)
  return static_cast<unsigned>(_mm_movemask_ps((__m128)mask));
#else
  unsigned bits = 0;
  for (int i = 0; i < kLanes<float>; ++i) bits |= mask[i] < 0 ? 1u << i : 0;
  return bits;
#endif
}

FUSED_MI_INLINE unsigned lanes_of(Bits<float> mask, Part part) {
  return lanes_of(mask, Whole{}) & ((1u << part.lanes) - 1);
}

// body(f, Whole or Part) over the vectors of `width` features.
template <class A, class Body>
FUSED_MI_INLINE void over_vectors(int width, Body&& body) {
  int f = 0;
  for (; f + kLanes<A> <= width; f += kLanes<A>) body(f, Whole{});
  if (f < width) body(f, Part{width - f});
}

}  // namespace fused_mi::FUSED_MI_PATH
