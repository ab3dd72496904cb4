// The sums of weighted differences of a block of features, over either role.
//
// Features lie across the lanes, a few components stay in registers while the samples go by.
// Differences are direct, never those of two large products. Pairs whose upstream gradient is 0
// have no part, whatever their distance.
#pragma once

#include "pairs_weights.h"

namespace fused_mi::FUSED_MI_PATH {
namespace {

// Gradients of one mixture for one item, by the rows of `lists`.
template <class A>
struct Results {
  V<A> *y, *centre, *stds;  // (vectors, rows)
};

template <class A>
struct Work {
  V<A> *samples, *root, *centre, *slope;  // (vectors, rows)
  Sizes<A> sizes;                          // (vectors,) each
  Weights<A>* weights;                     // (count,)
  Results<A>* results;                     // (count,)
  Lists next;

  Work(const PairsBackward& call, Arena& arena) {
    const int64_t N = call.N, M = call.M, vectors = ceil_div(call.width, kLanes<A>);
    const int64_t count = call.in.count;
    samples = arena.take<V<A>>(N * vectors);
    root = arena.take<V<A>>(M * vectors);
    centre = arena.take<V<A>>(M * vectors);
    slope = arena.take<V<A>>(M * vectors);
    sizes = {arena.take<V<A>>(vectors), arena.take<V<A>>(vectors)};
    weights = call.weights ? reinterpret_cast<Weights<A>*>(call.weights)
                           : arena.take<Weights<A>>(count);
    results = arena.take<Results<A>>(count);
    next = Lists(arena, N, M);
    for (int64_t d = 0; d < count; ++d) {
      if (!call.weights) set(arena, weights + d, Weights<A>(arena, N, M));
      Results<A> r;
      r.y = arena.take<V<A>>(N * vectors);
      r.centre = arena.take<V<A>>(M * vectors);
      r.stds = arena.take<V<A>>(M * vectors);
      set(arena, results + d, r);
    }
  }
};

// Which gradients of a mixture are to be written.
struct Wanted {
  bool samples = false, components = false;
};

Wanted wanted_of(const PairsBackward& call, int64_t d) {
  Wanted wanted;
  for (int64_t p = 0; p < call.pass_count; ++p) {
    const Pass& pass = call.passes[p];
    if (pass.as_samples == d) wanted.samples |= pass.write_y;
    if (pass.as_components != d) continue;
    wanted.components |= pass.write_x || pass.write_mu || pass.write_stds;
  }
  return wanted;
}

// Adds up `count` samples over M components. SELECT: leave out pairs that weigh 0.
template <bool SAMPLES, bool COMPONENTS, bool SELECT, int M, class A>
FUSED_MI_INLINE void pull_group(
    const V<A>* y, V<A>* d_y, const int32_t* rows, const A* weights, int count,
    const V<A> (&root)[M], const V<A> (&centre)[M], V<A> (&of_centre)[M], V<A> (&of_squares)[M]) {
  for (int k = 0; k < count; ++k) {
    const int32_t row = rows[k];
    V<A> sample = y[row], pull{};
    if constexpr (SAMPLES) pull = d_y[row];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      A weight = weights[k * kM + m];
      V<A> z = multiply_add(sample, root[m], centre[m]);
      if constexpr (SELECT) z = all<A>(weight) == A(0) ? V<A>{} : z;
      V<A> term = weight * z;
      if constexpr (COMPONENTS) {
        of_centre[m] += term;
        of_squares[m] = multiply_add(term, z, of_squares[m]);
      }
      if constexpr (SAMPLES) pull = multiply_add(term, root[m], pull);
    }
    if constexpr (SAMPLES) d_y[row] = pull;
  }
}

// Takes note of what is not finite.
template <class A>
FUSED_MI_INLINE void check(V<A> value, Bits<A>& finite) {
  finite &= value - value == A(0);
}

// One vector of features of M components from `l`, which belong to one group.
template <bool SAMPLES, bool COMPONENTS, int M, class A>
FUSED_MI_INLINE void pull_components(
    const Work<A>& work, const Weights<A>& w, const Results<A>& r, int64_t N, int v, int l,
    Bits<A>& finite) {
  const int samples = w.lists.sample_count, at = v * w.lists.component_count + l;
  V<A> root[M], centre[M], of_centre[M] = {}, of_squares[M] = {};
  for (int m = 0; m < M; ++m) {
    root[m] = work.root[at + m];
    centre[m] = work.centre[at + m];
  }
  const int64_t group = l / kM;
  const int32_t* rows = w.rows + group * N;
  const A* weights = w.of_q + group * N * kM + l % kM;
  const int64_t some = N - w.partners[group].some;
  const Partners partners = w.partners[group];
  const V<A>* y = work.samples + v * samples;
  V<A>* d_y = r.y + v * samples;
  pull_group<SAMPLES, COMPONENTS, false, M, A>(
      y, d_y, rows, weights, partners.all, root, centre, of_centre, of_squares);
  if (partners.some > 0) {
    pull_group<SAMPLES, COMPONENTS, true, M, A>(
        y, d_y, rows + some, weights + some * kM, partners.some, root, centre, of_centre,
        of_squares);
  }
  if constexpr (COMPONENTS) {
    for (int m = 0; m < M; ++m) {
      V<A> pull = -(root[m] * of_centre[m]);
      // Where sigma is 0, so is its gradient, though the squares overflow.
      V<A> slope = work.slope[at + m], factor = w.of_g[l + m] - of_squares[m];
      V<A> of_stds = slope == A(0) ? V<A>{} : slope * factor;
      check<A>(pull, finite);
      check<A>(of_stds, finite);
      r.centre[at + m] = pull;
      r.stds[at + m] = of_stds;
    }
  }
}

// Whether all results are finite.
template <bool SAMPLES, bool COMPONENTS, class A>
bool pull(
    const Work<A>& work, const Weights<A>& w, const Results<A>& r, int64_t N, int vectors) {
  Bits<A> finite = all<A>(0) == A(0);
  const int samples = w.lists.sample_count, components = w.lists.component_count;
  for (int v = 0; v < vectors; ++v) {
    V<A>* d_y = r.y + v * samples;
    if (SAMPLES) std::memset(static_cast<void*>(d_y), 0, samples * sizeof(V<A>));
    int l = 0;
    for (; l + kM <= components; l += kM) {
      pull_components<SAMPLES, COMPONENTS, kM>(work, w, r, N, v, l, finite);
    }
    for (; l < components; ++l) {
      pull_components<SAMPLES, COMPONENTS, 1>(work, w, r, N, v, l, finite);
    }
    if (SAMPLES) {
      for (int n = 0; n < samples; ++n) check<A>(d_y[n], finite);
    }
  }
  return !any<A>(~finite);
}

}  // namespace
}  // namespace fused_mi::FUSED_MI_PATH
