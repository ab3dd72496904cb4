// The energies of all pairs, their log-sum-exp, and the gradients of both.
#pragma once

#include "cases.h"

namespace cases {

template <class E>
void pairs(const char* name, int N, int M, int64_t S, int64_t F, Type type, double density, double tolerance) {
  Inputs<E> in(N + M, S, F, type, density);
  Pairs of;
  of.y = in.view(in.y), of.x = in.view(in.x), of.mu = in.view(in.mu), of.stds = in.view(in.stds);
  of.sample_active = in.samples.data(), of.component_active = in.components.data() + N * S;
  of.S = S, of.E = F, of.N = N, of.M = M, of.component_start = N, of.wide = type == Type::float64;
  std::vector<double> eps = {kEps}, shift(S * F), q(N * M), logs(M * S);
  std::vector<int> irregular = {0};
  of.eps = {eps.data(), true};
  of.shift = shift.data(), of.irregular = irregular.data(), of.q = q.data();
  plan_pairs(of, kMultiprocessors);
  std::vector<double> parts(static_cast<size_t>(of.splits) * N * M);
  of.parts = parts.data();
  LogDeterminants of_logs{of.stds, of.component_active, of.eps, logs.data(), nullptr, irregular.data(), S, F, N, M};
  ask(launch_log_determinants(of_logs, of.wide, nullptr));
  for (auto* launch_one : {launch_shift, launch_distances, launch_add_splits, launch_careful_energies}) {
    ask(launch_one(of, nullptr));
  }

  std::mt19937 random(3);
  std::normal_distribution<double> normal;
  std::vector<double> upstream(N * M), of_log_determinants(M * S);
  for (double& u : upstream) u = static_cast<float>(normal(random));
  const std::vector<float> narrow(upstream.begin(), upstream.end());
  for (double& u : of_log_determinants) u = normal(random);
  const size_t size = (N + M) * S * F;
  std::vector<double> exact(N * M), exact_logs(M * S), d_y(size), d_c(size), d_stds(size);
  auto at = [&](int r, int64_t s, int64_t e) { return (r * S + s) * F + e; };
  for_pairs(in, 0, N, N, M, false, [&](int i, int l, int64_t s, int64_t e) {
    const double sigma = in.at(in.stds, N + l, s, e), v = sigma * sigma + kEps, u = upstream[i * M + l];
    const double distance = in.at(in.y, i, s, e) - in.at(in.x, N + l, s, e) - in.at(in.mu, N + l, s, e);
    exact[i * M + l] += distance * distance / v / 2;
    d_y[at(i, s, e)] += u * distance / v;
    d_c[at(N + l, s, e)] -= u * distance / v;
    d_stds[at(N + l, s, e)] -= u * sigma / v * distance * distance / v;
  });
  for (int l = 0; l < M; ++l) {
    for (int64_t s = 0; s < S; ++s) {
      for (int64_t e = 0; e < F && in.components[(N + l) * S + s]; ++e) {
        const double sigma = in.at(in.stds, N + l, s, e), v = sigma * sigma + kEps;
        exact_logs[l * S + s] += (std::log(v) + kLog2Pi) / 2;
        d_stds[at(N + l, s, e)] += of_log_determinants[l * S + s] * sigma / v;
      }
    }
  }
  const std::string of_name = name;
  compare(of_name + " q", q, exact, tolerance);
  compare(of_name + " logs", logs, exact_logs, tolerance);

  std::vector<E> gradients[4];
  View* views[] = {&of.d_y, &of.d_x, &of.d_mu, &of.d_stds};
  for (int k = 0; k < 4; ++k) {
    gradients[k].resize(size);
    *views[k] = in.view(gradients[k]);
  }
  of.upstream = {of.wide ? static_cast<void*>(upstream.data()) : const_cast<float*>(narrow.data()), of.wide};
  of.upstream_row = M, of.of_logs = of_log_determinants.data();
  for (auto* launch_one : {launch_samples_gradient, launch_careful_samples, launch_components_gradient,
                           launch_careful_components}) {
    ask(launch_one(of, nullptr));
  }
  const double rounding = type == Type::bfloat16 ? 1e-2 : 0;
  const std::vector<double>* wanted[] = {&d_y, &d_c, &d_c, &d_stds};
  for (int k = 0; k < 4; ++k) {
    std::vector<double> found;
    for (E a : gradients[k]) found.push_back(value(a));
    compare(of_name + " gradient " + std::to_string(k), found, *wanted[k], tolerance + rounding);
  }
  if (irregular[0]) {
    std::printf("WRONG %s: said to be irregular\n", name);
    failed = true;
  }
}

// Energies of any numbers: samples of two mixtures, each without its own component.
inline void logsumexp(int N, int M) {
  std::mt19937 random(5);
  std::normal_distribution<double> normal;
  Logsumexp of;
  of.D = 2, of.N = N, of.M = M, of.left_out = true;
  const size_t size = static_cast<size_t>(N) * M;
  std::vector<double> energies(6 * size), rows(10 * N), upstream(10), gradient(6 * size), exact(10 * N);
  std::vector<double> wanted(6 * size);
  for (double& a : energies) a = 3 * normal(random);
  for (double& a : upstream) a = normal(random);
  of.energies = energies.data(), of.rows = rows.data(), of.upstream = upstream.data();
  of.gradient = {gradient.data(), true};
  ask(launch_logsumexp(of, nullptr));
  ask(launch_logsumexp_gradient(of, nullptr));
  for (int d = 0; d < 2; ++d) {
    const double* u = &upstream[5 * d];
    for (int i = 0; i < N; ++i) {
      auto energy = [&](int k, int m) { return energies[(d * 3 + k) * size + i * M + m]; };
      double sum = 0, means[3] = {};
      for (int m = 0; m < M; ++m) {
        if (m != i) sum += std::exp(energy(2, m) - energy(0, m) - energy(1, m));
      }
      auto r = [&](int m) { return std::exp(energy(2, m) - energy(0, m) - energy(1, m)) / sum; };
      for (int m = 0; m < M; ++m) {
        for (int k = 0; k < 3 && m != i; ++k) means[k] += r(m) * energy(k, m);
      }
      exact[d * 5 * N + i] = std::log(sum);
      for (int k = 0; k < 3; ++k) exact[(d * 5 + 1 + k) * N + i] = means[k];
      for (int m = 0; m < M; ++m) {
        if (m == i) continue;
        const double slopes = (u[1] - u[3]) * (energy(0, m) - means[0]) +
            (u[2] - u[3]) * (energy(1, m) - means[1]) + (u[3] - u[4]) * (energy(2, m) - means[2]) - u[0];
        const double of_energy[] = {u[1] - slopes, u[2] - slopes, slopes - u[4]};
        for (int k = 0; k < 3; ++k) wanted[(d * 3 + k) * size + i * M + m] = r(m) * of_energy[k];
      }
    }
  }
  compare("logsumexp rows", rows, exact, 1e-12);
  compare("logsumexp gradient", gradient, wanted, 1e-12);
}

}  // namespace cases
