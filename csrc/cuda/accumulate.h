// Moments of both roles, of a part of the batch at one position, for some features: samples first, then
// components. Sums of logs are complete with that; where one block has the whole batch, q is too.
#pragma once

#include "rows.h"
#include "settle.h"

namespace fused_mi {

// Of a part and role: begin and end of its rows, relative to the first one.
struct Part {
  int begin, end;

  static GPU_DEVICE Part of(int rows, int per_split, int split) {
    const int64_t begin = static_cast<int64_t>(split) * per_split, end = begin + per_split;
    return {static_cast<int>(begin < rows ? begin : rows), static_cast<int>(end < rows ? end : rows)};
  }
};

// sum of log v + log 2 pi of all columns of a thread: `count` rows of each; columns whose variances are out
// of range are marked in `odd` and summed again, row by row, with `weight(entry)`.
template <class F, class Weight>
GPU_DEVICE double log_sum(
    const Logs<typename F::Number> (&logs)[F::V], double count, const Jensen& in, int first,
    double eps, const RowList& list, int listed, const Place& place, bool (&odd)[F::V],
    const Weight& weight) {
  double total = 0;
  GPU_UNROLL
  for (int j = 0; j < F::V; ++j) {
    total += count * kLog2Pi;
    if (!logs[j].odd()) {
      total += static_cast<double>(logs[j].sum) * kLn2;
      continue;
    }
    odd[j] = true;
    auto add = [&](const auto& entries, int here) {
      for (int i = 0; i < here; ++i) {
        const int64_t row = first + entries.at[i].row();
        const double sigma = element(in.stds, row, place.s, place.e + j);
        total += weight(entries.at[i]) * 2 * ::log(root_of(sigma, eps));
      }
    };
    for_groups(list, listed, place.stream, place.streams, add);
  }
  return total;
}

template <class F>
struct Samples {
  using T = typename F::Number;
  static constexpr int V = F::V;
  Moments<T> of[V];
  Logs<T> logs[V];

  template <bool FULL>
  GPU_DEVICE void add(
      const Jensen& in, const Group<FULL>& group, int64_t at_y, int64_t at_stds, const T (&shift)[V],
      T eps, bool own) {
    typename F::Raw y[kGroup], stds[kGroup];
    GPU_UNROLL
    for (int i = 0; i < kGroup; ++i) y[i] = F::load(in.y, at_y + group.row(i) * in.y.row);
    if (own) {
      GPU_UNROLL
      for (int i = 0; i < kGroup; ++i) stds[i] = F::load(in.stds, at_stds + group.row(i) * in.stds.row);
    }
    const T more = FULL ? T(kGroup) : T(group.count);
    const T over = FULL ? T(1) / kGroup : gpu::reciprocal(more);
    const T share = more * gpu::reciprocal(of[0].weight + more);
    GPU_UNROLL
    for (int j = 0; j < V; ++j) {
      T value[kGroup];
      GPU_UNROLL
      for (int i = 0; i < kGroup; ++i) value[i] = group.here(i) ? F::get(y[i], j) - shift[j] : T(0);
      merge(of[j], of_samples(value, more, over, [&](int i) { return group.here(i); }), share);
      if (!own) continue;
      T v[kGroup];
      GPU_UNROLL
      for (int i = 0; i < kGroup; ++i) {
        const T sigma = F::get(stds[i], j);
        v[i] = group.here(i) ? gpu::fma(sigma, sigma, eps) : T(1);
        logs[j].look(v[i]);
      }
      logs[j].sum += gpu::log2(v[0] * v[1]) + gpu::log2(v[2] * v[3]);
    }
  }
};

template <class F>
struct Components {
  using T = typename F::Number;
  static constexpr int V = F::V;
  Moments<T> of[V];
  Logs<T> logs[V];

  template <bool FULL>
  GPU_DEVICE void add(
      const Jensen& in, const Group<FULL>& group, int64_t at_x, int64_t at_mu, int64_t at_stds,
      const T (&x_shift)[V], const T (&mu_shift)[V], T eps) {
    typename F::Raw x[kGroup], mu[kGroup], stds[kGroup];
    GPU_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      x[i] = F::load(in.x, at_x + group.row(i) * in.x.row);
      mu[i] = F::load(in.mu, at_mu + group.row(i) * in.mu.row);
      stds[i] = F::load(in.stds, at_stds + group.row(i) * in.stds.row);
    }
    GPU_UNROLL
    for (int j = 0; j < V; ++j) {
      T c[kGroup], p[kGroup], v[kGroup];
      GPU_UNROLL
      for (int i = 0; i < kGroup; ++i) {
        const bool here = group.here(i);
        const T sigma = F::get(stds[i], j);
        v[i] = here ? gpu::fma(sigma, sigma, eps) : T(1);
        p[i] = here ? gpu::reciprocal(v[i]) : T(0);
        c[i] = here ? (F::get(x[i], j) - x_shift[j]) + (F::get(mu[i], j) - mu_shift[j]) : T(0);
        logs[j].look(v[i]);
      }
      logs[j].sum += gpu::log2(v[0] * v[1]) + gpu::log2(v[2] * v[3]);
      merge(of[j], of_components<false>(c, p));
    }
  }
};

constexpr int kAccumulate = 64;  // threads

template <class F>
struct AccumulateShared {
  using T = typename F::Number;
  RowList list;
  T streams[kAlonePlanes + 1][F::V][kAccumulate];
  double slots[kAccumulate / 32];
};

