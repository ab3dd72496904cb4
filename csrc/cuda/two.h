// A number as two of a narrower type: a sum, and what rounding took from it. Densities of some thousand
// nats are compared, and what tells them apart is small; in float32 two are as good as one of float64, of
// whose units many GPUs have few.
#pragma once

#include "moments.h"

namespace fused_mi {

template <class T>
struct Two {
  T high = 0, rest = 0;

  GPU_DEVICE double sum() const { return static_cast<double>(high) + static_cast<double>(rest); }
};

// What is infinite has no rest.
template <class T>
GPU_DEVICE Two<T> halves(double value) {
  const T high = static_cast<T>(value);
  const bool finite = gpu::size(high) < gpu::infinity<T>();
  return {high, finite ? static_cast<T>(value - static_cast<double>(high)) : T(0)};
}

template <class T>
GPU_DEVICE Two<T> added(const Two<T>& a, const Two<T>& b) {
  T lost;
  const T high = two_sum(a.high, b.high, lost);
  return {high, gpu::size(high) < gpu::infinity<T>() ? a.rest + (lost + b.rest) : T(0)};
}

template <class T>
GPU_DEVICE Two<T> negative(const Two<T>& a) {
  return {-a.high, -a.rest};
}

// As one number: digits that they share are gone.
template <class T>
GPU_DEVICE T difference(const Two<T>& a, const Two<T>& b) {
  return (a.high - b.high) + (a.rest - b.rest);
}

template <class T>
GPU_DEVICE T finite_or_0(T most) {
  return gpu::size(most) == gpu::infinity<T>() ? T(0) : most;
}

}  // namespace fused_mi
