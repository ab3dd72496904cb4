// Threads, tensors and checks of the driver.
#pragma once

#include "../cpu/launch.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

namespace {

using namespace fused_mi;

struct Threads {
  int count;

  // Ranges of one item where there are few, so that threads meet.
  template <class Body>
  void operator()(int64_t begin, int64_t end, int64_t, const Body& body) const {
    int64_t step = ceil_div(end - begin, count);
    std::vector<std::thread> threads;
    for (int64_t b = begin; b < end; b += step) {
      threads.emplace_back([=, &body] { body(b, b + step < end ? b + step : end); });
    }
    for (std::thread& thread : threads) thread.join();
  }
};

// float16 by its definition, no code of the kernels: a sign, five bits of exponent, ten of mantissa.
double from_half(uint16_t half) {
  const int exponent = half >> 10 & 31, mantissa = half & 1023;
  double value = exponent == 0 ? std::ldexp(mantissa, -24)
      : exponent < 31          ? std::ldexp(1024 + mantissa, exponent - 25)
      : mantissa == 0          ? INFINITY
                               : NAN;
  return half >> 15 ? -value : value;
}

// Finite and in range.
uint16_t to_half(double value) {
  int exponent;
  std::frexp(value, &exponent);
  if (exponent < -13) exponent = -13;  // denormal
  const int mantissa = static_cast<int>(std::nearbyint(std::ldexp(std::fabs(value), 11 - exponent)));
  // A mantissa of 1024 is the lowest bit of the exponent, one that was rounded up to 2048 the next.
  return static_cast<uint16_t>((std::signbit(value) << 15) + ((exponent + 13) << 10) + mantissa);
}

// (rows, S, E), with a gap between rows if `padded`.
struct Array {
  int64_t rows, S, E, row;
  Type type;
  std::vector<char> data;

  Array(int64_t rows, int64_t S, int64_t E, Type type, bool padded)
      : rows(rows), S(S), E(E), row(S * E + (padded && rows > 1 ? 3 : 0)), type(type) {
    data.resize(((rows - 1) * row + S * E) * size_of(type));
    std::memset(data.data(), 0xff, data.size());  // NaN
  }
  View view() {
    return {data.data(), row * size_of(type), E * size_of(type), type};
  }
  char* at(int64_t r, int64_t s, int64_t e) {
    return view().at(r, s, e);
  }
  void set(int64_t r, int64_t s, int64_t e, double value) {
    char* to = at(r, s, e);
    float single = static_cast<float>(value);
    if (type == Type::float64) {
      std::memcpy(to, &value, 8);
    } else if (type == Type::float32) {
      std::memcpy(to, &single, 4);
    } else if (type == Type::float16) {
      uint16_t half = to_half(value);
      std::memcpy(to, &half, 2);
    } else {  // bfloat16: the upper half of a float32
      std::memcpy(to, reinterpret_cast<const char*>(&single) + 2, 2);
    }
  }
  double get(int64_t r, int64_t s, int64_t e) {
    const char* from = at(r, s, e);
    double value = 0;
    float single = 0;
    if (type == Type::float64) {
      std::memcpy(&value, from, 8);
      return value;
    }
    if (type == Type::float16) {
      uint16_t half;
      std::memcpy(&half, from, 2);
      return from_half(half);
    }
    if (type == Type::float32) {
      std::memcpy(&single, from, 4);
    } else {
      std::memcpy(reinterpret_cast<char*>(&single) + 2, from, 2);
    }
    return single;
  }
};

struct Case {
  int64_t batch, S, E;
  Type type;
  bool padded, exclude_diagonal, symmetric;
  double offset;
  double scale = 1;  // of everything: far from 1, variances leave what the fast loops take
};

// Of gradients, relative to the largest.
double precision_of(Type type, bool wide) {
  if (type == Type::bfloat16) return 1e-2;
  if (type == Type::float16) return 1e-3;
  return wide ? 1e-7 : 1e-4;
}

int failures = 0;

void check(const char* what, double found, double expected, double scale, double tolerance) {
  if (std::fabs(found - expected) <= tolerance * (scale + 1)) return;
  std::printf("%s: %.17g, expected %.17g\n", what, found, expected);
  ++failures;
}

}  // namespace
