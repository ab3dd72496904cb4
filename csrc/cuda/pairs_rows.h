// What needs no tile of pairs: shifts, log-determinants of rows, and the sums of splits.
#pragma once

#include "pairs.h"

namespace fused_mi {

// Of the components the row that weighs most, column by column: what differences are measured from. A
// difference of two numbers that were rounded relative to a third keeps its digits where the third is no
// larger than they are, in the deviations of each component.
template <class F>
GPU_KERNEL(kRows, 8)
shift_kernel(const Pairs in) {
  using T = typename F::Number;
  const int64_t vectors = (in.E + F::V - 1) / F::V;
  const int64_t i = blockIdx.x * static_cast<int64_t>(kRows) + threadIdx.x;
  if (i >= vectors * in.S) return;
  const int64_t s = i / vectors, e = i % vectors * F::V;
  T least[F::V], value[F::V] = {};
  GPU_UNROLL
  for (int j = 0; j < F::V; ++j) least[j] = gpu::infinity<T>();
  for (int m = 0; m < in.M; ++m) {
    if (!in.component(m, s)) continue;
    const int64_t row = in.component_start + m;
    const auto stds = F::load(in.stds, in.stds.at(row, s, e)), x = F::load(in.x, in.x.at(row, s, e));
    GPU_UNROLL
    for (int j = 0; j < F::V; ++j) {
      const T sigma = gpu::size(F::get(stds, j));
      if (sigma < least[j]) least[j] = sigma, value[j] = F::get(x, j);
    }
  }
  T* shift = static_cast<T*>(in.shift) + s * in.E + e;
  GPU_UNROLL
  for (int j = 0; j < F::V; ++j) {  // from an infinite row nothing is a difference
    shift[j] = gpu::size(value[j]) < gpu::infinity<T>() ? value[j] : T(0);
  }
}

// A warp for each row and position.
template <class F>
GPU_KERNEL(kRows, 8)
log_determinants_kernel(const LogDeterminants in) {
  using T = typename F::Number;
  const int64_t number = blockIdx.x * static_cast<int64_t>(kRows / 32) + threadIdx.x / 32;
  if (number >= in.rows * in.S) return;
  const int64_t row = in.start + number / in.S, s = number % in.S;
  const int lane = threadIdx.x % 32;
  const T eps = static_cast<T>(in.eps.get(0));
  double total = 0;
  if (in.active[number]) {
    Logs<T> logs;
    for (int64_t e = lane * F::V; e < in.E; e += 32 * F::V) {
      const auto raw = F::load(in.stds, in.stds.at(row, s, e));
      T sum = 0;
      GPU_UNROLL
      for (int j = 0; j < F::V; ++j) {
        const T sigma = F::get(raw, j), v = gpu::fma(sigma, sigma, eps);
        logs.look(v);
        sum += gpu::log2(v);
      }
      total += static_cast<double>(sum) * kLn2;
    }
    if (logs.odd() || !(gpu::size(total) < gpu::infinity<double>())) {
      gpu::raise(in.irregular);
      total = 0;
      for (int64_t e = lane * F::V; e < in.E; e += 32 * F::V) {
        for (int j = 0; j < F::V; ++j) {
          total += 2 * ::log(root_of(element(in.stds, row, s, e + j), in.eps.get(0)));
        }
      }
    }
  }
  GPU_UNROLL
  for (int bits = 16; bits > 0; bits /= 2) total += gpu::exchange(total, bits);
  if (lane != 0) return;
  total = in.active[number] ? (total + static_cast<double>(in.E) * kLog2Pi) / 2 : 0;
  if (in.halves) {
    in.halves[number] = halves<float>(total);
  } else {
    in.logs[number] = total;
  }
}

// Of each pair the logs of its positions, in their order, or what stands in place of k.
GPU_KERNEL(kRows, 8)
pair_logs_kernel(const PairLogs in) {
  const Pairs& of = in.of;
  const int64_t i = blockIdx.x * static_cast<int64_t>(kRows) + threadIdx.x;
  if (i >= static_cast<int64_t>(of.N) * of.M) return;
  const int64_t n = i / of.M, m = i % of.M;
  double g = 0, k = 0;
  for (int64_t s = 0; s < of.S; ++s) {
    if (!of.sample(n, s) || !of.component(m, s)) continue;
    g += in.of_components[m * of.S + s];
    if (in.of_samples) k += in.of_samples[n * of.S + s];
  }
  in.g[i] = g;
  in.k[i] = in.log_weights ? in.log_weights[m] : k;
}

// Half the sum of the splits, in a fixed order.
GPU_KERNEL(kRows, 8)
add_splits_kernel(const Pairs in) {
  const int64_t size = static_cast<int64_t>(in.N) * in.M;
  const int64_t i = blockIdx.x * static_cast<int64_t>(kRows) + threadIdx.x;
  if (i >= size) return;
  double total = 0;
  for (int split = 0; split < in.splits; ++split) total += in.parts[split * size + i];
  in.q[i] = total / 2;
}

}  // namespace fused_mi
