// Forward: one pass over the rows of each role, Welford's update by four rows at a time.
#include "moments_finish.h"

namespace fused_mi::FUSED_MI_PATH {
namespace {

constexpr int kSegment = 256;  // rows whose moments are summed in A before they merge in float64

// Both roles of an item.
template <class A>
struct Work {
  Running<A> samples, components;
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

template <class A, class In>
void samples(const Place& at, Rows rows, bool merge, Running<A>& run, Totals& total) {
  Reader<In> y(at.in.y, at.s, at.e, at.width), sigma(at.in.stds, at.s, at.e, at.width);
  const A eps = static_cast<A>(at.mixture.sample_eps);
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
        add_logs<A, R>(sigma, at.width, eps, logs);
      });
    }
    total.regular &= logs.range.regular();
    total.log_i += logs.value() + log_2pi(count, at.width);
    merge ? merge_samples(run.mean, run.m2, count, at.width, total) : void(total.samples = count);
  }
}

template <class A, class In>
void components(const Place& at, Rows rows, bool merge, Running<A>& run, Totals& total) {
  Reader<In> x(at.in.x, at.s, at.e, at.width), mu(at.in.mu, at.s, at.e, at.width);
  Reader<In> sigma(at.in.stds, at.s, at.e, at.width);
  const A eps = static_cast<A>(at.mixture.component_eps);
  alignas(64) A shift_buffer[kWidth];
  const A* shift = read(at.in.x, at.position.first_component, at.s, at.e, at.width, shift_buffer);
  int64_t which[kSegment];
  for (int64_t begin = rows.start; begin < rows.stop; begin += kSegment) {
    int64_t end = begin + kSegment < rows.stop ? begin + kSegment : rows.stop;
    int count = choose(begin, end, which, [&](int64_t row) {
      return component_contributes(at.in, at.mixture, at.position, row, at.s);
    });
    if (count == 0) continue;
    A* const planes[] = {run.weight, run.mean, run.m2};
    for (A* plane : planes) std::memset(plane, 0, at.width * sizeof(A));
    Logs<A> logs;
    for (int i = 0; i < count; i += kRows) {
      with_rows(count - i, [&](auto n) {
        constexpr int R = n.value;
        x.next(which, i, R, count);
        mu.next(which, i, R, count);
        sigma.next(which, i, R, count);
        add_components<A, R>(x, mu, sigma, shift, at.width, eps, run, logs);
      });
    }
    total.regular &= logs.range.regular();
    total.log_l += logs.value() + log_2pi(count, at.width);
    if (merge) merge_components(run.weight, run.mean, run.m2, at.width, total);
  }
}

// The pairs (i, i), row by row.
void diagonal(const Place& at, Rows rows, Totals& total) {
  using A = double;
  Reader<A> y(at.in.y, at.s, at.e, at.width), x(at.in.x, at.s, at.e, at.width);
  Reader<A> mu(at.in.mu, at.s, at.e, at.width), sigma(at.in.stds, at.s, at.e, at.width);
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
      Terms<A> t = variance_terms<A>(
          load<A>(sigma.rows[0] + f, part), at.mixture.component_eps);
      V<A> distance = (load<A>(y.rows[0] + f, part) - load<A>(x.rows[0] + f, part)) -
          load<A>(mu.rows[0] + f, part);
      sum += inside<A>((t.precision * distance) * distance, V<A>{}, part);
      logs.add({inside<A>(t.v, all<A>(1), part)});
    });
    for (int i = 0; i < kLanes<A>; ++i) total.diagonal_q += sum[i];
    total.diagonal_g += logs.value() + log_2pi(1, at.width);
    if (!at.in.own_stds) continue;
    sigma.next(&row, 0, 1, 1);
    Logs<A> own;
    add_logs<A, 1>(sigma, at.width, at.mixture.sample_eps, own);
    total.diagonal_k += own.value() + log_2pi(1, at.width);
  }
}

void clear(int width, Totals& total) {
  total.samples = 0;
  total.regular = true;
  total.log_i = total.log_l = total.diagonal_q = total.diagonal_g = total.diagonal_k = 0;
  double* const planes[] = {total.mean_y, total.m2_y, total.weight, total.mean_c, total.m2_c};
  for (double* plane : planes) std::memset(plane, 0, width * sizeof(double));
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
    components<A, decltype(type)>(at, rows, merge, work.components, total);
  });
  if (in.exclude_diagonal) diagonal(at, cut.part(at.mixture.samples, split), total);
}

template <class A>
bool accumulate_items(const MomentsForward& call, int64_t begin, int64_t end) {
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
      if (!total.regular) return false;
      if (cut.splits > 1) continue;
      const Running<A>&y = work.samples, &c = work.components;
      const Planes<A> planes{y.mean, y.m2, c.weight, c.mean, c.m2};
      if (!(merge ? finish_totals<A>(call, at, d, tile, total)
                  : finish_tile<A>(call, at, d, tile, planes, total))) {
        return false;
      }
    }
  }
  return true;
}

bool accumulate(const MomentsForward& call, int64_t begin, int64_t end) {
  return call.in.wide ? accumulate_items<double>(call, begin, end)
                      : accumulate_items<float>(call, begin, end);
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
