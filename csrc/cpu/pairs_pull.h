// The sums of weighted differences of a block of features, over either role.
//
// Features lie across the lanes, a few components stay in registers while the samples go by.
// Differences are direct, never those of two large products. Pairs whose upstream gradient is 0
// have no part, whatever their distance.
#pragma once

#include "pairs.h"
#include "pairs_panels.h"

namespace fused_mi::FUSED_MI_PATH {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kM = 4;  // components in registers
#else
constexpr int kM = 2;
#endif

// Samples that meet one group of components.
struct Partners {
  int all = 0, some = 0;  // with all of the group, and with some of it
};

// What the pairs of one mixture weigh at a position; it stays while the rows that contribute do.
template <class A>
struct Weights {
  Lists lists;
  int64_t position = -1;  // to which `lists` belong
  bool ready = false;
  Partners* partners;  // (groups,)
  int32_t* rows;       // (groups, N) places of samples: that meet all, then that meet some
  A* of_q;             // (groups, N, kM)
  A* of_g;             // (M,) sums of upstream gradients over the samples
  A* of_k;             // (N,) and over the components
  double* sums;        // (M,)
};

// Gradients of one mixture for one item, by the rows of `lists`.
template <class A>
struct Results {
  V<A> *y, *centre, *stds;  // (vectors, rows)
};

template <class A>
struct Work {
  V<A> *samples, *root, *centre, *slope;  // (vectors, rows)
  Weights<A>* weights;                     // (count,)
  Results<A>* results;                     // (count,)
  Lists next;

  Work(const PairsBackward& call, Arena& arena) {
    const int64_t N = call.N, M = call.M, vectors = ceil_div(call.width, kLanes<A>);
    const int64_t groups = ceil_div(M, kM), count = call.in.count;
    samples = arena.take<V<A>>(N * vectors);
    root = arena.take<V<A>>(M * vectors);
    centre = arena.take<V<A>>(M * vectors);
    slope = arena.take<V<A>>(M * vectors);
    weights = arena.take<Weights<A>>(count);
    results = arena.take<Results<A>>(count);
    next = Lists(arena, N, M);
    for (int64_t d = 0; d < count; ++d) {
      Weights<A> w;
      w.lists = Lists(arena, N, M);
      w.partners = arena.take<Partners>(groups);
      w.rows = arena.take<int32_t>(groups * N);
      w.of_q = arena.take<A>(groups * N * kM);
      w.of_g = arena.take<A>(M);
      w.of_k = arena.take<A>(N);
      w.sums = arena.take<double>(M);
      Results<A> r;
      r.y = arena.take<V<A>>(N * vectors);
      r.centre = arena.take<V<A>>(M * vectors);
      r.stds = arena.take<V<A>>(M * vectors);
      if (arena.memory == nullptr) continue;
      weights[d] = w;
      results[d] = r;
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

template <class A>
void weigh(const PairsBackward& call, int64_t d, Weights<A>& w) {
  const int64_t N = call.N, M = call.M;
  const double *of_q = call.upstream + d * 3 * N * M, *of_g = of_q + N * M, *of_k = of_g + N * M;
  const Lists& lists = w.lists;
  for (int m = 0; m < lists.component_count; m += kM) {
    const int columns = lists.component_count - m < kM ? lists.component_count - m : kM;
    int32_t* rows = w.rows + m / kM * N;
    A* weights = w.of_q + m / kM * N * kM;
    Partners partners;
    int count = 0;
    for (int pass = 0; pass < 2; ++pass) {
      const bool all = pass == 0;
      for (int n = 0; n < lists.sample_count; ++n) {
        const double* from = of_q + lists.samples[n] * M;
        A* to = weights + count * kM;
        int zeros = 0;
        for (int j = 0; j < columns; ++j) {
          to[j] = static_cast<A>(from[lists.components[m + j]]);
          zeros += to[j] == 0;
        }
        if (zeros == columns || (zeros == 0) != all) continue;
        rows[count++] = n;
      }
      if (all) partners.all = count;
    }
    partners.some = count - partners.all;
    w.partners[m / kM] = partners;
  }
  for (int l = 0; l < lists.component_count; ++l) w.sums[l] = 0;
  for (int n = 0; n < lists.sample_count; ++n) {
    const double* from_g = of_g + lists.samples[n] * M;
    const double* from_k = of_k + lists.samples[n] * M;
    double sum = 0;
    for (int l = 0; l < lists.component_count; ++l) {
      w.sums[l] += from_g[lists.components[l]];
      sum += from_k[lists.components[l]];
    }
    w.of_k[n] = static_cast<A>(sum);
  }
  for (int l = 0; l < lists.component_count; ++l) w.of_g[l] = static_cast<A>(w.sums[l]);
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

// One vector of features of M components from `l`, which belong to one group.
template <bool SAMPLES, bool COMPONENTS, int M, class A>
FUSED_MI_INLINE void pull_components(
    const Work<A>& work, const Weights<A>& w, const Results<A>& r, int64_t N, int v, int l,
    A scale) {
  const int samples = w.lists.sample_count, at = v * w.lists.component_count + l;
  V<A> root[M], centre[M], of_centre[M] = {}, of_squares[M] = {};
  for (int m = 0; m < M; ++m) {
    root[m] = work.root[at + m];
    centre[m] = work.centre[at + m];
  }
  const int64_t group = l / kM;
  const int32_t* rows = w.rows + group * N;
  const A* weights = w.of_q + group * N * kM + l % kM;
  const Partners partners = w.partners[group];
  const V<A>* y = work.samples + v * samples;
  V<A>* d_y = r.y + v * samples;
  pull_group<SAMPLES, COMPONENTS, false, M, A>(
      y, d_y, rows, weights, partners.all, root, centre, of_centre, of_squares);
  if (partners.some > 0) {
    pull_group<SAMPLES, COMPONENTS, true, M, A>(
        y, d_y, rows + partners.all, weights + partners.all * kM, partners.some, root, centre,
        of_centre, of_squares);
  }
  if constexpr (COMPONENTS) {
    for (int m = 0; m < M; ++m) {
      r.centre[at + m] = -(root[m] * of_centre[m]) / scale;
      // Where sigma is 0, so is its gradient, though the squares overflow.
      V<A> slope = work.slope[at + m], factor = w.of_g[l + m] - of_squares[m] / scale;
      r.stds[at + m] = slope == A(0) ? V<A>{} : slope * factor;
    }
  }
}

template <bool SAMPLES, bool COMPONENTS, class A>
void pull(
    const Work<A>& work, const Weights<A>& w, const Results<A>& r, int64_t N, int vectors,
    A scale) {
  const int samples = w.lists.sample_count, components = w.lists.component_count;
  for (int v = 0; v < vectors; ++v) {
    V<A>* d_y = r.y + v * samples;
    if (SAMPLES) std::memset(static_cast<void*>(d_y), 0, samples * sizeof(V<A>));
    int l = 0;
    for (; l + kM <= components; l += kM) {
      pull_components<SAMPLES, COMPONENTS, kM>(work, w, r, N, v, l, scale);
    }
    for (; l < components; ++l) {
      pull_components<SAMPLES, COMPONENTS, 1>(work, w, r, N, v, l, scale);
    }
    if (SAMPLES) {
      for (int n = 0; n < samples; ++n) d_y[n] /= scale;
    }
  }
}

}  // namespace
}  // namespace fused_mi::FUSED_MI_PATH
