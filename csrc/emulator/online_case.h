// The log-sum-exp without energies in memory: forward, what pairs weigh, and what is added up of that.
#pragma once

#include "cases.h"

#include "../cuda/online_launch.h"
#include "../cuda/scoring_launch.h"

namespace cases {

struct Pair {
  double q = 0, g = 0, k = 0;
};

// Of the energies of all pairs, each sample without the component of its number: numbers of the samples, and
// gradients of q, g and k.
inline void exact_online(
    int N, int M, const std::vector<Pair>& pairs, const std::vector<double>& u, std::vector<double>& rows,
    std::vector<double> (&weights)[3]) {
  rows.assign(5 * N, 0);
  for (auto& w : weights) w.assign(static_cast<size_t>(N) * M, 0);
  for (int i = 0; i < N; ++i) {
    const Pair* of = &pairs[static_cast<size_t>(i) * M];
    double most = -HUGE_VAL, sum = 0, mean[3] = {};
    auto density = [&](int m) { return of[m].k - of[m].q - of[m].g; };
    for (int m = 0; m < M; ++m) most = m == i ? most : std::max(most, density(m));
    for (int m = 0; m < M; ++m) sum += m == i ? 0 : std::exp(density(m) - most);
    auto r = [&](int m) { return m == i ? 0 : std::exp(density(m) - most) / sum; };
    for (int m = 0; m < M; ++m) {
      mean[0] += r(m) * of[m].q, mean[1] += r(m) * of[m].g, mean[2] += r(m) * of[m].k;
    }
    rows[i] = most + std::log(sum);
    for (int k = 0; k < 3; ++k) rows[(1 + k) * N + i] = mean[k];
    for (int m = 0; m < M; ++m) {
      const double slopes = (u[1] - u[3]) * (of[m].q - mean[0]) + (u[2] - u[3]) * (of[m].g - mean[1]) +
          (u[3] - u[4]) * (of[m].k - mean[2]) - u[0];
      const double found[] = {u[1] - slopes, u[2] - slopes, slopes - u[4]};
      for (int k = 0; k < 3; ++k) weights[k][static_cast<size_t>(i) * M + m] = r(m) * found[k];
    }
  }
}

template <class E>
void online(const char* name, int N, int M, int64_t S, int64_t F, Type type, double density, double tolerance) {
  Inputs<E> in(N + M, S, F, type, density);
  const std::string of_name = name;
  const uint8_t* component_active = in.components.data() + N * S;
  std::vector<Two<float>> logs((N + M) * S);
  std::vector<float> shift(S * F);
  std::vector<double> eps = {kEps}, rows(5 * N);
  std::vector<int> irregular = {0};
  Online of;
  Pairs& pairs = of.pairs;
  pairs.y = in.view(in.y), pairs.x = in.view(in.x), pairs.mu = in.view(in.mu), pairs.stds = in.view(in.stds);
  pairs.sample_active = in.samples.data(), pairs.component_active = component_active;
  pairs.S = S, pairs.E = F, pairs.N = N, pairs.M = M, pairs.component_start = N;
  pairs.eps = {eps.data(), true};
  pairs.shift = shift.data(), pairs.irregular = irregular.data();
  pairs.chunks = static_cast<int>(S * ((F + kChunk - 1) / kChunk));
  of.of_samples = logs.data(), of.of_components = logs.data() + N * S;
  of.left_out = true, of.rows = rows.data(), of.samples = N, of.partners = M - 1;
  LogDeterminants log_of_samples{pairs.stds, pairs.sample_active, pairs.eps, nullptr, logs.data(), irregular.data(), S, F, 0, N};
  LogDeterminants log_of_components{pairs.stds, component_active, pairs.eps, nullptr, logs.data() + N * S, irregular.data(), S, F, N, M};
  ask(launch_log_determinants(log_of_samples, false, nullptr));
  ask(launch_log_determinants(log_of_components, false, nullptr));
  ask(launch_shift(pairs, nullptr));
  const OnlinePlan plan = plan_online(of), again = plan_weigh(of);
  std::vector<double> sums(std::max(plan.sums, again.sums) / 8 + 1), parts(plan.parts / 8);
  of.sums = sums.data(), of.parts = parts.data();
  for (auto* launch_one : {launch_online, launch_careful_online, launch_online_finish}) {
    ask(launch_one(of, nullptr));
  }

  std::vector<Pair> energies(static_cast<size_t>(N) * M);
  for_pairs(in, 0, N, N, M, false, [&](int i, int l, int64_t s, int64_t e) {
    const double sigma = in.at(in.stds, N + l, s, e), v = sigma * sigma + kEps;
    const double own = in.at(in.stds, i, s, e), v_i = own * own + kEps;
    const double distance = in.at(in.y, i, s, e) - in.at(in.x, N + l, s, e) - in.at(in.mu, N + l, s, e);
    Pair& pair = energies[static_cast<size_t>(i) * M + l];
    pair.q += distance * distance / v / 2;
    pair.g += (std::log(v) + kLog2Pi) / 2, pair.k += (std::log(v_i) + kLog2Pi) / 2;
  });
  const std::vector<double> upstream = {1, 0.5, -0.25, 0.125, 0.75};
  std::vector<double> exact, weights[3];
  exact_online(N, M, energies, upstream, exact, weights);
  compare(of_name + " rows", rows, exact, tolerance);

  of.state = exact.data(), of.upstream = upstream.data(), of.row = (M + 3) / 4 * 4;
  std::vector<float> found[3];
  for (auto& t : found) t.resize(N * of.row + 4);
  float** to[] = {&of.of_q, &of.of_g, &of.of_k};
  for (int k = 0; k < 3; ++k) {
    *to[k] = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(found[k].data()) + 15) / 16 * 16);
  }
  ask(launch_weigh(of, nullptr));
  ask(launch_careful_weigh(of, nullptr));
  std::vector<double> of_own(N * S), of_logs(M * S), own_sums(N * S), log_sums(M * S);
  for (int k = 0; k < 3; ++k) {
    std::vector<double> without_rest;
    for (int i = 0; i < N; ++i) {
      for (int m = 0; m < M; ++m) without_rest.push_back(static_cast<double>((*to[k])[i * of.row + m]));
    }
    compare(of_name + " weights " + std::to_string(k), without_rest, weights[k], tolerance);
  }
  SumWeights sum{{of.of_k, false}, of.row, N, M, false, component_active, S, own_sums.data(), false, nullptr};
  ask(launch_sum_weights(sum, nullptr));
  sum = {{of.of_g, false}, of.row, N, M, true, in.samples.data(), S, log_sums.data(), false, nullptr};
  ask(launch_sum_weights(sum, nullptr));
  const size_t size = (N + M) * S * F;
  std::vector<double> d_y(size);
  for (int i = 0; i < N; ++i) {
    for (int m = 0; m < M; ++m) {
      for (int64_t s = 0; s < S; ++s) {
        const size_t at = static_cast<size_t>(i) * M + m;
        if (component_active[m * S + s]) of_own[i * S + s] += weights[2][at];
        if (in.samples[i * S + s]) of_logs[m * S + s] += weights[1][at];
      }
    }
  }
  for_pairs(in, 0, N, N, M, false, [&](int i, int l, int64_t s, int64_t e) {
    const double sigma = in.at(in.stds, N + l, s, e), v = sigma * sigma + kEps;
    const double distance = in.at(in.y, i, s, e) - in.at(in.x, N + l, s, e) - in.at(in.mu, N + l, s, e);
    d_y[(i * S + s) * F + e] += weights[0][static_cast<size_t>(i) * M + l] * distance / v;
  });
  compare(of_name + " sums over components", own_sums, of_own, tolerance);
  compare(of_name + " sums over samples", log_sums, of_logs, tolerance);

  std::vector<float> gradient(size);
  pairs.upstream = {of.of_q, false}, pairs.upstream_row = of.row;
  pairs.d_y = {gradient.data(), S * F, F, 1, Type::float32};
  plan_samples_gradient(pairs, kMultiprocessors);
  std::vector<float> split(pairs.gradient_splits * N * S * F);
  pairs.split_gradients = split.data();
  ask(launch_samples_gradient(pairs, nullptr));
  if (pairs.gradient_splits > 1) {
    ask(launch_add_gradients(
        {split.data(), pairs.d_y, 0, S, F, N * S * F, pairs.gradient_splits, false, nullptr}, nullptr));
  }
  const std::vector<double> of_y(gradient.begin(), gradient.end());
  compare(of_name + " gradient", of_y, d_y, tolerance);
  if (irregular[0]) {
    std::printf("WRONG %s: said to be irregular\n", name);
    failed = true;
  }
}

}  // namespace cases
