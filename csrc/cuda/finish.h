// After `accumulate`: parts of the batch merged, columns that moments cannot serve summed pair by pair in
// float64, and the sums of all blocks added up by fewer; then by one, which writes the terms of the loss.
#pragma once

#include "settle.h"

namespace fused_mi {

constexpr int kFinish = 128;              // threads
constexpr int kLook = 8 * kFinish;        // columns of a block

// Some columns of a tile, in their order: which are `lost`. A call for the whole block.
struct Lost {
  int warps[kFinish / 32], count;
  uint16_t columns[kLook];
};

template <class IsLost>
GPU_DEVICE int list_lost(Lost& list, int64_t first, int64_t E, const IsLost& is_lost) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int listed = 0;
  for (int k = 0; k < kLook && first + k < E; k += kFinish) {
    const int64_t e = first + k + threadIdx.x;
    const bool lost = e < E && is_lost(e);
    const unsigned votes = gpu::ballot(lost);
    gpu::barrier();
    if (lane == 0) list.warps[warp] = gpu::count_bits(votes);
    gpu::barrier();
    int before = listed;
    GPU_UNROLL
    for (int w = 0; w < kFinish / 32; ++w) {
      before += w < warp ? list.warps[w] : 0;
      listed += list.warps[w];
    }
    if (lost) {
      list.columns[before + gpu::count_bits(votes & ((1u << lane) - 1))] =
          static_cast<uint16_t>(k + threadIdx.x);
    }
  }
  gpu::barrier();
  return listed;
}

// q of all pairs of a column, times 2, of the samples of this thread.
GPU_DEVICE double pairs_of_column(
    const Jensen& in, const Mixture& of, const Counts& counts, int64_t s, int64_t e, double eps) {
  double q = 0;
  for (int i = threadIdx.x; i < in.N; i += kFinish) {
    if (!in.masks[0].at(of.sample_start + i, s) || !counts.sample(in, i)) continue;
    const double y = element(in.y, of.sample_start + i, s, e);
    for (int l = 0; l < in.M; ++l) {
      const int64_t row = of.component_start + l;
      if (!in.masks[1].at(row, s) || (in.alone && i == l)) continue;
      const double distance = (y - element(in.x, row, s, e)) - element(in.mu, row, s, e);
      const double z = distance / root_of(element(in.stds, row, s, e), eps);
      q = gpu::fma(z, z, q);
    }
  }
  return q;
}

struct FinishShared {
  Lost lost;
  double slots[kFinish / 32];
};

template <class T>
GPU_DEVICE double merge_parts(
    const Jensen& in, int d, const Counts& counts, int64_t s, int64_t e, bool some) {
  const Mixture& of = in.mixture[d];
  const int64_t plane = in.S * in.E, column = s * in.E + e;
  const int planes = in.alone ? kAlonePlanes : kHalvesPlanes;
  const int64_t first = static_cast<int64_t>(d) * in.splits;
  const T* parts = static_cast<const T*>(in.parts) + first * planes * plane + column;
  const T* samples = static_cast<const T*>(in.samples) + first * in.S + s;
  auto at = [&](int p, int split) { return parts[(static_cast<int64_t>(split) * planes + p) * plane]; };
  auto number = [&](int split) { return samples[split * in.S]; };
  struct At {
    int64_t s, e;
    bool inside;
  };
  const Shifts<Loose<T>> shifts(in, of, counts, At{s, e, true}, some);
  const Whole<T> whole = in.alone ? Whole<T>::alone(in.splits, at, number)
                                  : Whole<T>::halves(in.splits, at, number);
  return whole.settle(in, d, counts, column, shifts.column(0), some);
}

template <class T>
GPU_KERNEL(kFinish, 4)
finish_kernel(const Jensen in) {
  auto& shared = gpu::shared<FinishShared>();
  const int64_t number = blockIdx.x % in.finished;
  const int64_t first = number % in.looks * kLook, s = number / in.looks;
  const int d = static_cast<int>(blockIdx.x / in.finished);
  const Mixture of = in.mixture[d];
  const Counts counts(in, d, s);
  const bool some = counts.n > 0 && counts.m > 0;
  double of_q = 0, of_g = 0, of_k = 0;
  if (in.splits > 1) {
    for (int64_t e = first + threadIdx.x; e < in.E && e < first + kLook; e += kFinish) {
      of_q += merge_parts<T>(in, d, counts, s, e, some);
    }
  }
  // Each thread looks at what it has written itself, or what another launch has.
  const int64_t column = (4 * d * in.S + s) * in.E;
  const int lost = list_lost(shared.lost, first, in.E, [&](int64_t e) {
    const double value = in.state.get(column + e);
    return value != value;
  });
  if (lost > 0) {
    const double eps =
        static_cast<double>(eps_of<T, kFinish>(in, of.component_role, reinterpret_cast<T*>(shared.slots)));
    for (int k = 0; k < lost; ++k) {
      of_q += pairs_of_column(in, of, counts, s, first + shared.lost.columns[k], eps);
    }
  }
  // A share of what `accumulate` has found.
  const int64_t share = (in.accumulated + in.finished - 1) / in.finished;
  const int64_t end = (number + 1) * share < in.accumulated ? (number + 1) * share : in.accumulated;
  for (int64_t i = number * share + threadIdx.x; i < end; i += kFinish) {
    const double* sums = in.sums + 3 * (d * in.accumulated + i);
    of_q += sums[0], of_g += sums[1], of_k += sums[2];
  }
  of_q = sum_over_block<kFinish>(of_q, shared.slots);
  of_g = sum_over_block<kFinish>(of_g, shared.slots);
  of_k = sum_over_block<kFinish>(of_k, shared.slots);
  if (threadIdx.x == 0) {
    double* to = in.merged + 3 * static_cast<int64_t>(blockIdx.x);
    to[0] = of_q, to[1] = of_g, to[2] = of_k;
  }
}

constexpr int kReduce = 256;  // threads

// The terms of the loss in the order of TERMS, and the stabilisers in the header: one block.
template <class T>
GPU_KERNEL(kReduce, 1)
reduce_kernel(const Jensen in) {
  double* slots = &gpu::shared<double>();
  double of[3] = {};
  for (int k = 0; k < 3; ++k) {
    for (int64_t i = threadIdx.x; i < in.mixtures * in.finished; i += kReduce) {
      of[k] += in.merged[3 * i + k];
    }
    of[k] = sum_over_block<kReduce>(of[k], slots) / 2 / in.divisor;
  }
  for (int d = 0; d < in.mixtures; ++d) {
    const T eps_l = eps_of<T, kReduce>(in, in.mixture[d].component_role, reinterpret_cast<T*>(slots));
    const T eps_i = eps_of<T, kReduce>(in, in.mixture[d].sample_role, reinterpret_cast<T*>(slots));
    if (threadIdx.x == 0) {
      in.header.set(d, static_cast<double>(eps_l));
      in.header.set(in.mixtures + d, static_cast<double>(eps_i));
    }
  }
  if (threadIdx.x != 0) return;
  const double q = of[0], g = of[1], k = of[2], total = q + g - k;
  const double terms[6] = {total, q, g, 0, q + g, -k};
  in.total.set(0, total);
  for (int i = 0; i < 6; ++i) in.terms.set(i, terms[i]);
  for (int i = 2 * in.mixtures; i < kHeader; ++i) in.header.set(i, 0);
}

}  // namespace fused_mi
