// The pairs where something is out of range.
#pragma once

#include "pairs.h"

namespace fused_mi {

// Careful passes take roots and divisions in float64, and write results anew; where nothing was out of
// range they return at once: few blocks, which otherwise do the work of all.
GPU_KERNEL(kRows, 4)
careful_energies_kernel(const Pairs in) {
  if (*in.irregular == 0) return;
  const int64_t all = static_cast<int64_t>(in.N) * in.M;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kRows) + threadIdx.x; i < all;
       i += gridDim.x * static_cast<int64_t>(kRows)) {
    in.q[i] = careful_energy(in, i / in.M, i % in.M);
  }
}

GPU_DEVICE void write(const Pairs& in, const View& to, int64_t row, int64_t s, int64_t e, double value) {
  if (to.data) set_element(to, row, s, e, in.add ? element(to, row, s, e) + value : value);
}

// upstream * z, where an upstream gradient of 0 does not meet what is infinite.
GPU_KERNEL(kRows, 4)
careful_samples_kernel(const Pairs in) {
  if (*in.irregular == 0) return;
  const double eps = in.eps.get(0);
  const int64_t all = static_cast<int64_t>(in.N) * in.S * in.E;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kRows) + threadIdx.x; i < all;
       i += gridDim.x * static_cast<int64_t>(kRows)) {
    const int64_t e = i % in.E, s = i / in.E % in.S, n = i / in.E / in.S, row = in.sample_start + n;
    double total = 0;
    for (int64_t m = 0; in.sample(n, s) && m < in.M; ++m) {
      if (!in.component(m, s)) continue;
      const int64_t row_m = in.component_start + m;
      double distance = element(in.y, row, s, e) - element(in.x, row_m, s, e);
      if (in.mu.data) distance -= element(in.mu, row_m, s, e);
      const double root = root_of(element(in.stds, row_m, s, e), eps);
      total += weighted(in.upstream.get(n * in.upstream_row + m), distance / root) / root;
    }
    write(in, in.d_y, row, s, e, total);
  }
}

GPU_KERNEL(kRows, 4)
careful_components_kernel(const Pairs in) {
  if (*in.irregular == 0) return;
  const double eps = in.components ? in.eps.get(0) : 0;
  const int64_t all = static_cast<int64_t>(in.M) * in.S * in.E;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kRows) + threadIdx.x; i < all;
       i += gridDim.x * static_cast<int64_t>(kRows)) {
    const int64_t e = i % in.E, s = i / in.E % in.S, m = i / in.E / in.S, row = in.component_start + m;
    double of_centre = 0, of_stds = 0;
    const bool own = in.own_active && in.own_active[m * in.S + s];
    const double sigma = element(in.stds, row, s, e);
    if (in.components && in.component(m, s)) {
      const double root = root_of(sigma, eps), x = element(in.x, row, s, e);
      const double mu = in.mu.data ? element(in.mu, row, s, e) : 0;
      double squares = 0;
      for (int64_t n = 0; n < in.N; ++n) {
        if (!in.sample(n, s)) continue;
        const double z = ((element(in.y, in.sample_start + n, s, e) - x) - mu) / root;
        const double term = weighted(in.upstream.get(n * in.upstream_row + m), z);
        of_centre += term;
        squares += weighted(term, z);
      }
      of_centre = -of_centre / root;
      const double logs = in.of_logs ? in.of_logs[m * in.S + s] : 0;
      of_stds = sigma / root * ((logs - squares) / root);
    }
    if (own) {
      const double root = root_of(sigma, in.own_eps.get(0));
      of_stds += sigma / root * (in.of_own[m * in.S + s] / root);
    }
    write(in, in.d_x, row, s, e, of_centre);
    write(in, in.d_mu, row, s, e, of_centre);
    write(in, in.d_stds, row, s, e, of_stds);
  }
}

}  // namespace fused_mi
