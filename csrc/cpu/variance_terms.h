// What the kernels need of a variance v = sigma^2 + eps: 1 / v, sigma / v, and sums of logs.
#pragma once

#include "rows.h"

#include <cmath>

namespace fused_mi::FUSED_MI_PATH {

// Variances of a call must lie between 2^-exponent and 2^exponent. Two of them times a mantissa stay
// in range, and so do sums of 2^24 weights 1 / v.
template <class A>
struct Limits;

template <>
struct Limits<float> {
  static constexpr int exponent = 62;
};

template <>
struct Limits<double> {
  static constexpr int exponent = 500;
};

// The bits of 2^exponent.
template <class A>
constexpr auto bits_of_power(int exponent) {
  using Word = decltype(Bits<A>{}[0] + 0);
  return static_cast<Word>(Vector<A>::bias + exponent) << Vector<A>::mantissa;
}

// Whether all variances lie between the limits. NaN does not.
template <class A>
struct Range {
  Bits<A> outside{};  // negative in the lanes that met one

  // The bits of numbers that are not negative are ordered as the numbers are, those of NaN above.
  FUSED_MI_INLINE void include(V<A> v) {
    constexpr auto least = bits_of_power<A>(-Limits<A>::exponent);
    constexpr auto most = bits_of_power<A>(Limits<A>::exponent);
    Bits<A> bits = (Bits<A>)v;  // the bits: vectors of one size are reinterpreted
    outside |= (bits - least) | (most - bits);
  }
  FUSED_MI_INLINE bool regular() const {
    return !any<A>(outside < 0);
  }
};

// The sum of log v: variances are multiplied up, and the exponent is split off before one log.
template <class A>
struct Logs {
  V<A> product = all<A>(1);  // in [1, 2)
  Bits<A> exponent{};
  Range<A> range;

  // R rows, two at a time: more would leave the range.
  template <int R>
  FUSED_MI_INLINE void add(const V<A> (&v)[R]) {
    for (int r = 0; r < R; ++r) range.include(v[r]);
    for (int r = 0; r + 1 < R; r += 2) multiply(v[r] * v[r + 1]);
    if (R % 2 == 1) multiply(v[R - 1]);
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
  // The product becomes its mantissa. Of what is not regular nothing of worth remains.
  FUSED_MI_INLINE void multiply(V<A> v) {
    constexpr auto unit = bits_of_power<A>(0);
    constexpr auto fraction = (unit & -unit) - 1;
    product *= v;
    Bits<A> bits = (Bits<A>)product;
    exponent += (Bits<A>)((Unsigned<A>)bits >> Vector<A>::mantissa) - Vector<A>::bias;
    product = (V<A>)((bits & fraction) | unit);
  }
};

template <class A>
struct Terms {
  V<A> v;
  V<A> precision;  // 1 / v
  V<A> slope;      // sigma / v
};

template <class A>
FUSED_MI_INLINE Terms<A> variance_terms(V<A> sigma, A eps) {
  V<A> v = sigma * sigma + eps, precision = A(1) / v;
  return {v, precision, sigma * precision};
}

}  // namespace fused_mi::FUSED_MI_PATH
