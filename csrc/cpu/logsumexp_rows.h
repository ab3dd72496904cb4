// A sample meets its components: their densities, and sums of them that are rescaled as larger ones come.
#pragma once

#include "exponential.h"
#include "logsumexp.h"

#include <cmath>

namespace fused_mi::FUSED_MI_PATH {
namespace {

typedef V<double> Doubles;

// The energies of a sample.
struct Energies {
  const double *q, *g, *k;
  int64_t own;             // a component, or one that is not there
  bool left_out, matters;  // whether it is left out, and whether its energies have a part of their own

  // Whether the `width` components from l on have it.
  FUSED_MI_INLINE bool has_own(int64_t l, int64_t width = kLanes<double>) const {
    return l <= own && own < l + width;
  }
  FUSED_MI_INLINE bool leaves_out(int64_t l) const {
    return left_out && has_own(l);
  }

  FUSED_MI_INLINE void prefetch(int64_t l) const {
    __builtin_prefetch(q + l), __builtin_prefetch(g + l), __builtin_prefetch(k + l);
  }
};

// Energies of neighbouring components, and their log-density, -inf where there is none.
template <class Lanes>
struct Pairs {
  Doubles q, g, k, density;

  FUSED_MI_INLINE Pairs(const Energies& row, int64_t l, Lanes lanes)
      : q(load<double>(row.q + l, lanes)),
        g(load<double>(row.g + l, lanes)),
        k(load<double>(row.k + l, lanes)) {
    const Doubles none = all<double>(-INFINITY);
    density = inside<double>(k - q - g, none, lanes);
    if (row.leaves_out(l)) density[row.own - l] = -INFINITY;
  }
};

FUSED_MI_INLINE double sum_of_lanes(Doubles value) {
  double sum = 0;
  for (int i = 0; i < kLanes<double>; ++i) sum += value[i];
  return sum;
}

constexpr double kNothing = -746;  // whose exponential is 0

// Sums over components of exp(density - shift), and of q, g and k times that.
struct Sums {
  Doubles weights{}, q{}, g{}, k{};

  FUSED_MI_INLINE void scale(double factor) {
    weights *= factor, q *= factor, g *= factor, k *= factor;
  }

  template <class Lanes>
  FUSED_MI_INLINE void include(const Pairs<Lanes>& pairs, double shift) {
    const Doubles from = pairs.density - shift, zero{};
    if (!any<double>(~(from < kNothing))) return;
    const Doubles weight = exponential(from);
    // 0 * inf: a component that is never chosen adds nothing.
    const Bits<double> never = weight == 0;
    weights += weight;
    q += never ? zero : weight * pairs.q;
    g += never ? zero : weight * pairs.g;
    k += never ? zero : weight * pairs.k;
  }
};

// What a row has so far, relative to exp(most).
struct Online {
  double most = -INFINITY, of_own = 0;
  Sums sums;

  FUSED_MI_INLINE double shift() const {
    return std::isinf(most) ? 0 : most;
  }

  // `width` more components; `ahead`: how far behind them more of the row is fetched meanwhile.
  FUSED_MI_INLINE void include(const Energies& row, int64_t start, int width, int64_t ahead = 0) {
    if (row.matters && row.has_own(start, width)) of_own = row.q[row.own] + row.g[row.own];
    Doubles largest = all<double>(most);
    over_vectors<double>(width, [&](int f, auto lanes) __attribute__((always_inline)) {
      Doubles density = Pairs(row, start + f, lanes).density;
      largest = density > largest ? density : largest;  // NaN is not: it reaches the sums
    });
    double found = most;
    for (int i = 0; i < kLanes<double>; ++i) found = largest[i] > found ? largest[i] : found;
    if (found > most) sums.scale(std::exp(most - found));
    most = found;
    const double from = shift();
    Sums more = sums;  // in registers
    over_vectors<double>(width, [&](int f, auto lanes) __attribute__((always_inline)) {
      const Pairs pairs(row, start + f, lanes);
      if (ahead != 0) row.prefetch(start + f + ahead);
      more.include(pairs, from);
    });
    sums = more;
  }
};

// From the gradients of the terms to those of the energies of a row.
struct Pull {
  double total, of_q, of_g, assignment, of_k;  // of the terms
  double log_sum, q, g, k;                     // of the forward pass
  double equal;

  // `state`: the first number of the row, the others `N` apart.
  FUSED_MI_INLINE Pull(const OfTerms& u, const double* state, int64_t N, double met)
      : total(u[0]),
        of_q(u[1]),
        of_g(u[2]),
        assignment(u[3]),
        of_k(-u[4]),
        log_sum(state[0]),
        q(state[N]),
        g(state[2 * N]),
        k(state[3 * N]),
        equal(1 / met) {}

  // Gradients of q, g and k.
  template <class Lanes>
  FUSED_MI_INLINE void operator()(
      const Energies& row, int64_t l, const Pairs<Lanes>& pairs, Doubles (&to)[3]) const {
    const Doubles zero{};
    Doubles r = exponential(pairs.density - log_sum), of_density = zero;
    if (log_sum == -INFINITY) {  // responsibilities are equal, and constant
      r = all<double>(equal);
      if (row.leaves_out(l)) r[row.own - l] = 0;
    } else {
      of_density = (of_q - assignment) * (pairs.q - q) + (of_g - assignment) * (pairs.g - g) +
          (of_k + assignment) * (pairs.k - k) - total;
    }
    // Select: energies and upstream gradients may be infinite where nothing is chosen.
    const Bits<double> never = r == 0;
    to[0] = never ? zero : r * (of_q - of_density);
    to[1] = never ? zero : r * (of_g - of_density);
    to[2] = never ? zero : r * (of_k + of_density);
    if (row.matters && row.has_own(l) && log_sum != -INFINITY) {
      to[0][row.own - l] -= total, to[1][row.own - l] -= total;
    }
  }
};

}  // namespace
}  // namespace fused_mi::FUSED_MI_PATH
