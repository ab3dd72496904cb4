// Gradients of the columns that moments cannot serve, anew, pair by pair in float64, where nothing but a
// ratio is squared; and where rows are left out, those of rows that are too large a part of what they are
// taken from.
#pragma once

#include "finish.h"
#include "gradient.h"

namespace fused_mi {

struct Pull {
  double y = 0, c = 0, stds = 0;
};

// Of a row as a sample.
GPU_DEVICE void pull_of_sample(
    const Jensen& in, const Upstream& up, int d, const Counts& counts, int i, int64_t row, int64_t s,
    int64_t e, Pull& to) {
  const Mixture& of = in.mixture[d];
  const double eps = in.header.get(d), y = element(in.y, row, s, e);
  // In units of the least root no term overflows, which two could with each sign.
  double least = gpu::infinity<double>();
  auto met = [&](int l) {
    return in.masks[1].at(of.component_start + l, s) && !(in.alone && l == i);
  };
  for (int l = 0; l < in.M; ++l) {
    if (met(l)) least = gpu::least(least, gpu::size(element(in.stds, of.component_start + l, s, e)));
  }
  const double unit = root_of(least < gpu::infinity<double>() ? least : 1, eps);
  double pull = 0;
  int number = 0;
  for (int l = 0; l < in.M; ++l) {
    if (!met(l)) continue;
    const int64_t at = of.component_start + l;
    const double ratio = unit / root_of(element(in.stds, at, s, e), eps);
    pull += ((y - element(in.x, at, s, e)) - element(in.mu, at, s, e)) * ratio * ratio;
    ++number;
  }
  if (number == 0 || !counts.sample(in, i)) return;
  to.y = weighted(up.q, pull / unit) / unit;
  if (of.sample_role < 0) return;
  const double sigma = element(in.stds, row, s, e);
  const double root = root_of(sigma, in.header.get(in.mixtures + d));
  to.stds += sigma / root * weighted(up.k, static_cast<double>(number)) / root;
}

// Of a row as a component.
GPU_DEVICE void pull_of_component(
    const Jensen& in, const Upstream& up, int d, int l, int64_t row, int64_t s, int64_t e, Pull& to) {
  const Mixture& of = in.mixture[d];
  const double x = element(in.x, row, s, e), mu = element(in.mu, row, s, e);
  const double sigma = element(in.stds, row, s, e), root = root_of(sigma, in.header.get(d));
  const double large = gpu::most(root, 1.0), small = gpu::least(root, 1.0);
  double distances = 0, squares = 0;  // squares: over v, and over `large`
  int number = 0;
  for (int i = 0; i < in.N; ++i) {
    if (!in.masks[0].at(of.sample_start + i, s) || (in.alone && i == l)) continue;
    const double distance = (element(in.y, of.sample_start + i, s, e) - x) - mu, z = distance / root;
    distances += distance;
    squares += z * (z / large);
    ++number;
  }
  if (number == 0) return;
  to.c = -weighted(up.q, distances / root) / root;
  const double pull = weighted(up.g, number / large) - weighted(up.q, squares);
  if (sigma != 0) to.stds += sigma / root * pull / small;
}

GPU_KERNEL(kFinish, 4)
gradient_of_pairs_kernel(const Gradient all) {
  Lost& list = gpu::shared<Lost>();
  const Jensen& in = all.of;
  const int64_t of_pass = in.S * all.looks;
  const Pass& pass = all.pass[blockIdx.x >= of_pass];
  const int64_t number = blockIdx.x % of_pass, first = number % all.looks * kLook, s = number / all.looks;
  const int d_i = pass.as_samples, d_l = pass.as_components;
  const int64_t plane = in.S * in.E;
  auto state = [&](int d, int p, int64_t e) { return in.state.get((4 * d + p) * plane + s * in.E + e); };
  auto is_lost = [&](int d, int64_t e) {
    const double mean = state(d, 0, e);
    return mean != mean || (in.alone && state(d, 3, e) < 0);
  };
  const int lost = list_lost(list, first, in.E, [&](int64_t e) {
    return (d_i >= 0 && is_lost(d_i, e)) || (d_l >= 0 && d_l != d_i && is_lost(d_l, e));
  });
  if (lost == 0) return;
  const Upstream upstream(all);
  const Counts of_i(in, d_i < 0 ? 0 : d_i, s), of_l(in, d_l < 0 ? 0 : d_l, s);
  for (int k = 0; k < lost; ++k) {
    const int64_t e = first + list.columns[k];
    for (int index = threadIdx.x; index < pass.rows; index += kFinish) {
      const int64_t row = pass.start + index;
      const bool i = d_i >= 0 && in.masks[0].at(row, s) && of_i.sample(in, index);
      const bool l = d_l >= 0 && in.masks[1].at(row, s) && of_l.component(in, index);
      const double weight = in.alone ? -state(0, 3, e) : 0;
      if (in.alone && weight == weight) {
        // Only where the row is most of what it is taken from: of a half, with room for rounding.
        const double sigma = l ? element(in.stds, row, s, e) : 0;
        bool most = l && weight * gpu::fma(sigma, sigma, in.header.get(0)) < 2.2;
        if (i) {
          const int64_t first_l = pass.start + of_i.first_l;
          const double own = element(in.y, row, s, e) -
              (element(in.x, first_l, s, e) + element(in.mu, first_l, s, e) + state(0, 0, e));
          most |= 2.2 * own * own * of_i.n > (of_i.n - 1.0) * state(0, 1, e);
        }
        if (!most) continue;
      }
      Pull pull;
      if (i) pull_of_sample(in, upstream, d_i, of_i, index, row, s, e, pull);
      if (l) pull_of_component(in, upstream, d_l, index, row, s, e, pull);
      if (pass.writes[0]) set_element(all.d_y, row, s, e, pull.y);
      if (pass.writes[1]) set_element(all.d_x, row, s, e, pull.c);
      if (pass.writes[2]) set_element(all.d_mu, row, s, e, pull.c);
      if (pass.writes[3]) set_element(all.d_stds, row, s, e, pull.stds);
    }
  }
}

}  // namespace fused_mi
