// Forward: items of work, and columns that float32 has no digits for.
#include <algorithm>

#include "moments_sums.h"
#include "parts_finish.h"

namespace fused_mi::FUSED_MI_PATH {
namespace {

Totals& part_of(const MomentsForward& call, int64_t d, int64_t tile, int64_t split) {
  return call.totals[(d * call.cut.tiles() + tile) * call.cut.splits + split];
}

Place place(const MomentsForward& call, int64_t d, int64_t tile) {
  const Cut& cut = call.cut;
  int64_t s = tile / cut.blocks, e = tile % cut.blocks * cut.width;
  return {
      call.in, call.in.mixtures[d], call.positions[d * cut.positions + s], s, e, cut.width_at(e)};
}

// The columns from `f` on, `width` of them, anew in float64.
void sum_again(const Place& at, int f, int width, Totals& total) {
  const Place columns{at.in, at.mixture, at.position, at.s, at.e + f, width};
  Work<double> work;
  Totals exact;
  accumulate_rows<double>(columns, at.mixture.samples, at.mixture.components, true, work, exact);
  double* const to[] = {total.mean_y, total.m2_y, total.weight, total.mean_c, total.m2_c,
                        total.diagonal_q};
  const double* const from[] = {exact.mean_y, exact.m2_y, exact.weight, exact.mean_c, exact.m2_c,
                                exact.diagonal_q};
  for (int i = 0; i < 6; ++i) std::memcpy(to[i] + f, from[i], width * sizeof(double));
}

// Runs of columns that are summed anew.
struct Lost {
  int count = 0;
  int begin[kWidth / kSums + 1], end[kWidth / kSums + 1];
};

// Without the diagonal, of moments summed in float32: the columns where a row that is left out is most
// of what it is taken from, or the shift is far away. False where float32 has no room for the moments.
template <class P>
bool find_lost(const Place& at, const Planes<P>& m, Lost& again) {
  const MomentsInputs& in = at.in;
  const double n = static_cast<double>(at.position.samples);
  const double weigh = static_cast<double>(at.position.components);
  // `far`: of a shift from the mean, in deviations of the rows; squared. Float32 rounds means by it.
  constexpr double most = 0.75, outlying = 0.85, far = 64, largest = 0x1.fffffep127;
  const double farthest = in.farthest_shift(false);
  alignas(64) float x_buffer[kWidth], mu_buffer[kWidth], y_buffer[kWidth];
  const float* y_shift = read(in.y, at.position.first_sample, at.s, at.e, at.width, y_buffer);
  const float* x_shift = read(in.x, at.position.first_component, at.s, at.e, at.width, x_buffer);
  const float* mu_shift =
      read(in.mu, at.position.first_component, at.s, at.e, at.width, mu_buffer);
  double beyond[kSums] = {};
  for (int f = 0; f < at.width; f += kSums) {
    const int count = at.width - f < kSums ? at.width - f : kSums;
    double lost[kSums] = {};
    auto look = [&](int i) __attribute__((always_inline)) {
      const double mean_y = m.mean_y[f + i], m2_y = m.m2_y[f + i];
      const double weight = m.weight[f + i], m2_c = m.m2_c[f + i];
      const double from_shift = m.mean_c[f + i];
      const double mean_c = static_cast<double>(mu_shift[f + i]) + from_shift;
      const double distance = (static_cast<double>(y_shift[f + i]) - x_shift[f + i]) + (mean_y - mean_c);
      const double q = m2_y * weight + (n * weight * distance) * distance + n * m2_c;
      const double centre = x_shift[f + i] + mean_c;
      const double size = (weight * centre) * centre + m2_c + weigh;
      const double above = m.high[f + i] - mean_y, below = mean_y - m.low[f + i];
      const double outlier = above > below ? above : below;
      // None of these where one is NaN.
      const bool kept = ((weight * mean_c) * mean_c <= farthest * size) &
          ((weight * from_shift) * from_shift <= far * m2_c) &
          ((n * mean_y) * mean_y <= far * m2_y) &
          (m.heaviest[f + i] <= most * weight) &
          (m.excess[f + i] <= (0.95 - kMostOwn) * m2_c) &
          (outlier * outlier * n <= outlying * (n - 1) * m2_y) &
          (m.diagonal_q[f + i] <= most * q);
      const bool fits = (std::fabs(mean_y) <= largest) & (m2_y <= largest) & (weight <= largest) &
          (std::fabs(mean_c) <= largest);
      lost[i] = kept ? 0.0 : 1.0;
      beyond[i] += fits ? 0.0 : 1.0;
    };
    if (count == kSums) {
      for (int i = 0; i < kSums; ++i) look(i);
    } else {
      for (int i = 0; i < count; ++i) look(i);
    }
    if (sum_of(lost, kSums) == 0) continue;
    if (again.count == 0 || again.end[again.count - 1] < f) again.begin[again.count++] = f;
    again.end[again.count - 1] = f + count;
  }
  return sum_of(beyond, kSums) == 0;
}

Planes<double> planes_of(const Totals& t) {
  return {t.mean_y,     t.m2_y,     t.weight, t.mean_c, t.m2_c,
          t.diagonal_q, t.heaviest, t.excess, t.low,    t.high};
}

template <class A>
Planes<A> planes_of(const Work<A>& work) {
  const Running<A>&y = work.samples, &c = work.components;
  const Diagonal<A>& own = work.diagonal;
  return {y.mean, y.m2, c.weight, c.mean, c.m2, own.q, own.heaviest, own.excess, own.low, own.high};
}

void widen_planes(const Planes<float>& m, int width, Totals& t) {
  const float* const from[] = {m.mean_y, m.m2_y, m.weight, m.mean_c, m.m2_c, m.diagonal_q};
  double* const to[] = {t.mean_y, t.m2_y, t.weight, t.mean_c, t.m2_c, t.diagonal_q};
  for (int i = 0; i < 6; ++i) std::copy(from[i], from[i] + width, to[i]);
}

void widen_planes(const Planes<double>&, int, Totals&) {}  // they are there

// The moments `m` are those in `t` that merged in float64, or of the type A beside it.
template <class A, class P>
bool finish_moments(
    const MomentsForward& call, const Place& at, int64_t d, int64_t tile, const Planes<P>& m,
    Totals& t) {
  if (call.in.partners != nullptr) return finish_part(call, at, d, tile, m, t);
  const bool nothing = at.position.samples == 0 || at.position.components == 0;
  if (sizeof(A) == 8 || !call.in.exclude_diagonal) return finish_tile<A>(call, at, d, tile, m, t);
  if (nothing) return finish_tile<double>(call, at, d, tile, m, t);
  Lost again;
  if (!find_lost(at, m, again)) return false;
  if (again.count == 0) return finish_tile<double>(call, at, d, tile, m, t);
  widen_planes(m, at.width, t);
  for (int i = 0; i < again.count; ++i) {
    sum_again(at, again.begin[i], again.end[i] - again.begin[i], t);
  }
  return finish_tile<double>(call, at, d, tile, planes_of(t), t);
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
      const Rows rows[] = {cut.part(at.mixture.samples, split), cut.part(at.mixture.components, split)};
      accumulate_rows<A>(at, rows[0], rows[1], merge, work, total);
      if (!total.regular) return false;
      if (cut.splits > 1) continue;
      if (!(merge ? finish_moments<A>(call, at, d, tile, planes_of(total), total)
                  : finish_moments<A>(call, at, d, tile, planes_of(work), total))) {
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

bool finish(const MomentsForward& call, int64_t begin, int64_t end) {
  bool exact = true;
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
        total.diagonal_g += more.diagonal_g;
        total.diagonal_k += more.diagonal_k;
        if (!call.in.exclude_diagonal) continue;
        merge_own(more.diagonal_q, more.heaviest, more.excess, at.width, total);
        merge_extremes(more.low, more.high, at.width, total);
      }
      const Planes<double> planes = planes_of(total);
      exact &= call.in.wide ? finish_moments<double>(call, at, d, tile, planes, total)
                            : finish_moments<float>(call, at, d, tile, planes, total);
    }
  }
  return exact;
}

void count_active(
    const MomentsInputs& in, const Mixture& m, Position* here, int64_t begin, int64_t end) {
  for (int64_t row = m.samples.start; row < m.samples.stop; ++row) {
    for (int64_t s = begin; s < end; ++s) here[s].active_samples += in.sample_mask.at(row, s);
  }
  for (int64_t row = m.components.start; row < m.components.stop; ++row) {
    for (int64_t s = begin; s < end; ++s) here[s].active_components += in.component_mask.at(row, s);
  }
}

void positions(const MomentsInputs& in, Position* found, int64_t begin, int64_t end) {
  for (int64_t d = 0; d < in.count; ++d) {
    const Mixture& m = in.mixtures[d];
    Position* here = found + d * in.S;
    for (int64_t s = begin; s < end; ++s) here[s] = {0, 0, 0, 0, -1, -1};
    // Rows outside, positions inside: as the masks lie in memory.
    if (in.partners != nullptr) {
      for (int64_t s = begin; s < end; ++s) {
        here[s].active_samples = in.met_by_components(d, s);
        here[s].active_components = in.met_by_samples(d, s);
      }
    } else {
      count_active(in, m, here, begin, end);
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
