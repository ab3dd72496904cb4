// Gradients of a Jensen loss: elementwise, given the moments of the other role.
#pragma once

#include "jensen.h"
#include "moments.h"

namespace fused_mi {

// Rows that are read once for both of their roles, see _passes.py.
struct Pass {
  int start = 0, rows = 0;
  int as_samples = -1, as_components = -1;  // the mixture, or -1
  bool writes[4] = {};                      // of y, x, mu, stds
  int64_t blocks = 0;
  int rows_per_block = 0;
};

struct Gradient {
  Jensen of;
  Numbers of_total, of_terms;  // (), (6,): gradients of the loss and of its terms, if any
  View d_y, d_x, d_mu, d_stds;  // (rows, S, E) contiguous, written
  Pass pass[2];
  int64_t tiles = 0, looks = 0;
  int columns = 0;  // threads side by side along the features, a power of two
};

// Gradients of the sums of q, g and k.
struct Upstream {
  double q, g, k;

  GPU_DEVICE explicit Upstream(const Gradient& in) {
    double total = in.of_total.data ? in.of_total.get(0) : 0, entropy = 0, std_log = 0;
    q = g = 0;
    if (in.of_terms.data) {
      total += in.of_terms.get(0);
      q = in.of_terms.get(1), g = in.of_terms.get(2);
      entropy = in.of_terms.get(4), std_log = in.of_terms.get(5);
    }
    q = (total + entropy + q) / in.of.divisor;
    g = (total + entropy + g) / in.of.divisor;
    k = -(total + std_log) / in.of.divisor;
  }
};

// What a row needs of the other role, for the columns of a thread.
template <class F>
struct OfComponents {  // the samples need
  using T = typename F::Number;
  T shift[F::V] = {}, rest[F::V] = {}, delta[F::V] = {}, weight[F::V] = {};

  OfComponents() = default;
  GPU_DEVICE OfComponents(const Jensen& in, int d, const Counts& counts, int64_t s, int64_t e) {
    const int64_t row = in.mixture[d].component_start + counts.first_l, plane = in.S * in.E;
    const auto x = F::load(in.x, in.x.at(row, s, e)), mu = F::load(in.mu, in.mu.at(row, s, e));
    const int64_t at = (4 * d * in.S + s) * in.E + e;
    GPU_UNROLL
    for (int j = 0; j < F::V; ++j) {
      shift[j] = two_sum(F::get(x, j), F::get(mu, j), rest[j]);
      delta[j] = static_cast<T>(in.state.get(at + 2 * plane + j));
      weight[j] = gpu::size(static_cast<T>(in.state.get(at + 3 * plane + j)));
    }
  }
};

template <class F>
struct OfSamples {  // the components need
  using T = typename F::Number;
  T x[F::V] = {}, mu[F::V] = {}, from[F::V] = {}, m2[F::V] = {};

