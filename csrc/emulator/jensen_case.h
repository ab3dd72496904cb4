// The Jensen loss: all launches of both directions.
#pragma once

#include "cases.h"

namespace cases {

template <class E>
void jensen(
    const char* name, int rows, int64_t S, int64_t F, Type type, bool alone, double density,
    double tolerance, bool far = false) {
  Inputs<E> in(rows, S, F, type, density, far);
  const int half = rows / 2, N = alone ? rows : half, M = alone ? rows : rows - half, l0 = alone ? 0 : half;
  const bool wide = type == Type::float64;
  Gradient all;
  Jensen& of = all.of;
  of.y = in.view(in.y), of.x = in.view(in.x), of.mu = in.view(in.mu), of.stds = in.view(in.stds);
  of.masks[0] = {in.samples.data(), S, 1}, of.masks[1] = {in.components.data(), S, 1};
  of.S = S, of.E = F, of.N = N, of.M = M, of.mixtures = 1, of.roles = 2, of.alone = alone, of.wide = wide;
  of.mixture[0] = {0, l0, 0, 1};
  of.role[0] = {0, 0, N}, of.role[1] = {1, l0, M};
  of.stabiliser = {-kEps, 0, 1e30};
  std::vector<double> header(kHeader), state(4 * S * F), total(1), terms(6);
  std::vector<int> counts(4 * S);
  of.header = {header.data(), true}, of.state = {state.data(), true}, of.counts = counts.data();
  of.total = {total.data(), true}, of.terms = {terms.data(), true};
  plan_jensen(of, kMultiprocessors);
  const Bytes bytes(of);
  std::vector<char> least(bytes.least), parts(bytes.parts), samples(bytes.samples);
  std::vector<char> sums(bytes.sums), merged(bytes.merged);
  of.least = least.data(), of.parts = parts.data(), of.samples = samples.data();
  of.sums = reinterpret_cast<double*>(sums.data());
  of.merged = reinterpret_cast<double*>(merged.data());
  ask(launch_prepare(of, nullptr));
  ask((alone ? launch_accumulate_alone : launch_accumulate)(of, nullptr));
  ask(launch_finish(of, nullptr));
  ask(launch_reduce(of, nullptr));

  std::vector<double> upstream = {1}, exact(6);
  std::vector<double> d[4];  // of y, x + mu, stds
  for (auto& t : d) t.assign(rows * S * F, 0);
  auto at = [&](int r, int64_t s, int64_t e) { return (r * S + s) * F + e; };
  for_pairs(in, 0, N, l0, M, alone, [&](int i, int l, int64_t s, int64_t e) {
    const double sigma = in.at(in.stds, l0 + l, s, e), v = sigma * sigma + kEps;
    const double own = in.at(in.stds, i, s, e), v_i = own * own + kEps;
    const double distance = in.at(in.y, i, s, e) - in.at(in.x, l0 + l, s, e) - in.at(in.mu, l0 + l, s, e);
    exact[1] += distance * distance / v / 2;
    exact[2] += (std::log(v) + kLog2Pi) / 2;
    exact[5] -= (std::log(v_i) + kLog2Pi) / 2;
    d[0][at(i, s, e)] += distance / v;
    d[1][at(l0 + l, s, e)] -= distance / v;
    d[3][at(l0 + l, s, e)] += sigma / v * (1 - distance * distance / v);
    d[3][at(i, s, e)] -= own / v_i;
  });
  exact[4] = exact[1] + exact[2];
  exact[0] = exact[4] + exact[5];
  compare(std::string(name) + " terms", terms, exact, tolerance);

  std::vector<E> gradients[4];
  View* views[] = {&all.d_y, &all.d_x, &all.d_mu, &all.d_stds};
  for (int k = 0; k < 4; ++k) {
    gradients[k].resize(rows * S * F);
    *views[k] = in.view(gradients[k]);
  }
  all.of_total = {upstream.data(), true};
  all.pass[0] = {0, N, 0, alone ? 0 : -1, {true, true, true, true}, 0, 0};
  if (!alone) all.pass[1] = {l0, M, -1, 0, {true, true, true, true}, 0, 0};
  plan_gradient(all, kMultiprocessors);
  ask(launch_gradient(all, nullptr));
  ask(launch_gradient_of_pairs(all, nullptr));
  const double rounding = type == Type::bfloat16 ? 1e-2 : 0;
  for (int k : {0, 1, 3}) {
    std::vector<double> found;
    for (E a : gradients[k]) found.push_back(value(a));
    compare(std::string(name) + " gradient " + std::to_string(k), found, d[k], tolerance + rounding);
  }
}

}  // namespace cases
