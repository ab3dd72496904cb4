// Forward: one pass over the rows of each role, Welford's update by four rows at a time.
//
// All deviations are from one shift per position and feature, the first contributing row, so that
// parts merge by plain weighted means (Chan, Golub & LeVeque 1979).
#include "moments_rows.h"

namespace fused_mi::FUSED_MI_PATH {
namespace {

constexpr int kSegment = 256;  // rows whose moments are summed in A before they merge in float64

// Of an item: both roles; of the components before and after some rows.
template <class A>
struct Work {
  Running<A> samples, components[2];
  int now = 0;
};

// Moments of both roles, wherever they are.
template <class P>
struct Planes {
  const P *mean_y, *m2_y, *weight, *mean_c, *m2_c;
};

// The rows of a segment that contribute.
template <class Contributes>
FUSED_MI_INLINE int choose(int64_t begin, int64_t end, int64_t* rows, Contributes&& contributes) {
  int count = 0;
  for (int64_t row = begin; row < end; ++row) {
    if (contributes(row)) rows[count++] = row;
  }
  return count;
}

double log_2pi(int64_t rows, int width) {
  return 1.8378770664093454836 * static_cast<double>(rows * width);
}

// What an item is about.
struct Place {
  const MomentsInputs& in;
  const Mixture& mixture;
  const Position& position;
  int64_t s, e;
  int width;
};

template <class Parts>
void merge_samples(
    const Parts* mean, const Parts* m2, int64_t count, int width, Totals& total) {
  double before = static_cast<double>(total.samples), more = static_cast<double>(count);
  double share = more / (before + more);
  for (int f = 0; f < width; ++f) {
    double step = mean[f] - total.mean_y[f];
    total.m2_y[f] += m2[f] + (before * share * step) * step;
    total.mean_y[f] += step * share;
  }
  total.samples += count;
}

template <class Parts>
void merge_components(
    const Parts* weight, const Parts* mean, const Parts* m2, int width, Totals& total) {
  for (int f = 0; f < width; ++f) {
    double more = weight[f], sum = total.weight[f] + more;
    double share = more / (sum > 0 ? sum : 1), step = mean[f] - total.mean_c[f];
    total.m2_c[f] += m2[f] + (total.weight[f] * share * step) * step;
    total.mean_c[f] += step * share;
    total.weight[f] = sum;
  }
}

template <class A, class In>
void samples(const Place& at, Rows rows, bool merge, Running<A>& run, Totals& total) {
  Reader<In> y(at.in.y, at.s, at.e, at.width), sigma(at.in.stds, at.s, at.e, at.width);
  Stabiliser<A> stabiliser(at.mixture.sample_eps);
  alignas(64) A shift_buffer[kWidth];
  const A* shift = read(at.in.y, at.position.first_sample, at.s, at.e, at.width, shift_buffer);
  int64_t which[kSegment];
  for (int64_t begin = rows.start; begin < rows.stop; begin += kSegment) {
    int64_t end = begin + kSegment < rows.stop ? begin + kSegment : rows.stop;
    int count = choose(begin, end, which, [&](int64_t row) {
      return sample_contributes(at.in, at.mixture, at.position, row, at.s);
    });
    if (count == 0) continue;
    std::memset(run.mean, 0, at.width * sizeof(A));
    std::memset(run.m2, 0, at.width * sizeof(A));
    Logs<A> logs;
    for (int i = 0; i < count; i += kRows) {
      with_rows(count - i, [&](auto n) {
        constexpr int R = n.value;
        y.next(which, i, R, count);
        add_samples<A, R>(y, shift, at.width, i, run);
        if (!at.in.own_stds) return;
        sigma.next(which, i, R, count);
        if (!add_logs<A, R, false>(sigma, at.width, stabiliser, logs)) {
          add_logs<A, R, true>(sigma, at.width, stabiliser, logs);
        }
      });
    }
    total.log_i += logs.value() + log_2pi(count, at.width);
    merge ? merge_samples(run.mean, run.m2, count, at.width, total) : void(total.samples = count);
  }
}

template <class A, class In>
void components(const Place& at, Rows rows, bool merge, Work<A>& work, Totals& total) {
  Reader<In> x(at.in.x, at.s, at.e, at.width), mu(at.in.mu, at.s, at.e, at.width);
  Reader<In> sigma(at.in.stds, at.s, at.e, at.width);
  Stabiliser<A> stabiliser(at.mixture.component_eps);
  alignas(64) A shift_buffer[kWidth];
  const A* shift = read(at.in.x, at.position.first_component, at.s, at.e, at.width, shift_buffer);
  int64_t which[kSegment];
  Running<A>(&runs)[2] = work.components;
  int& now = work.now;
  for (int64_t begin = rows.start; begin < rows.stop; begin += kSegment) {
    int64_t end = begin + kSegment < rows.stop ? begin + kSegment : rows.stop;
    int count = choose(begin, end, which, [&](int64_t row) {
      return component_contributes(at.in, at.mixture, at.position, row, at.s);
    });
    if (count == 0) continue;
    std::memset(runs[now].weight, 0, at.width * sizeof(A));
    std::memset(runs[now].mean, 0, at.width * sizeof(A));
    std::memset(runs[now].m2, 0, at.width * sizeof(A));
    Logs<A> logs;
    for (int i = 0; i < count; i += kRows, now = 1 - now) {
      with_rows(count - i, [&](auto n) {
        constexpr int R = n.value;
        x.next(which, i, R, count);
        mu.next(which, i, R, count);
        sigma.next(which, i, R, count);
        auto add = [&](auto careful) {
          return add_components<A, R, careful.value != 0>(
              x, mu, sigma, shift, at.width, stabiliser, runs[now], runs[1 - now],
              logs);
        };
        if (!add(Int<0>{})) add(Int<1>{});
      });
    }
    total.log_l += logs.value() + log_2pi(count, at.width);
    if (merge) {
      merge_components(runs[now].weight, runs[now].mean, runs[now].m2, at.width, total);
    }
  }
}

// The pairs (i, i), row by row.
void diagonal(const Place& at, Rows rows, Totals& total) {
  using A = double;
  Reader<A> y(at.in.y, at.s, at.e, at.width), x(at.in.x, at.s, at.e, at.width);
  Reader<A> mu(at.in.mu, at.s, at.e, at.width), sigma(at.in.stds, at.s, at.e, at.width);
  Stabiliser<A> of_samples(at.mixture.sample_eps), of_components(at.mixture.component_eps);
  int64_t to_component = at.mixture.components.start - at.mixture.samples.start;
  for (int64_t row = rows.start; row < rows.stop; ++row) {
    int64_t partner = row + to_component;
    if (!sample_contributes(at.in, at.mixture, at.position, row, at.s)) continue;
    if (!component_contributes(at.in, at.mixture, at.position, partner, at.s)) continue;
    y.next(&row, 0, 1, 1);
    x.next(&partner, 0, 1, 1);
    mu.next(&partner, 0, 1, 1);
    Logs<A> logs;
    V<A> sum{};
    sigma.next(&partner, 0, 1, 1);
    over_vectors<A>(at.width, [&](int f, auto part) __attribute__((always_inline)) {
      Terms<A> t = variance_terms<true, A>(load<A>(sigma.rows[0] + f, part), of_components);
      V<A> distance = (load<A>(y.rows[0] + f, part) - load<A>(x.rows[0] + f, part)) -
          load<A>(mu.rows[0] + f, part);
      sum += inside<A>((t.precision * distance) * distance, V<A>{}, part);
      logs.include(inside<A>(t.v, all<A>(1), part), only<A>(t.large, part));
    });
    for (int i = 0; i < kLanes<A>; ++i) total.diagonal_q += sum[i];
    total.diagonal_g += logs.value() + log_2pi(1, at.width);
    if (!at.in.own_stds) continue;
    sigma.next(&row, 0, 1, 1);
    Logs<A> own;
    add_logs<A, 1, true>(sigma, at.width, of_samples, own);
    total.diagonal_k += own.value() + log_2pi(1, at.width);
  }
}

void clear(int width, Totals& total) {
  total.samples = 0;
  total.log_i = total.log_l = total.diagonal_q = total.diagonal_g = total.diagonal_k = 0;
  double* const planes[] = {total.mean_y, total.m2_y, total.weight, total.mean_c, total.m2_c};
  for (double* plane : planes) std::memset(plane, 0, width * sizeof(double));
}

// State and sums of one tile.
template <class A, class P>
void finish_tile(
    const MomentsForward& call, const Place& at, int64_t d, int64_t tile, const Planes<P>& m,
    const Totals& total) {
  const MomentsInputs& in = call.in;
  const Position& p = at.position;
  A* state = reinterpret_cast<A*>(call.state) + (d * 4 * in.S + at.s) * in.E + at.e;
  const int64_t plane = in.S * in.E;
  double* sums = call.partial_sums + (d * call.cut.tiles() + tile) * 3;
  sums[0] = sums[1] = sums[2] = 0;
  if (p.samples == 0 || p.components == 0) {
    for (int i = 0; i < 4; ++i) std::memset(state + i * plane, 0, at.width * sizeof(A));
    return;
  }
  alignas(64) A x_buffer[kWidth], y_buffer[kWidth];
  const A* y_shift = read(in.y, p.first_sample, at.s, at.e, at.width, y_buffer);
  const A* x_shift = read(in.x, p.first_component, at.s, at.e, at.width, x_buffer);
  constexpr int kSums = 16;  // in parallel
  double n = static_cast<double>(p.samples), partial[kSums] = {};
  for (int f = 0; f < at.width; f += kSums) {
    int count = at.width - f < kSums ? at.width - f : kSums;
    auto add = [&](int i) __attribute__((always_inline)) {
      double mean_y = m.mean_y[f + i], m2_y = m.m2_y[f + i], weight = m.weight[f + i];
      double mean_c = m.mean_c[f + i], m2_c = m.m2_c[f + i];
      double shifts = static_cast<double>(y_shift[f + i]) - static_cast<double>(x_shift[f + i]);
      double distance = shifts + (mean_y - mean_c);
      partial[i] += m2_y * weight + (n * weight * distance) * distance + n * m2_c;
      state[f + i] = static_cast<A>(mean_y);
      state[plane + f + i] = static_cast<A>(m2_y);
      state[2 * plane + f + i] = static_cast<A>(mean_c);
      state[3 * plane + f + i] = static_cast<A>(weight);
    };
    if (count == kSums) {
#pragma GCC ivdep  // `state` is nobody else's
      for (int i = 0; i < kSums; ++i) add(i);
    } else {
      for (int i = 0; i < count; ++i) add(i);
    }
  }
  double q = 0;
  for (double sum : partial) q += sum;
  double m_count = static_cast<double>(p.components);
  sums[0] = (q - total.diagonal_q) / 2 / Stabiliser<A>(at.mixture.component_eps).scale;
  sums[1] = (n * total.log_l - total.diagonal_g) / 2;
  if (in.own_stds) sums[2] = (m_count * total.log_i - total.diagonal_k) / 2;
}

Totals& part_of(const MomentsForward& call, int64_t d, int64_t tile, int64_t split) {
  return call.totals[(d * call.cut.tiles() + tile) * call.cut.splits + split];
}

Place place(const MomentsForward& call, int64_t d, int64_t tile) {
  const Cut& cut = call.cut;
  int64_t s = tile / cut.blocks, e = tile % cut.blocks * cut.width;
  return {
      call.in, call.in.mixtures[d], call.positions[d * cut.positions + s], s, e, cut.width_at(e)};
}

template <class A>
void finish_totals(
    const MomentsForward& call, const Place& at, int64_t d, int64_t tile, const Totals& t) {
  Planes<double> planes{t.mean_y, t.m2_y, t.weight, t.mean_c, t.m2_c};
  finish_tile<A>(call, at, d, tile, planes, t);
}

// `merge`: the rows need several segments, which meet in `total`; else the moments stay in `work`.
template <class A>
void accumulate_part(
    const Place& at, const Cut& cut, int64_t split, bool merge, Work<A>& work, Totals& total) {
  clear(merge ? at.width : 0, total);
  if (at.position.samples == 0 || at.position.components == 0) return;
  const MomentsInputs& in = at.in;
  const View *of_samples[] = {&in.y, &in.stds}, *of_components[] = {&in.x, &in.mu, &in.stds};
  with_input<A>(of_samples, in.own_stds ? 2 : 1, [&](auto type) {
    Rows rows = cut.part(at.mixture.samples, split);
    samples<A, decltype(type)>(at, rows, merge, work.samples, total);
  });
  with_input<A>(of_components, 3, [&](auto type) {
    Rows rows = cut.part(at.mixture.components, split);
    components<A, decltype(type)>(at, rows, merge, work, total);
  });
  if (in.exclude_diagonal) diagonal(at, cut.part(at.mixture.samples, split), total);
}

template <class A>
void accumulate_items(const MomentsForward& call, int64_t begin, int64_t end) {
  const Cut& cut = call.cut;
  Totals own;
  Work<A> work;
  const bool merge = cut.splits > 1 || cut.rows_per_split > kSegment;
  for (int64_t item = begin; item < end; ++item) {
    int64_t tile = item / cut.splits, split = item % cut.splits;
    for (int64_t d = 0; d < call.in.count; ++d) {
      Place at = place(call, d, tile);
      Totals& total = cut.splits > 1 ? part_of(call, d, tile, split) : own;
      accumulate_part<A>(at, cut, split, merge, work, total);
      if (merge && cut.splits == 1) finish_totals<A>(call, at, d, tile, total);
      if (merge) continue;
      const Running<A>&y = work.samples, &c = work.components[work.now];
      finish_tile<A>(call, at, d, tile, Planes<A>{y.mean, y.m2, c.weight, c.mean, c.m2}, total);
    }
  }
}

void accumulate(const MomentsForward& call, int64_t begin, int64_t end) {
  call.in.wide ? accumulate_items<double>(call, begin, end)
               : accumulate_items<float>(call, begin, end);
}

void finish(const MomentsForward& call, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    for (int64_t d = 0; d < call.in.count; ++d) {
      Place at = place(call, d, tile);
      Totals& total = part_of(call, d, tile, 0);
      for (int64_t split = 1; split < call.cut.splits; ++split) {
        const Totals& more = part_of(call, d, tile, split);
        if (more.samples > 0) merge_samples(more.mean_y, more.m2_y, more.samples, at.width, total);
        merge_components(more.weight, more.mean_c, more.m2_c, at.width, total);
        total.log_i += more.log_i;
        total.log_l += more.log_l;
        total.diagonal_q += more.diagonal_q;
        total.diagonal_g += more.diagonal_g;
        total.diagonal_k += more.diagonal_k;
      }
      call.in.wide ? finish_totals<double>(call, at, d, tile, total)
                   : finish_totals<float>(call, at, d, tile, total);
    }
  }
}

void positions(const MomentsInputs& in, Position* found, int64_t begin, int64_t end) {
  for (int64_t d = 0; d < in.count; ++d) {
    const Mixture& m = in.mixtures[d];
    Position* here = found + d * in.S;
    for (int64_t s = begin; s < end; ++s) here[s] = {0, 0, 0, 0, -1, -1};
    // Rows outside, positions inside: as the masks lie in memory.
    for (int64_t row = m.samples.start; row < m.samples.stop; ++row) {
      for (int64_t s = begin; s < end; ++s) here[s].active_samples += in.sample_mask.at(row, s);
    }
    for (int64_t row = m.components.start; row < m.components.stop; ++row) {
      for (int64_t s = begin; s < end; ++s) {
        here[s].active_components += in.component_mask.at(row, s);
      }
    }
    for (int64_t row = m.samples.start; row < m.samples.stop; ++row) {
      for (int64_t s = begin; s < end; ++s) {
        if (!sample_contributes(in, m, here[s], row, s)) continue;
        if (here[s].samples++ == 0) here[s].first_sample = row;
      }
    }
    for (int64_t row = m.components.start; row < m.components.stop; ++row) {
      for (int64_t s = begin; s < end; ++s) {
        if (!component_contributes(in, m, here[s], row, s)) continue;
        if (here[s].components++ == 0) here[s].first_component = row;
      }
    }
  }
}

}  // namespace

extern const MomentsKernels moments_kernels = {positions, accumulate, finish};

}  // namespace fused_mi::FUSED_MI_PATH
