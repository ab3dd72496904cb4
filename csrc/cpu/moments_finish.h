// From moments of rows to the state and the sums of a tile: parts merge, both roles meet.
//
// All deviations are from one shift per position and feature, y or x + mu of the first contributing
// row, so that parts merge by plain weighted means (Chan, Golub & LeVeque 1979).
#pragma once

#include "moments_rows.h"

namespace fused_mi::FUSED_MI_PATH {
namespace {

// Moments of both roles, wherever they are.
template <class P>
struct Planes {
  const P *mean_y, *m2_y, *weight, *mean_c, *m2_c;
  const P *diagonal_q, *heaviest, *excess, *low, *high;  // without the diagonal, see Totals
};

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

// Of the pairs (i, i), see Totals.
template <class Parts>
void merge_own(
    const Parts* q, const Parts* heaviest, const Parts* excess, int width, Totals& total) {
  for (int f = 0; f < width; ++f) {
    double most = heaviest[f], more = excess[f];
    total.diagonal_q[f] += q[f];
    total.heaviest[f] = most > total.heaviest[f] ? most : total.heaviest[f];
    total.excess[f] = more > total.excess[f] ? more : total.excess[f];
  }
}

template <class Parts>
void merge_extremes(const Parts* low, const Parts* high, int width, Totals& total) {
  for (int f = 0; f < width; ++f) {
    double least = low[f], largest = high[f];
    total.low[f] = least < total.low[f] ? least : total.low[f];
    total.high[f] = largest > total.high[f] ? largest : total.high[f];
  }
}

constexpr int kSums = 16;  // in parallel

template <class P>
double sum_of(const P* values, int count) {
  double partial[kSums] = {}, sum = 0;
  int f = 0;
  for (; f + kSums <= count; f += kSums) {
    for (int i = 0; i < kSums; ++i) partial[i] += values[f + i];
  }
  for (; f < count; ++f) sum += values[f];
  for (double part : partial) sum += part;
  return sum;
}

// State, of the type A, and sums of one tile; false where digits are lost: to a shift that is far from everything that
// weighs, or to the diagonal.
template <class A, class P>
bool finish_tile(
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
    return true;
  }
  alignas(64) A x_buffer[kWidth], mu_buffer[kWidth], y_buffer[kWidth];
  const A* y_shift = read(in.y, p.first_sample, at.s, at.e, at.width, y_buffer);
  const A* x_shift = read(in.x, p.first_component, at.s, at.e, at.width, x_buffer);
  const A* mu_shift = read(in.mu, p.first_component, at.s, at.e, at.width, mu_buffer);
  double n = static_cast<double>(p.samples), partial[kSums] = {}, lost[kSums] = {};
  // A sample is about sqrt v away from its component: the weights times that are their number.
  const double farthest = in.farthest_shift(sizeof(A) == 8), weigh = static_cast<double>(p.components);
  for (int f = 0; f < at.width; f += kSums) {
    int count = at.width - f < kSums ? at.width - f : kSums;
    auto add = [&](int i) __attribute__((always_inline)) {
      double mean_y = m.mean_y[f + i], m2_y = m.m2_y[f + i], weight = m.weight[f + i];
      // In the state the mean of the components is relative to x alone.
      double mean_c = static_cast<double>(mu_shift[f + i]) + m.mean_c[f + i], m2_c = m.m2_c[f + i];
      double shifts = static_cast<double>(y_shift[f + i]) - static_cast<double>(x_shift[f + i]);
      double distance = shifts + (mean_y - mean_c);
      partial[i] += m2_y * weight + (n * weight * distance) * distance + n * m2_c;
      double centre = static_cast<double>(x_shift[f + i]) + mean_c;
      double size = (weight * centre) * centre + m2_c + weigh;
      lost[i] += (weight * mean_c) * mean_c > farthest * size ? 1.0 : 0.0;
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
  double q = 0, columns_lost = 0;
  for (double sum : partial) q += sum;
  for (double count : lost) columns_lost += count;
  if (columns_lost > 0) return false;
  double m_count = static_cast<double>(p.components);
  const double diagonal = in.exclude_diagonal ? sum_of(m.diagonal_q, at.width) : 0;
  sums[0] = (q - diagonal) / 2;
  sums[1] = (n * total.log_l - total.diagonal_g) / 2;
  if (in.own_stds) sums[2] = (m_count * total.log_i - total.diagonal_k) / 2;
  return diagonal == 0 || q - diagonal > in.least_share(sizeof(A) == 8) * diagonal;
}

}  // namespace
}  // namespace fused_mi::FUSED_MI_PATH
