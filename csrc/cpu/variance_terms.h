// What the kernels need of a variance v = sigma^2 + eps: scale / v, sigma / v, and sums of logs.
#pragma once

#include "rows.h"

#include <cmath>

namespace fused_mi::FUSED_MI_PATH {

// Limits of a type. `least` and `most`: between them, four variances times a mantissa stay in range.
template <class A>
struct Limits;

template <>
struct Limits<float> {
  static constexpr float least = 0x1p-31f, most = 0x1p31f, denormal = 0x1p-149f;
  static constexpr float shrink = 0x1p-64f;  // of a sigma whose square overflows
  static constexpr int shrunk = 128;         // the exponent that its square then lacks
};

template <>
struct Limits<double> {
  static constexpr double least = 0x1p-240, most = 0x1p240, denormal = 0x1p-1074;
  static constexpr double shrink = 0x1p-512;
  static constexpr int shrunk = 1024;
};

template <class A>
struct Stabiliser {
  A eps;
  A scale;  // keeps scale / v in range for every v >= eps, see the plain `precision_scale`

  explicit Stabiliser(double eps)
      : eps(static_cast<A>(eps)), scale(sizeof(A) == 4 && eps < 0x1p-100 ? 0x1p-60 : 1) {}
};

// Whether all variances lie between `Limits::least` and `most`. If not, a loop is run again, CAREFUL.
template <class A>
struct Ordinary {
  V<A> low = all<A>(1), high = all<A>(1);

  FUSED_MI_INLINE void include(V<A> v) {
    low = v < low ? v : low;
    high = v > high ? v : high;
  }
  FUSED_MI_INLINE explicit operator bool() const {
    return !any<A>((low < Limits<A>::least) | (high > Limits<A>::most));
  }
};

// The sum of log v: variances are multiplied up, and the exponent is split off before one log.
template <class A>
struct Logs {
  V<A> product = all<A>(1);  // in [1, 2), or 0, inf, NaN
  Bits<A> exponent{};

  // At most four ordinary variances before a `split`.
  FUSED_MI_INLINE void multiply(V<A> v) {
    product *= v;
  }

  FUSED_MI_INLINE void split() {
    split(product);
  }

  // Any variance, of a sigma that was shrunk where `large`.
  FUSED_MI_INLINE void include(V<A> v, Bits<A> large) {
    Bits<A> small = v < static_cast<A>(0x1p-60);
    v = small ? v * static_cast<A>(0x1p100) : v;
    exponent += (small & -100) + (large & Limits<A>::shrunk);
    split(v);
    product *= v;
    split(product);
  }

  // One log for all lanes: their product is far from the end of the range.
  double value() const {
    double products[kLanes<A>], exponents[kLanes<A>];
    for (int i = 0; i < kLanes<A>; ++i) {
      products[i] = static_cast<double>(product[i]);
      exponents[i] = static_cast<double>(exponent[i]);
    }
    for (int half = kLanes<A> / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) {
        products[i] *= products[i + half];
        exponents[i] += exponents[i + half];
      }
    }
    return std::log(products[0]) + exponents[0] * 0.69314718055994530942;
  }

 private:
  // A normal number as its mantissa, in [1, 2); others stay, so that they reach the log.
  FUSED_MI_INLINE void split(V<A>& value) {
    constexpr int mantissa = Vector<A>::mantissa, bias = Vector<A>::bias;
    constexpr auto one = static_cast<decltype(exponent[0] + 0)>(1) << mantissa;
    constexpr auto unit = one * bias, infinity = one * (2 * bias + 1);
    Bits<A> bits = (Bits<A>)value;  // the bits: vectors of one size are reinterpreted
    Bits<A> normal = (bits >= one) & (bits < infinity);
    exponent += ((bits >> mantissa) - bias) & normal;
    bits = normal ? ((bits & (one - 1)) | unit) : bits;
    value = (V<A>)bits;
  }
};

template <class A>
struct Terms {
  V<A> v;          // of sigma times `Limits::shrink` where large
  V<A> precision;  // scale / v
  V<A> slope;      // sigma / v
  Bits<A> large;
};

// CAREFUL: squares that overflow, 1 / v that overflows. The precision is never 0, so that an
// infinite distance times it is infinite and not NaN.
template <bool CAREFUL, class A>
FUSED_MI_INLINE Terms<A> variance_terms(V<A> sigma, Stabiliser<A> s) {
  Terms<A> t;
  if constexpr (CAREFUL) {
    V<A> one = all<A>(1), inf = all<A>(static_cast<A>(INFINITY));
    t.large = sigma * sigma + s.eps == inf;
    V<A> shrink = t.large ? one * Limits<A>::shrink : one;
    V<A> shrunk = sigma * shrink;
    t.v = shrunk * shrunk + s.eps * (shrink * shrink);
    V<A> precision = s.scale / t.v * shrink * shrink;  // not by way of 1 / v, which overflows first
    t.precision = precision < Limits<A>::denormal ? one * Limits<A>::denormal : precision;
    t.slope = shrunk / t.v * shrink;
  } else {
    t.v = sigma * sigma + s.eps;
    V<A> reciprocal = A(1) / t.v;
    t.precision = s.scale * reciprocal;
    t.slope = sigma * reciprocal;
  }
  return t;
}

}  // namespace fused_mi::FUSED_MI_PATH
