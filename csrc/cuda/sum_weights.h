// Sums over a role: of what pairs weigh, for what a row has at a position; and of the gradients that blocks
// have found which shared the components. In a fixed order.
#pragma once

#include "scoring_launch.h"

namespace fused_mi {

constexpr int kSums = 256;     // threads
constexpr int kAtOnce = 4;     // positions
constexpr int kStreamsOf = kSums / 32;

// A block has 32 columns, a warp every eighth row of them; or eight rows, a warp one of them.
GPU_KERNEL(kSums, 4)
sum_weights_kernel(const SumWeights in) {
  if (in.irregular && *in.irregular == 0) return;
  double* slots = &gpu::shared<double>();  // (kStreamsOf, 32)
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t parts = (in.S + kAtOnce - 1) / kAtOnce, first_s = blockIdx.x % parts * kAtOnce;
  const int64_t tile = blockIdx.x / parts;
  const int64_t kept = in.over_rows ? tile * 32 + lane : tile * kStreamsOf + warp;
  const int64_t count = in.over_rows ? in.rows : in.columns, keeps = in.over_rows ? in.columns : in.rows;
  double total[kAtOnce] = {};
  for (int64_t i = in.over_rows ? warp : lane; i < count; i += in.over_rows ? kStreamsOf : 32) {
    if (kept >= keeps) break;
    const double weight = in.weights.get(in.over_rows ? i * in.row + kept : kept * in.row + i);
    GPU_UNROLL
    for (int j = 0; j < kAtOnce; ++j) {
      const int64_t s = first_s + j;
      if (s < in.S && (!in.active || in.active[i * in.S + s])) total[j] += weight;
    }
  }
  GPU_UNROLL
  for (int j = 0; j < kAtOnce; ++j) {
    if (in.over_rows) {
      gpu::barrier();
      slots[threadIdx.x] = total[j];
      gpu::barrier();
      for (int w = 1; w < kStreamsOf && warp == 0; ++w) total[j] += slots[w * 32 + lane];
    } else {
      GPU_UNROLL
      for (int bits = 16; bits > 0; bits /= 2) total[j] += gpu::exchange(total[j], bits);
    }
    const int64_t s = first_s + j;
    if ((in.over_rows ? warp : lane) != 0 || s >= in.S || kept >= keeps) continue;
    double& to = in.sums[kept * in.S + s];
    to = in.add ? to + total[j] : total[j];
  }
}

GPU_KERNEL(kSums, 4)
add_gradients_kernel(const AddGradients in) {
  if (in.irregular && *in.irregular == 0) return;
  const int64_t i = blockIdx.x * static_cast<int64_t>(kSums) + threadIdx.x;
  if (i >= in.size) return;
  float total = 0;
  for (int split = 0; split < in.splits; ++split) total += in.parts[split * in.size + i];
  const int64_t at = in.start * in.S * in.E + i;
  if (in.add) total += Loose<float>::load(in.to, at).at[0];
  Loose<float>::store(in.to, at, {total});
}

}  // namespace fused_mi
