// Forward: one pass over the rows of each role, Welford's update by four rows at a time.
#pragma once

#include "moments_finish.h"

namespace fused_mi::FUSED_MI_PATH {
namespace {

constexpr int kSegment = 256;  // rows whose moments are summed in A before they merge in float64

// Both roles of an item.
template <class A>
struct Work {
  Running<A> samples, components;
  Diagonal<A> diagonal;
};

// The rows of a segment that contribute: `both` that meet themselves, where these pairs are left out,
// and then the others.
struct Chosen {
  int64_t rows[kSegment];
  int both = 0, count = 0;

  template <class Contributes, class Partner>
  FUSED_MI_INLINE Chosen(
      int64_t begin, int64_t end, bool exclude_diagonal, Contributes&& contributes,
      Partner&& partner) {
    int64_t others[kSegment];
    int more = 0;
    for (int64_t row = begin; row < end; ++row) {
      if (!contributes(row)) continue;
      const bool meets_itself = exclude_diagonal && partner(row);
      (meets_itself ? rows[both++] : others[more++]) = row;
    }
    std::memcpy(rows + both, others, more * sizeof(int64_t));
    count = both + more;
  }

  // body(i, R, BOTH): four rows at a time.
  template <class Body>
  FUSED_MI_INLINE void each(Body&& body) const {
    for (int i = 0; i < both; i += kRows) {
      with_rows(both - i, [&](auto n) { body(i, n, Int<1>{}); });
    }
    for (int i = both; i < count; i += kRows) {
      with_rows(count - i, [&](auto n) { body(i, n, Int<0>{}); });
    }
  }
};

template <class A, class... Plane>
FUSED_MI_INLINE void zero(int width, Plane*... planes) {
  (std::memset(planes, 0, width * sizeof(A)), ...);
}

double log_2pi(int64_t rows, int width) {
  return 1.8378770664093454836 * static_cast<double>(rows * width);
}

// After the components: of rows of both roles with one stabiliser the logs are known.
template <class A, class In>
void samples(const Place& at, Rows rows, bool merge, Work<A>& work, Totals& total) {
  const MomentsInputs& in = at.in;
  Running<A>& run = work.samples;
  Diagonal<A>& own = work.diagonal;
  Reader<In> y(in.y, at.s, at.e, at.width), sigma(in.stds, at.s, at.e, at.width);
  const A eps = static_cast<A>(at.mixture.sample_eps);
  const bool known = at.mixture.sample_eps == at.mixture.component_eps;
  alignas(64) A shift_buffer[kWidth];
  const A* shift = read(in.y, at.position.first_sample, at.s, at.e, at.width, shift_buffer);
  if (known) total.log_i = total.diagonal_k = total.diagonal_g;
  for (int64_t begin = rows.start; begin < rows.stop; begin += kSegment) {
    int64_t end = begin + kSegment < rows.stop ? begin + kSegment : rows.stop;
    const Chosen chosen(
        begin, end, in.exclude_diagonal,
        [&](int64_t row) { return sample_contributes(in, at.mixture, at.position, row, at.s); },
        [&](int64_t row) { return component_contributes(in, at.mixture, at.position, row, at.s); });
    const int count = chosen.count;
    if (count == 0) continue;
    zero<A>(at.width, run.mean, run.m2);
    if (in.exclude_diagonal) {
      zero<A>(at.width, own.low, own.high);
    }
    Logs<A> of_both, of_others;
    chosen.each([&](int i, auto n, auto both) {
      constexpr int R = n.value;
      constexpr bool BOTH = both.value;
      y.next(chosen.rows, i, R, count);
      add_samples<A, R, BOTH>(y, shift, at.width, i, run, own);
      if (!in.own_stds || (BOTH && known)) return;
      sigma.next(chosen.rows, i, R, count);
      add_logs<A, R>(sigma, at.width, eps, BOTH ? of_both : of_others);
    });
    total.regular &= of_both.range.regular() && of_others.range.regular();
    total.log_i += of_others.value() + log_2pi(count - chosen.both, at.width);
    if (!known) {
      const double logs = of_both.value() + log_2pi(chosen.both, at.width);
      total.log_i += logs;
      total.diagonal_k += logs;
    }
    merge ? merge_samples(run.mean, run.m2, count, at.width, total) : void(total.samples = count);
    if (merge && in.exclude_diagonal) merge_extremes(own.low, own.high, at.width, total);
  }
}

template <class A, class In>
void components(const Place& at, Rows rows, bool merge, Work<A>& work, Totals& total) {
  const MomentsInputs& in = at.in;
  Running<A>& run = work.components;
  Diagonal<A>& own = work.diagonal;
  Reader<In> x(in.x, at.s, at.e, at.width), mu(in.mu, at.s, at.e, at.width);
  Reader<In> sigma(in.stds, at.s, at.e, at.width), y(in.y, at.s, at.e, at.width);
  const A eps = static_cast<A>(at.mixture.component_eps);
  alignas(64) A shift_buffers[2][kWidth];
  const int64_t first = at.position.first_component;
  const A* x_shift = read(in.x, first, at.s, at.e, at.width, shift_buffers[0]);
  const A* mu_shift = read(in.mu, first, at.s, at.e, at.width, shift_buffers[1]);
  for (int64_t begin = rows.start; begin < rows.stop; begin += kSegment) {
    int64_t end = begin + kSegment < rows.stop ? begin + kSegment : rows.stop;
    const Chosen chosen(
        begin, end, in.exclude_diagonal,
        [&](int64_t row) { return component_contributes(in, at.mixture, at.position, row, at.s); },
        [&](int64_t row) { return sample_contributes(in, at.mixture, at.position, row, at.s); });
    const int count = chosen.count;
    if (count == 0) continue;
    zero<A>(at.width, run.weight, run.mean, run.m2);
    if (in.exclude_diagonal) {
      zero<A>(at.width, own.q, own.heaviest, own.excess);
    }
    Logs<A> of_both, of_others;
    chosen.each([&](int i, auto n, auto both) {
      constexpr int R = n.value;
      constexpr bool BOTH = both.value;
      if (BOTH) y.next(chosen.rows, i, R, count);
      x.next(chosen.rows, i, R, count);
      mu.next(chosen.rows, i, R, count);
      sigma.next(chosen.rows, i, R, count);
      Logs<A>& logs = BOTH ? of_both : of_others;
      add_components<A, R, BOTH>(
          y, x, mu, sigma, x_shift, mu_shift, at.width, eps, run, own, logs);
    });
    total.regular &= of_both.range.regular() && of_others.range.regular();
    const double diagonal = of_both.value() + log_2pi(chosen.both, at.width);
    total.diagonal_g += diagonal;
    total.log_l += diagonal + of_others.value() + log_2pi(count - chosen.both, at.width);
    if (merge) merge_components(run.weight, run.mean, run.m2, at.width, total);
    if (merge && in.exclude_diagonal) merge_own(own.q, own.heaviest, own.excess, at.width, total);
  }
}

void clear(int width, Totals& total) {
  total.samples = 0;
  total.regular = true;
  total.log_i = total.log_l = total.diagonal_g = total.diagonal_k = 0;
  double* const planes[] = {total.mean_y, total.m2_y,       total.weight,   total.mean_c,
                            total.m2_c,   total.diagonal_q, total.heaviest, total.excess,
                            total.low,    total.high};
  for (double* plane : planes) std::memset(plane, 0, width * sizeof(double));
}

// `merge`: the rows need several segments, which meet in `total`; else the moments stay in `work`.
template <class A>
void accumulate_rows(
    const Place& at, Rows of_samples, Rows of_components, bool merge, Work<A>& work,
    Totals& total) {
  clear(merge ? at.width : 0, total);
  const MomentsInputs& in = at.in;
  const bool no_samples = at.position.samples == 0, no_components = at.position.components == 0;
  if (in.partners == nullptr ? no_samples || no_components : no_samples && no_components) return;
  const View* inputs[] = {&in.x, &in.mu, &in.stds, &in.y};
  if (!no_components) {
    with_input<A>(inputs, in.exclude_diagonal ? 4 : 3, [&](auto type) {
      components<A, decltype(type)>(at, of_components, merge, work, total);
    });
  }
  if (no_samples) return;
  with_input<A>(inputs + 2, 2, [&](auto type) {
    samples<A, decltype(type)>(at, of_samples, merge, work, total);
  });
}

}  // namespace
}  // namespace fused_mi::FUSED_MI_PATH
