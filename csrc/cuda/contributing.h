// What the log-sum-exp needs before it meets pairs: which rows have a partner at which positions, and the
// weights of the components.
#pragma once

#include "scoring_launch.h"

namespace fused_mi {

constexpr int kContributing = 256;  // threads

GPU_KERNEL(kContributing, 4)
contributing_kernel(const Contributing in) {
  const Jensen& of = in.of;
  const int64_t samples = of.N * of.S, all = samples + of.M * of.S;
  const int64_t first = blockIdx.x * static_cast<int64_t>(kContributing) + threadIdx.x;
  const int64_t step = gridDim.x * static_cast<int64_t>(kContributing);
  if (first < of.mixtures) in.irregular[first] = 0;
  for (int64_t i = first; i < of.mixtures * all; i += step) {
    const int d = static_cast<int>(i / all);
    const int64_t k = i % all, s = k % of.S;
    const Counts counts(of, d, s);
    if (k < samples) {
      const int n = static_cast<int>(k / of.S);
      in.samples[d * samples + k] = of.masks[0].at(of.mixture[d].sample_start + n, s) && counts.sample(of, n);
    } else {
      const int m = static_cast<int>((k - samples) / of.S);
      in.components[d * (all - samples) + k - samples] =
          of.masks[1].at(of.mixture[d].component_start + m, s) && counts.component(of, m);
    }
  }
  for (int64_t m = first; in.log_weights.data && m < of.M; m += step) {
    const double weight = element(in.log_weights, m, 0, 0) + in.offset;
    if (in.halves) {
      in.halves[m] = halves<float>(weight);
    } else {
      in.weights[m] = weight;
    }
  }
}

}  // namespace fused_mi
