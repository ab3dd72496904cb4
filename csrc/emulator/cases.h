// The kernels on small inputs, in both directions, against naive loops in float64.
#pragma once

#include "../cuda/jensen_launch.h"
#include "../cuda/logsumexp_launch.h"
#include "../cuda/pairs_launch.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

namespace cases {

using namespace fused_mi;

inline bool failed = false;

// Relative to the largest of the exact values.
inline void compare(
    const std::string& what, const std::vector<double>& found, const std::vector<double>& exact,
    double tolerance) {
  double largest = 1e-300, error = 0;
  for (double a : exact) largest = std::max(largest, std::fabs(a));
  for (size_t i = 0; i < exact.size(); ++i) {
    const double difference = std::fabs(found[i] - exact[i]);
    error = difference <= error ? error : difference;  // NaN stays
  }
  const bool good = error / largest <= tolerance;
  failed |= !good;
  if (!good) std::printf("WRONG %s: %.1e of the largest\n", what.c_str(), error / largest);
}

inline void ask(const char* error) {
  if (!error) return;
  std::printf("WRONG launch: %s\n", error);
  failed = true;
}

template <class E>
double value(E a) { return static_cast<double>(gpu::widened(a)); }

// Rows of y, x, mu and stds, with masks; sizes chosen for more than one tile, stage and split.
template <class E>
struct Inputs {
  int rows;
  int64_t S, E_;
  std::vector<E> y, x, mu, stds;
  std::vector<uint8_t> samples, components;
  Type type;

  // far: of feature 1 and of the last one, numbers whose squares are out of range.
  Inputs(int rows, int64_t S, int64_t F, Type type, double density, bool far = false)
      : rows(rows), S(S), E_(F), type(type) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<double> uniform;
    for (auto* t : {&y, &x, &mu, &stds}) {
      t->resize(rows * S * F);
      for (auto& a : *t) {
        const float b = normal(random);
        const int64_t e = (&a - t->data()) % F;
        const float scale = far && (e == 1 || e == F - 1) ? 1e25f : 1.f;
        gpu::narrow(scale * (t == &stds ? 0.5f + std::fabs(b) : b), a);
      }
    }
    for (auto* m : {&samples, &components}) {
      m->resize(rows * S);
      for (auto& a : *m) a = uniform(random) < density;
    }
  }
  View view(std::vector<E>& t) const { return {t.data(), S * E_, E_, 1, type}; }
  double at(const std::vector<E>& t, int64_t r, int64_t s, int64_t e) const {
    return value(t[(r * S + s) * E_ + e]);
  }
};

constexpr double kEps = 1e-3;
constexpr int kMultiprocessors = 1;

// Every pair (i, l) that meets at s, with z = (y - c) / sqrt(v).
template <class E, class Visit>
void for_pairs(const Inputs<E>& in, int i0, int N, int l0, int M, bool alone, const Visit& visit) {
  for (int i = 0; i < N; ++i) {
    for (int l = 0; l < M; ++l) {
      if (alone && i == l) continue;
      for (int64_t s = 0; s < in.S; ++s) {
        if (!in.samples[(i0 + i) * in.S + s] || !in.components[(l0 + l) * in.S + s]) continue;
        for (int64_t e = 0; e < in.E_; ++e) visit(i, l, s, e);
      }
    }
  }
}

}  // namespace cases
