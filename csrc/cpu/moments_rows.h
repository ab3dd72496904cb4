// A few rows at a time: what they add to the moments of the rows before them.
#pragma once

#include "moments.h"
#include "variance_terms.h"

namespace fused_mi::FUSED_MI_PATH {

constexpr int kWidth = Cut::kWidth;
constexpr int kRows = 4;  // read at once

template <int N>
struct Int {
  static constexpr int value = N;
};

template <class Body>
FUSED_MI_INLINE void with_rows(int rows, Body&& body) {
  switch (rows) {
    case 1:
      return body(Int<1>{});
    case 2:
      return body(Int<2>{});
    case 3:
      return body(Int<3>{});
    default:
      return body(Int<4>{});
  }
}

template <class A>
struct Running {
  alignas(64) A weight[kWidth];
  alignas(64) A mean[kWidth];
  alignas(64) A m2[kWidth];
};

// Of the rows of both roles, see Totals.
template <class A>
struct Diagonal {
  alignas(64) A q[kWidth];
  alignas(64) A heaviest[kWidth];
  alignas(64) A excess[kWidth];
  alignas(64) A low[kWidth];
  alignas(64) A high[kWidth];
};

// Rows of one tensor as rows of In, four at a time.
template <class In>
struct Reader {
  const View& view;
  int64_t s, e;
  int width;
  alignas(64) In buffer[kRows][sizeof(In) > 2 ? kWidth : 1];
  const In* rows[kRows];
  const In* ahead[kRows];  // the rows after those, to be fetched meanwhile

  Reader(const View& view, int64_t s, int64_t e, int width)
      : view(view), s(s), e(e), width(width) {}

