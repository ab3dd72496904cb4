// What ../cuda/gpu.h offers the kernels, for a host compiler.
#pragma once

#include "model.h"

#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>

#define GPU_DEVICE inline
#define GPU_KERNEL(THREADS, BLOCKS) void
#define GPU_UNROLL
#define GPU_LOOP

#define threadIdx (::emulator::here->thread)
#define blockIdx (::emulator::here->block)
#define blockDim (::emulator::here->block_size)
#define gridDim (::emulator::here->grid)

namespace gpu {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

inline float widened(bfloat16 a) {
  return std::bit_cast<float>(static_cast<uint32_t>(a.bits) << 16);
}

inline void narrow(float a, bfloat16& to) {
  const uint32_t bits = std::bit_cast<uint32_t>(a);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  to.bits = static_cast<uint16_t>(a == a ? rounded : 0x7fffu);
}

inline float widened(float16 a) {
  const int exponent = a.bits >> 10 & 31, mantissa = a.bits & 1023;
  const float sign = a.bits & 0x8000u ? -1.f : 1.f;
  if (exponent == 31) return mantissa ? NAN : sign * HUGE_VALF;
  const float value = exponent ? 1024.f + static_cast<float>(mantissa) : static_cast<float>(mantissa);
  return sign * std::ldexp(value, (exponent ? exponent : 1) - 25);
}

inline void narrow(float a, float16& to) {
  const uint16_t sign = std::signbit(a) ? 0x8000u : 0u;
  const float value = std::fabs(a);
  uint16_t bits = 0x7fffu;
  if (value >= 65520.f) {
    bits = 0x7c00u;
  } else if (value == value) {
    int exponent = -13;
    if (value >= 0x1p-14f) std::frexp(value, &exponent);
    // In units of the last place, rounded to even; a carry goes into the exponent by itself.
    const auto units = static_cast<int>(std::nearbyint(std::ldexp(value, 11 - exponent)));
    bits = static_cast<uint16_t>(units + ((exponent + 13) << 10));
  }
  to.bits = sign | bits;
}

template <class T>
T& shared() {
  return *reinterpret_cast<T*>(::emulator::here->shared);
}

inline void barrier(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  ::emulator::barrier({file, line});
}

template <class T>
T exchange(T value, int bits) {
  static_assert(sizeof(T) <= 8);
  uint64_t all = 0;
  std::memcpy(&all, &value, sizeof(T));
  all = ::emulator::publish(all)[::emulator::here->lane ^ bits];
  std::memcpy(&value, &all, sizeof(T));
  return value;
}

inline unsigned ballot(bool value) {
  const uint64_t* values = ::emulator::publish(value);
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= static_cast<unsigned>(values[lane] & 1) << lane;
  return bits;
}

inline int count_bits(unsigned bits) { return std::popcount(bits); }

inline void raise(int* flag) { std::atomic_ref<int>(*flag).store(1, std::memory_order_relaxed); }

template <int BYTES>
void copy_async(void* to, const void* from, bool valid) {
  ::emulator::copy_async(to, from, BYTES, valid);
}
inline void commit() { ::emulator::commit(); }
template <int LEFT>
void wait(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  ::emulator::wait(LEFT, {file, line});
}

// Approximate as on a GPU: denormal numbers are 0, and the last places are wrong now and then.
inline float flushed(float a) { return std::fabs(a) < 0x1p-126f ? std::copysign(0.f, a) : a; }
inline float wrong(float exact, float error, float of) {
  const uint32_t hash = std::bit_cast<uint32_t>(of) * 2654435761u >> 30;
  const float signed_error = hash == 0 ? -error : hash == 3 ? error : 0.f;
  return std::isfinite(exact) ? flushed(exact + signed_error) : exact;
}
inline float reciprocal(float a) {
  const float exact = 1.f / flushed(a);
  return wrong(exact, 0x1p-23f * std::fabs(exact), a);
}
inline float inverse_root(float a) {
  const float exact = 1.f / std::sqrt(flushed(a));
  return wrong(exact, 0x1p-22f * std::fabs(exact), a);
}
inline float log2(float a) {
  const float exact = std::log2(flushed(a));
  return wrong(exact, 0x1p-22f * (a > 0.5f && a < 2.f ? 1.f : std::fabs(exact)), a);
}

}  // namespace gpu