  OfSamples() = default;
  GPU_DEVICE OfSamples(const Jensen& in, int d, const Counts& counts, int64_t s, int64_t e) {
    const int64_t row = in.mixture[d].component_start + counts.first_l, plane = in.S * in.E;
    const auto raw_x = F::load(in.x, in.x.at(row, s, e));
    const auto raw_mu = F::load(in.mu, in.mu.at(row, s, e));
    const auto raw_y = F::load(in.y, in.y.at(in.mixture[d].sample_start + counts.first_i, s, e));
    const int64_t at = (4 * d * in.S + s) * in.E + e;
    GPU_UNROLL
    for (int j = 0; j < F::V; ++j) {
      x[j] = F::get(raw_x, j), mu[j] = F::get(raw_mu, j);
      T rest;
      const T shift = two_sum(x[j], mu[j], rest);
      from[j] = rest - static_cast<T>(in.state.get(at + j));
      if (!in.alone) from[j] += shift - F::get(raw_y, j);
      m2[j] = static_cast<T>(in.state.get(at + plane + j));
    }
  }
};

constexpr int kGradient = 128;  // threads

template <class F>
GPU_DEVICE void store_row(const View& to, bool writes, int64_t at, const typename F::Number (&values)[F::V]) {
  if (writes) F::store(to, at, values);
}

template <class F>
GPU_KERNEL(kGradient, 4)
gradient_kernel(const Gradient all) {
  using T = typename F::Number;
  constexpr int V = F::V;
  const Jensen& in = all.of;
  const bool second = blockIdx.x >= all.pass[0].blocks;
  const Pass& pass = all.pass[second];
  const int64_t block = blockIdx.x - (second ? all.pass[0].blocks : 0);
  const int64_t tile = block % all.tiles, s = block / all.tiles % in.S;
  const int begin = static_cast<int>(block / all.tiles / in.S) * pass.rows_per_block;
  const int end = begin + pass.rows_per_block < pass.rows ? begin + pass.rows_per_block : pass.rows;
  const int64_t e = (tile * all.columns + threadIdx.x % all.columns) * V;
  if (e >= in.E) return;
  const int d_i = pass.as_samples, d_l = pass.as_components;
  const Counts of_i(in, d_i < 0 ? 0 : d_i, s), of_l(in, d_l < 0 ? 0 : d_l, s);
  const bool samples = d_i >= 0 && of_i.n > 0 && of_i.m > 0;
  const bool components = d_l >= 0 && of_l.n > 0 && of_l.m > 0;
  const Upstream upstream(all);
  const T up_q = static_cast<T>(upstream.q), up_g = static_cast<T>(upstream.g);
  const T up_k = static_cast<T>(upstream.k);
  OfComponents<F> theirs = samples ? OfComponents<F>(in, d_i, of_i, s, e) : OfComponents<F>{};
  OfSamples<F> them = components ? OfSamples<F>(in, d_l, of_l, s, e) : OfSamples<F>{};
  const bool own_stds = samples && in.mixture[d_i].sample_role >= 0 && pass.writes[3];
  const T eps_l = components ? static_cast<T>(in.header.get(d_l)) : T(0);
  const T eps_i = own_stds ? static_cast<T>(in.header.get(in.mixtures + d_i)) : T(0);

  for (int index = begin + threadIdx.x / all.columns; index < end; index += kGradient / all.columns) {
    const int64_t row = pass.start + index;
    const bool i = samples && in.masks[0].at(row, s) && of_i.sample(in, index);
    const bool l = components && in.masks[1].at(row, s) && of_l.component(in, index);
    T d_y[V] = {}, d_c[V] = {}, d_stds[V] = {};
    typename F::Raw y{}, x{}, mu{}, stds{};
    if (i) y = F::load(in.y, in.y.at(row, s, e));
    if (l) x = F::load(in.x, in.x.at(row, s, e)), mu = F::load(in.mu, in.mu.at(row, s, e));
    if (l || (i && own_stds)) stds = F::load(in.stds, in.stds.at(row, s, e));
    const T others_i = static_cast<T>(of_i.m - (in.alone && l));  // whom a row meets as a sample
    const T others_l = static_cast<T>(of_l.n - (in.alone && i));
    GPU_UNROLL
    for (int j = 0; j < V; ++j) {
      const T sigma = F::get(stds, j), square = sigma * sigma;
      const T precision = l ? gpu::reciprocal(square + eps_l) : T(0);
      const T from_shift = F::get(y, j) - theirs.shift[j];
      const T centre = (F::get(x, j) - them.x[j]) + (F::get(mu, j) - them.mu[j]);
      const T own = in.alone && i && l ? from_shift - (centre + theirs.rest[j]) : T(0);
      if (i) {
        const T pull = gpu::fma(-own, precision, (from_shift - theirs.delta[j]) * theirs.weight[j]);
        d_y[j] = weighted(up_q, pull);
        if (own_stds) d_stds[j] = sigma * gpu::reciprocal(square + eps_i) * (up_k * others_i);
      }
      if (l) {
        const T count = static_cast<T>(of_l.n), from_mean = centre + them.from[j];
        const T over = from_mean * precision;
        d_c[j] = weighted(up_q, gpu::fma(own, precision, count * over));
        const T squares = gpu::fma(count * from_mean, over, them.m2[j] * precision) - own * (own * precision);
        const T pull = sigma * precision * (up_g * others_l - weighted(up_q, squares));
        if (sigma != 0) d_stds[j] += pull;  // a sigma of 0 must not meet an overflow
      }
    }
    const int64_t at = (row * in.S + s) * in.E + e;
    store_row<F>(all.d_y, pass.writes[0], at, d_y);
    store_row<F>(all.d_x, pass.writes[1], at, d_c);
    store_row<F>(all.d_mu, pass.writes[2], at, d_c);
    store_row<F>(all.d_stds, pass.writes[3], at, d_stds);
  }
}

}  // namespace fused_mi
