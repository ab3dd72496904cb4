// The same where every row meets all others: pairs of a row with itself are never in the sum, and no term
// of it is negative. The twelve pairs of a group of four rows are summed directly; those of two sets of
// rows follow from the moments of each.
#pragma once

#include "accumulate.h"

namespace fused_mi {

template <class F>
struct Alone {
  using T = typename F::Number;
  static constexpr int V = F::V;
  Moments<T> samples[V], components[V];
  T q[V] = {}, heaviest[V] = {}, lowest[V], highest[V];
  Logs<T> logs_i[V], logs_l[V];  // times how many partners each row has

  GPU_DEVICE Alone() {
    GPU_UNROLL
    for (int j = 0; j < V; ++j) lowest[j] = gpu::infinity<T>(), highest[j] = -gpu::infinity<T>();
  }

  // How many partners an entry has, as a component and as a sample.
  template <class Here>
  static GPU_DEVICE T partners_of_component(const Counts& counts, const Here& entry) {
    return static_cast<T>(counts.n - entry.sample());
  }
  template <class Here>
  static GPU_DEVICE T partners_of_sample(const Counts& counts, const Here& entry) {
    return static_cast<T>(counts.m - entry.component());
  }

  // FULL: four rows, all of which have both roles.
  template <bool FULL>
  GPU_DEVICE void add(
      const Jensen& in, const Group<FULL>& group, const Counts& counts, int first, const Place& place,
      const Shifts<F>& shifts, T eps_i, T eps_l, bool own) {
    typename F::Raw y[kGroup], x[kGroup], mu[kGroup], stds[kGroup];
    GPU_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      const int64_t row = first + group.row(i);
      y[i] = F::load(in.y, in.y.at(row, place.s, place.e));
      x[i] = F::load(in.x, in.x.at(row, place.s, place.e));
      mu[i] = F::load(in.mu, in.mu.at(row, place.s, place.e));
      stds[i] = F::load(in.stds, in.stds.at(row, place.s, place.e));
    }
    T more = 0;
    GPU_UNROLL
    for (int i = 0; i < kGroup; ++i) more += group.sample(i) ? T(1) : T(0);
    // Rounded quotients: one for all features.
    const T over = 1 / gpu::most(more, T(1));
    const T share = more / gpu::most(samples[0].weight + more, T(1));
    GPU_UNROLL
    for (int j = 0; j < V; ++j) {
      T of_y[kGroup], c[kGroup], p[kGroup];
      GPU_UNROLL
      for (int i = 0; i < kGroup; ++i) {
        const T sigma = F::get(stds[i], j), square = sigma * sigma;
        const T v = group.component(i) ? square + eps_l : T(1);
        of_y[i] = group.sample(i) ? F::get(y[i], j) - shifts.y[j] : T(0);
        p[i] = group.component(i) ? gpu::reciprocal(v) : T(0);
        c[i] = group.component(i)
                   ? (F::get(x[i], j) - shifts.x[j]) + (F::get(mu[i], j) - shifts.mu[j])
                   : T(0);
        logs_l[j].look(v);
        heaviest[j] = gpu::most(heaviest[j], p[i]);
        add_log(logs_l[j], v, group.component(i), counts.n - group.sample(i));
        if (!own) continue;
        const T v_i = group.sample(i) ? square + eps_i : T(1);
        logs_i[j].look(v_i);
        add_log(logs_i[j], v_i, group.sample(i), counts.m - group.component(i));
      }
      const auto use = [&](int i) { return group.sample(i); };
      const Moments<T> more_i = of_samples(of_y, more, over, use);
      const Moments<T> more_l = of_components<true>(c, p);
      GPU_UNROLL
      for (int l = 0; l < kGroup; ++l) {
        T of_component = 0;
        GPU_UNROLL
        for (int i = 0; i < kGroup; ++i) {
          if (i == l) continue;
          const T distance = of_y[i] - c[l];
          of_component = gpu::fma(use(i) ? distance : T(0), distance, of_component);
        }
        q[j] = gpu::fma(p[l], of_component, q[j]);
        if (use(l)) lowest[j] = gpu::least(lowest[j], of_y[l]);
        if (use(l)) highest[j] = gpu::most(highest[j], of_y[l]);
      }
      q[j] += between(samples[j], more_l) + between(more_i, components[j]);
      merge(samples[j], more_i, share);
      merge(components[j], more_l);
    }
  }

  static GPU_DEVICE void add_log(Logs<T>& logs, T v, bool here, int partners) {
    logs.sum = gpu::fma(here ? static_cast<T>(partners) : T(0), gpu::log2(v), logs.sum);
  }
};

