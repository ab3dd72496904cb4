// From the energies of all pairs to the log-sum-exp of each sample, and back; in float64.
#pragma once

#include "logsumexp_launch.h"
#include "two.h"

namespace fused_mi {

constexpr int kLogsumexp = 128;  // threads

// A sample of a mixture, its pairs and the component that is its own.
struct Sample {
  int64_t d, i, first, size, own;

  GPU_DEVICE Sample(const Logsumexp& in, int64_t number) {
    d = number / in.N, i = number % in.N;
    size = static_cast<int64_t>(in.N) * in.M;
    first = d * 3 * size + i * in.M;
    own = in.origins ? in.origins[i] : in.own + i;
  }
  GPU_DEVICE bool met(const Logsumexp& in, int m) const { return !(in.left_out && m == own); }
};

// A block for each sample of each mixture: the largest density first, then the sums, as the energies come
// from a cache the second time.
GPU_KERNEL(kLogsumexp, 8)
logsumexp_kernel(const Logsumexp in) {
  double* slots = &gpu::shared<double>();
  const Sample of(in, blockIdx.x);
  const double *q = in.energies + of.first, *g = q + of.size, *k = g + of.size;
  double most = -gpu::infinity<double>();
  for (int m = threadIdx.x; m < in.M; m += kLogsumexp) {
    if (of.met(in, m)) most = gpu::most(most, k[m] - q[m] - g[m]);
  }
  most = over_block<kLogsumexp>(most, slots, [](double a, double b) { return gpu::most(a, b); });
  const double reference = finite_or_0(most);
  double sums[5] = {};  // weights; times q, g and k; how many are the own one
  double of_own = 0;
  auto add = [&](int m, double weight) {
    // 0 * inf: a component that is never chosen adds nothing.
    if (weight == 0) return;
    sums[0] += weight;
    sums[1] += weight * q[m], sums[2] += weight * g[m], sums[3] += weight * k[m];
  };
  for (int m = threadIdx.x; m < in.M; m += kLogsumexp) {
    if (of.met(in, m)) add(m, ::exp(k[m] - q[m] - g[m] - reference));
    if (in.origins && m == of.own) of_own = q[m] + g[m], sums[4] = 1;
  }
  for (double& sum : sums) sum = sum_over_block<kLogsumexp>(sum, slots);
  const double log_sum = reference + ::log(sums[0]);
  if (sums[0] == 0) {  // every density is 0: equal responsibilities
    for (int m = threadIdx.x; m < in.M; m += kLogsumexp) {
      if (of.met(in, m)) add(m, 1);
    }
    for (int j = 0; j < 4; ++j) sums[j] = sum_over_block<kLogsumexp>(sums[j], slots);
  }
  of_own = sum_over_block<kLogsumexp>(of_own, slots);
  if (threadIdx.x != 0) return;
  double* to = in.rows + of.d * 5 * in.N + of.i;
  to[0] = log_sum;
  for (int j = 1; j < 4; ++j) to[j * in.N] = sums[j] / sums[0];
  // NaN where there is no such component
  to[4 * static_cast<int64_t>(in.N)] = in.origins && sums[4] == 0 ? __builtin_nan("") : of_own;
}

GPU_KERNEL(kLogsumexp, 8)
logsumexp_gradient_kernel(const Logsumexp in) {
  const int64_t tiles = (in.M + kLogsumexp - 1) / kLogsumexp;
  const Sample of(in, blockIdx.x / tiles);
  const int m = static_cast<int>(blockIdx.x % tiles) * kLogsumexp + threadIdx.x;
  if (m >= in.M) return;
  const double* up = in.upstream + of.d * 5 * (in.each ? in.N : 1) + (in.each ? of.i : 0);
  const int64_t step = in.each ? in.N : 1;
  const double total = up[0], of_q = up[step], of_g = up[2 * step], assignment = up[3 * step];
  const double of_k = -up[4 * step];
  const double* rows = in.rows + of.d * 5 * in.N + of.i;
  const double log_sum = rows[0];
  const int64_t at = of.first + m;
  const double q = in.energies[at], g = in.energies[at + of.size], k = in.energies[at + 2 * of.size];
  const bool hopeless = log_sum == -gpu::infinity<double>();
  double r = 0, of_density = 0;  // of the log-density, relative to r: a hopeless row has none
  if (of.met(in, m)) {
    r = hopeless ? 1.0 / (in.M - in.left_out) : ::exp(k - q - g - log_sum);
  }
  if (!hopeless) {
    of_density = (of_q - assignment) * (q - rows[in.N]) - total;
    of_density += (of_g - assignment) * (g - rows[2 * static_cast<int64_t>(in.N)]);
    of_density += (of_k + assignment) * (k - rows[3 * static_cast<int64_t>(in.N)]);
  }
  // Select: energies and upstream gradients may be infinite where nothing is chosen.
  const double own = in.origins && m == of.own && !hopeless ? total : 0;
  in.gradient.set(at, (r == 0 ? 0 : r * (of_q - of_density)) - own);
  in.gradient.set(at + of.size, (r == 0 ? 0 : r * (of_g - of_density)) - own);
  in.gradient.set(at + 2 * of.size, r == 0 ? 0 : r * (of_k + of_density));
}

}  // namespace fused_mi
