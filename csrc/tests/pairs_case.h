// The kernels of the pairs against naive loops.
#pragma once

#include "../cpu/pairs_launch.h"
#include "arrays.h"

#include <array>

namespace {

// `inputs`: y, x, mu, stds, all times `scale`. The upstream gradients differ from pair to pair; some are 0.
void run_pairs(
    const MomentsInputs& in, const std::vector<Pass>& passes, std::array<Array, 4> inputs,
    const std::vector<uint8_t>& mask, double scale, Path path) {
  auto& [y, x, mu, stds] = inputs;
  const int64_t rows = y.rows, S = in.S, E = in.E;
  const int64_t N = in.mixtures[0].samples.count(), M = in.mixtures[0].components.count();
  std::vector<double> upstream(in.count * 3 * N * M);
  for (size_t i = 0; i < upstream.size(); ++i) upstream[i] = static_cast<double>(i % 7) - 2;

  // One thread, then several: the same bytes.
  std::vector<std::vector<char>> results[2];
  for (int threads : {1, 3, 8}) {
    std::vector<char> energies(upstream.size() * 8);
    bool done =
        launch_pairs(in, reinterpret_cast<double*>(energies.data()), path, Threads{threads});
    Array d_y(rows, S, E, y.type, false), d_x = d_y, d_mu = d_y, d_stds = d_y;
    PairsBackward call;
    call.in = in;
    call.upstream = upstream.data();
    call.passes = passes.data();
    call.pass_count = static_cast<int64_t>(passes.size());
    call.d_y = d_y.view(), call.d_x = d_x.view();
    call.d_mu = d_mu.view(), call.d_stds = d_stds.view();
    done = launch_pairs_gradients(call, path, Threads{threads}) && done;
    check("pairs: done", done, true, 0, 0);
    auto& result = results[threads > 1];
    result = {energies, d_y.data, d_x.data, d_mu.data, d_stds.data};
    if (threads > 1 && result != results[0]) {
      std::printf("pairs: other bytes with %d threads\n", threads);
      ++failures;
    }
  }

  const double* energies = reinterpret_cast<const double*>(results[0][0].data());
  const double tolerance = in.wide ? 1e-12 : 4e-6;
  std::vector<int64_t> active(S);  // with the diagonal left out, a row that is alone has no part
  for (int64_t i = 0; i < rows * S; ++i) active[i % S] += mask[i];
  Array gradients[4] = {
      {rows, S, E, Type::float64, false}, {rows, S, E, Type::float64, false},
      {rows, S, E, Type::float64, false}, {rows, S, E, Type::float64, false}};
  for (Array& g : gradients) std::memset(g.data.data(), 0, g.data.size());
  auto add = [](Array& g, int64_t r, int64_t s, int64_t e, double value) {
    g.set(r, s, e, g.get(r, s, e) + value);
  };
  for (int64_t pair = 0; pair < in.count * N * M; ++pair) {
    const Mixture& m = in.mixtures[pair / (N * M)];
    const int64_t i = m.samples.start + pair / M % N, l = m.components.start + pair % M;
    const int64_t at = pair / (N * M) * 3 * N * M + pair % (N * M);
    const double u[3] = {upstream[at], upstream[at + N * M], upstream[at + 2 * N * M]};
    double q = 0, g = 0, k = 0;
    for (int64_t s = 0; s < S; ++s) {
      if (!mask[i * S + s] || !mask[l * S + s] || (in.exclude_diagonal && active[s] < 2)) continue;
      for (int64_t e = 0; e < E; ++e) {
        double sigma_l = stds.get(l, s, e), sigma_i = stds.get(i, s, e);
        double v = sigma_l * sigma_l + m.component_eps, own = sigma_i * sigma_i + m.sample_eps;
        double distance = y.get(i, s, e) - x.get(l, s, e) - mu.get(l, s, e);
        q += distance * distance / v / 2;
        g += (std::log(v) + std::log(2 * M_PI)) / 2;
        k += (std::log(own) + std::log(2 * M_PI)) / 2;
        add(gradients[0], i, s, e, u[0] * distance / v);
        add(gradients[1], l, s, e, -u[0] * distance / v);
        add(gradients[2], l, s, e, -u[0] * distance / v);
        add(gradients[3], l, s, e, sigma_l / v * (u[1] - u[0] * distance * distance / v));
        add(gradients[3], i, s, e, u[2] * sigma_i / own);
      }
    }
    check("pairs: q", energies[at], q, q, tolerance);
    check("pairs: g", energies[at + N * M], g, std::fabs(g), tolerance);
    check("pairs: k", energies[at + 2 * N * M], k, std::fabs(k), tolerance);
  }

  const double precision = precision_of(y.type, in.wide);
  for (int which = 0; which < 4; ++which) {
    Array ours(rows, S, E, y.type, false);
    ours.data = results[0][1 + which];
    double largest = 0;
    for (int64_t i = 0; i < rows * S * E; ++i) {
      double value = std::fabs(gradients[which].get(i / (S * E), i / E % S, i % E));
      largest = value > largest ? value : largest;
    }
    for (int64_t i = 0; i < rows * S * E; ++i) {
      const int64_t b = i / (S * E), s = i / E % S, e = i % E;
      const double expected = gradients[which].get(b, s, e);
      const double found = ours.get(b, s, e);
      check("pairs: gradient", scale * found, scale * expected, scale * largest, precision);
      if (!mask[b * S + s] && found != 0) check("pairs: zero", 1, 0, 0, 0);
    }
  }
}

}  // namespace