template <class F>
GPU_KERNEL(kAccumulate, 6)
accumulate_alone_kernel(const Jensen in) {
  using T = typename F::Number;
  constexpr int V = F::V;
  auto& shared = gpu::shared<AccumulateShared<F>>();
  const int64_t tile = blockIdx.x % in.tiles, s = blockIdx.x / in.tiles % in.S;
  const int split = static_cast<int>(blockIdx.x / in.tiles / in.S);
  const Mixture of = in.mixture[0];
  const Counts counts(in, 0, s);
  const Place place = Place::of<kAccumulate, V>(in, tile, s);
  T* slots = reinterpret_cast<T*>(shared.slots);
  const T eps_i = eps_of<T, kAccumulate>(in, of.sample_role, slots);
  const T eps_l = eps_of<T, kAccumulate>(in, of.component_role, slots);
  const bool some = counts.n > 0 && counts.m > 0, own = of.sample_role >= 0;
  const Shifts<F> shifts(in, of, counts, place, some);
  const Part rows = Part::of(in.N, in.samples_per_split, split);
  const int first = of.sample_start + rows.begin;
  const int listed = list_rows<kAccumulate>(
      shared.list, rows.begin, some ? rows.end : rows.begin, [&](int row) {
        const bool i = in.masks[0].at(of.sample_start + row, s) && counts.sample(in, row);
        const bool l = in.masks[1].at(of.sample_start + row, s) && counts.component(in, row);
        return (i ? Entry::SAMPLE : 0u) | (l ? Entry::COMPONENT : 0u);
      });

  Alone<F> found;
  double of_g = 0, of_k = 0, pairs_g = 0, pairs_k = 0;
  bool odd[V] = {};
  if (place.inside) {
    for_groups(shared.list, listed, place.stream, place.streams, [&](const auto& entries, int here) {
      const Group<false> group{entries, here};
      bool full = here == kGroup;
      for (int i = 0; i < here; ++i) {
        full &= group.sample(i) && group.component(i);
        pairs_g += group.component(i) ? counts.n - group.sample(i) : 0;
        pairs_k += group.sample(i) ? counts.m - group.component(i) : 0;
      }
      if (full) {
        found.template add<true>(in, {entries, here}, counts, first, place, shifts, eps_i, eps_l, own);
      } else {
        found.template add<false>(in, group, counts, first, place, shifts, eps_i, eps_l, own);
      }
    });
    of_g = log_sum<F>(
        found.logs_l, pairs_g, in, first, eps_l, shared.list, listed, place, odd,
        [&](Entry e) { return e.component() ? static_cast<double>(counts.n - e.sample()) : 0.0; });
    if (own) {
      of_k = log_sum<F>(
          found.logs_i, pairs_k, in, first, eps_i, shared.list, listed, place, odd,
          [&](Entry e) { return e.sample() ? static_cast<double>(counts.m - e.component()) : 0.0; });
    }
  }

  auto& streams = shared.streams;
  GPU_UNROLL
  for (int j = 0; j < V; ++j) {
    const T nan = static_cast<T>(__builtin_nan(""));
    streams[MEAN_Y][j][threadIdx.x] = found.samples[j].mean;
    streams[M2_Y][j][threadIdx.x] = found.samples[j].m2;
    streams[WEIGHT][j][threadIdx.x] = found.components[j].weight;
    streams[MEAN_C][j][threadIdx.x] = odd[j] ? nan : found.components[j].mean;
    streams[M2_C][j][threadIdx.x] = found.components[j].m2;
    streams[Q][j][threadIdx.x] = found.q[j];
    streams[HEAVIEST][j][threadIdx.x] = found.heaviest[j];
    streams[LOWEST][j][threadIdx.x] = found.lowest[j];
    streams[HIGHEST][j][threadIdx.x] = found.highest[j];
    streams[kAlonePlanes][j][threadIdx.x] = found.samples[j].weight;
  }
  gpu::barrier();
  double of_q = 0;
  if (place.stream == 0 && place.inside) {
    GPU_UNROLL
    for (int j = 0; j < V; ++j) {
      auto at = [&](int plane, int stream) {
        return streams[plane][j][stream * in.columns + place.thread];
      };
      const Whole<T> whole = Whole<T>::alone(place.streams, at, [&](int stream) {
        return at(kAlonePlanes, stream);
      });
      of_q += whole.leave(in, 0, split, counts, place, j, shifts.column(j), some);
    }
  }
  of_q = sum_over_block<kAccumulate>(of_q, shared.slots);
  of_g = sum_over_block<kAccumulate>(of_g, shared.slots);
  of_k = sum_over_block<kAccumulate>(of_k, shared.slots);
  if (threadIdx.x == 0) {
    double* sums = in.sums + 3 * static_cast<int64_t>(blockIdx.x);
    sums[0] = of_q, sums[1] = of_g, sums[2] = of_k;
  }
}

}  // namespace fused_mi