  // Rows i to i + more of `which`, which has `count`; after the last come the first of the next item,
  // which most often lies behind this one.
  FUSED_MI_INLINE void next(const int64_t* which, int i, int more, int count) {
    for (int r = 0; r < more; ++r) {
      rows[r] = read(view, which[i + r], s, e, width, buffer[r]);
      int then = i + more + r;
      char* to = then < count ? view.at(which[then], s, e)
                              : view.at(which[(then - count) % count], s, e + width);
      ahead[r] = view.type == TypeOf<In>::value ? reinterpret_cast<const In*>(to) : rows[r];
    }
  }
};

// Into the second cache: the rows ahead do not fit into the first beside those at hand.
FUSED_MI_INLINE void fetch(const void* from) {
  __builtin_prefetch(from, 0, 2);
}

// Moments of `before` rows, and R more. BOTH: rows of both roles, whose pairs (i, i) are left out.
template <class A, int R, bool BOTH, class In>
void add_samples(
    const Reader<In>& y, const A* shift, int width, int64_t before, Running<A>& run,
    Diagonal<A>& own) {
  const A share = A(1) / static_cast<A>(before + R), weight = static_cast<A>(before);
  over_vectors<A>(width, [&](int f, auto part) __attribute__((always_inline)) {
    V<A> first = load<A>(shift + f, part), mean = load<A>(run.mean + f, part), deviation[R], delta{};
    for (int r = 0; r < R; ++r) {
      deviation[r] = load<A>(y.rows[r] + f, part) - first;
      fetch(y.ahead[r] + f);
      delta += (deviation[r] - mean) * share;
    }
    V<A> m2 = load<A>(run.m2 + f, part) + (weight * delta) * delta;
    mean += delta;
    for (int r = 0; r < R; ++r) m2 += (deviation[r] - mean) * (deviation[r] - mean);
    if constexpr (BOTH) {
      V<A> low = load<A>(own.low + f, part), high = load<A>(own.high + f, part);
      for (int r = 0; r < R; ++r) {
        low = deviation[r] < low ? deviation[r] : low;
        high = deviation[r] > high ? deviation[r] : high;
      }
      store(own.low + f, low, part);
      store(own.high + f, high, part);
    }
    store(run.mean + f, mean, part);
    store(run.m2 + f, m2, part);
  });
}

// The logs of R rows of variances.
template <class A, int R, class In>
void add_logs(const Reader<In>& sigma, int width, A eps, Logs<A>& sum) {
  Logs<A> logs = sum;
  over_vectors<A>(width, [&](int f, auto part) __attribute__((always_inline)) {
    V<A> v[R];
    for (int r = 0; r < R; ++r) {
      V<A> of_row = load<A>(sigma.rows[r] + f, part);
      fetch(sigma.ahead[r] + f);
      v[r] = inside<A>(of_row * of_row + eps, all<A>(1), part);
    }
    logs.add(v);
  });
  sum = logs;
}

// R more rows, with the weights 1 / v. BOTH: as above, and `y` has those rows.
template <class A, int R, bool BOTH, class In>
void add_components(
    const Reader<In>& y, const Reader<In>& x, const Reader<In>& mu, const Reader<In>& sigma,
    const A* x_shift, const A* mu_shift, int width, A eps, Running<A>& run, Diagonal<A>& own,
    Logs<A>& sum) {
  Logs<A> logs = sum;
  over_vectors<A>(width, [&](int f, auto part) __attribute__((always_inline)) {
    V<A> first_x = load<A>(x_shift + f, part), first_mu = load<A>(mu_shift + f, part);
    V<A> mean = load<A>(run.mean + f, part);
    V<A> old = load<A>(run.weight + f, part), weight = old;
    V<A> v[R], precision[R], deviation[R], distance[R], delta{};
    for (int r = 0; r < R; ++r) {
      Terms<A> t = variance_terms<A>(load<A>(sigma.rows[r] + f, part), eps);
      fetch(sigma.ahead[r] + f);
      v[r] = inside<A>(t.v, all<A>(1), part);
      precision[r] = t.precision;
      weight += precision[r];
      deviation[r] = (load<A>(x.rows[r] + f, part) - first_x) +
          (load<A>(mu.rows[r] + f, part) - first_mu);
      fetch(x.ahead[r] + f);
      fetch(mu.ahead[r] + f);
    }
    logs.add(v);
    if constexpr (BOTH) {
      V<A> q = load<A>(own.q + f, part), heaviest = load<A>(own.heaviest + f, part);
      for (int r = 0; r < R; ++r) {
        distance[r] = (load<A>(y.rows[r] + f, part) - load<A>(x.rows[r] + f, part)) -
            load<A>(mu.rows[r] + f, part);
        q += (precision[r] * distance[r]) * distance[r];
        heaviest = precision[r] > heaviest ? precision[r] : heaviest;
      }
      store(own.q + f, q, part);
      store(own.heaviest + f, heaviest, part);
    }
    // Each weight as its share of the total: no sum of products overflows.
    V<A> reciprocal = A(1) / weight;
    for (int r = 0; r < R; ++r) delta += (precision[r] * reciprocal) * (deviation[r] - mean);
    V<A> m2 = load<A>(run.m2 + f, part) + (old * delta) * delta;
    mean += delta;
    for (int r = 0; r < R; ++r) {
      V<A> rest = deviation[r] - mean;
      m2 += (precision[r] * rest) * rest;
    }
    if constexpr (BOTH) {  // with the rows so far: more of them only add to all squares
      V<A> excess = load<A>(own.excess + f, part);
      for (int r = 0; r < R; ++r) {
        V<A> from_mean = distance[r] + (deviation[r] - mean);
        V<A> squares = m2 + (weight * from_mean) * from_mean;
        V<A> more = (precision[r] * distance[r]) * distance[r] - A(kMostOwn) * squares;
        excess = more > excess ? more : excess;
      }
      store(own.excess + f, excess, part);
    }
    store(run.weight + f, weight, part);
    store(run.mean + f, mean, part);
    store(run.m2 + f, m2, part);
  });
  sum = logs;
}

}  // namespace fused_mi::FUSED_MI_PATH