template <class F>
GPU_KERNEL(kAccumulate, 6)
accumulate_kernel(const Jensen in) {
  using T = typename F::Number;
  constexpr int V = F::V;
  auto& shared = gpu::shared<AccumulateShared<F>>();
  const int64_t tile = blockIdx.x % in.tiles, s = blockIdx.x / in.tiles % in.S;
  const int64_t part = blockIdx.x / in.tiles / in.S;
  const int split = static_cast<int>(part % in.splits), d = static_cast<int>(part / in.splits);
  const Mixture of = in.mixture[d];
  const Counts counts(in, d, s);
  const Place place = Place::of<kAccumulate, V>(in, tile, s);
  T* slots = reinterpret_cast<T*>(shared.slots);
  const T eps_i = eps_of<T, kAccumulate>(in, of.sample_role, slots);
  const T eps_l = eps_of<T, kAccumulate>(in, of.component_role, slots);
  const bool some = counts.n > 0 && counts.m > 0;
  const Shifts<F> shifts(in, of, counts, place, some);

  const Part rows_i = Part::of(in.N, in.samples_per_split, split);
  const int first_i = of.sample_start + rows_i.begin;
  const int listed_i = list_rows<kAccumulate>(
      shared.list, rows_i.begin, some ? rows_i.end : rows_i.begin,
      [&](int i) { return in.masks[0].at(of.sample_start + i, s) ? Entry::SAMPLE : 0u; });
  Samples<F> samples;
  double of_g = 0, of_k = 0, own = 0;
  bool odd[V] = {};
  if (place.inside) {
    const bool with_stds = of.sample_role >= 0;
    const int64_t at_y = in.y.at(first_i, s, place.e), at_stds = in.stds.at(first_i, s, place.e);
    for_groups(
        shared.list, listed_i, place.stream, place.streams,
        [&](const auto& entries) {
          samples.template add<true>(in, {entries, kGroup}, at_y, at_stds, shifts.y, eps_i, with_stds);
          own += kGroup;
        },
        [&](const auto& entries, int here) {
          samples.template add<false>(in, {entries, here}, at_y, at_stds, shifts.y, eps_i, with_stds);
          own += here;
        });
    if (with_stds) {
      of_k = counts.m * log_sum<F>(
          samples.logs, own, in, first_i, eps_i, shared.list, listed_i, place, odd,
          [](Entry) { return 1.0; });
    }
  }

  const Part rows_l = Part::of(in.M, in.components_per_split, split);
  const int first_l = of.component_start + rows_l.begin;
  const int listed_l = list_rows<kAccumulate>(
      shared.list, rows_l.begin, some ? rows_l.end : rows_l.begin,
      [&](int l) { return in.masks[1].at(of.component_start + l, s) ? Entry::COMPONENT : 0u; });
  Components<F> components;
  if (place.inside) {
    own = 0;
    const int64_t at_x = in.x.at(first_l, s, place.e), at_mu = in.mu.at(first_l, s, place.e);
    const int64_t at_stds = in.stds.at(first_l, s, place.e);
    for_groups(
        shared.list, listed_l, place.stream, place.streams,
        [&](const auto& entries) {
          components.template add<true>(
              in, {entries, kGroup}, at_x, at_mu, at_stds, shifts.x, shifts.mu, eps_l);
          own += kGroup;
        },
        [&](const auto& entries, int here) {
          components.template add<false>(
              in, {entries, here}, at_x, at_mu, at_stds, shifts.x, shifts.mu, eps_l);
          own += here;
        });
    of_g = counts.n * log_sum<F>(
        components.logs, own, in, first_l, eps_l, shared.list, listed_l, place, odd,
        [](Entry) { return 1.0; });
  }

  auto& streams = shared.streams;
  GPU_UNROLL
  for (int j = 0; j < V; ++j) {
    const T nan = static_cast<T>(__builtin_nan(""));
    streams[MEAN_Y][j][threadIdx.x] = samples.of[j].mean;
    streams[M2_Y][j][threadIdx.x] = samples.of[j].m2;
    streams[WEIGHT][j][threadIdx.x] = components.of[j].weight;
    streams[MEAN_C][j][threadIdx.x] = odd[j] ? nan : components.of[j].mean;
    streams[M2_C][j][threadIdx.x] = components.of[j].m2;
    streams[kAlonePlanes][j][threadIdx.x] = samples.of[j].weight;
  }
  gpu::barrier();
  double of_q = 0;
  if (place.stream == 0 && place.inside) {
    GPU_UNROLL
    for (int j = 0; j < V; ++j) {
      auto at = [&](int plane, int stream) {
        return streams[plane][j][stream * in.columns + place.thread];
      };
      const Whole<T> whole = Whole<T>::halves(place.streams, at, [&](int stream) {
        return at(kAlonePlanes, stream);
      });
      of_q += whole.leave(in, d, split, counts, place, j, shifts.column(j), some);
    }
  }
  of_q = sum_over_block<kAccumulate>(of_q, shared.slots);
  of_g = sum_over_block<kAccumulate>(of_g, shared.slots);
  of_k = sum_over_block<kAccumulate>(of_k, shared.slots);
  if (threadIdx.x == 0) {
    double* sums = in.sums + 3 * (d * in.accumulated + blockIdx.x % in.accumulated);
    sums[0] = of_q, sums[1] = of_g, sums[2] = of_k;
  }
}

}  // namespace fused_mi
