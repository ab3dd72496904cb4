// From moments of rows to what other ranks are told of them: every role for itself.
//
// The state has six planes (count, 6, S, E): mean, rest and m2 of the samples, mean, rest and weight of
// the components. A mean is the nearest number of the planes' type, and what is left of it.
#pragma once

#include "moments_finish.h"

namespace fused_mi::FUSED_MI_PATH {
namespace {

constexpr int kPlanes = 6;

// A mean, in two parts: `shift + delta`.
template <class Out>
FUSED_MI_INLINE void split(double shift, double delta, Out* mean, Out* rest) {
  *mean = static_cast<Out>(shift + delta);
  *rest = static_cast<Out>((shift - static_cast<double>(*mean)) + delta);
}

template <class Out, class P>
bool write_part(
    const MomentsForward& call, const Place& at, int64_t d, const Planes<P>& m, double* squares) {
  const MomentsInputs& in = call.in;
  const Position& p = at.position;
  const int64_t plane = in.S * in.E;
  Out* to = reinterpret_cast<Out*>(call.state) + (d * kPlanes * in.S + at.s) * in.E + at.e;
  for (int i = 0; i < kPlanes; ++i) std::memset(to + i * plane, 0, at.width * sizeof(Out));
  alignas(64) double shifts[3][kWidth];
  if (p.samples > 0) {
    const double* y = read(in.y, p.first_sample, at.s, at.e, at.width, shifts[0]);
    for (int f = 0; f < at.width; ++f) {
      split(y[f], static_cast<double>(m.mean_y[f]), to + f, to + plane + f);
      to[2 * plane + f] = static_cast<Out>(m.m2_y[f]);
    }
  }
  double lost = 0;
  *squares = 0;
  if (p.components > 0) {
    const double* x = read(in.x, p.first_component, at.s, at.e, at.width, shifts[1]);
    const double* mu = read(in.mu, p.first_component, at.s, at.e, at.width, shifts[2]);
    const double farthest = in.farthest_shift(in.wide);
    for (int f = 0; f < at.width; ++f) {
      const double mean = mu[f] + static_cast<double>(m.mean_c[f]), weight = m.weight[f];
      const double centre = x[f] + mean, m2 = m.m2_c[f];
      const double size = (weight * centre) * centre + m2 + static_cast<double>(p.components);
      lost += (weight * mean) * mean > farthest * size ? 1.0 : 0.0;
      split(x[f], mean, to + 3 * plane + f, to + 4 * plane + f);
      // NaN says that float32 has no room: see LEAST_WEIGHT of the Python side.
      const bool light = sizeof(Out) == 4 && weight < 0x1p-100;
      to[5 * plane + f] = light ? NAN : static_cast<Out>(weight);
    }
    *squares = sum_of(m.m2_c, at.width);
  }
  return lost == 0;
}

// State and sums of one tile; false where digits are lost to a shift that is far from everything that weighs.
template <class P>
bool finish_part(
    const MomentsForward& call, const Place& at, int64_t d, int64_t tile, const Planes<P>& m,
    const Totals& total) {
  const MomentsInputs& in = call.in;
  double squares = 0;
  const bool kept = call.wide_planes ? write_part<double>(call, at, d, m, &squares)
                                     : write_part<float>(call, at, d, m, &squares);
  double* sums = call.partial_sums + (d * call.cut.tiles() + tile) * 3;
  const double samples = static_cast<double>(in.met_by_components(d, at.s));
  const double components = static_cast<double>(in.met_by_samples(d, at.s));
  sums[0] = samples * squares / 2;
  sums[1] = samples * total.log_l / 2;
  sums[2] = in.own_stds ? components * total.log_i / 2 : 0;
  return kept;
}

}  // namespace
}  // namespace fused_mi::FUSED_MI_PATH
