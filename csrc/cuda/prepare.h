// What the moments need before they read their inputs: the least variances, and at each position how
// many rows contribute and the first of them.
#pragma once

#include "jensen.h"

namespace fused_mi {

constexpr int kPrepare = 256;             // threads
constexpr int kPositions = 16;            // of a block that counts rows
constexpr int kStreams = kPrepare / kPositions;

// Least positive variance of the active rows and positions of a role, of one of its parts.
template <class F>
GPU_DEVICE void least_variance(const Jensen& in, int64_t block) {
  using T = typename F::Number;
  const Role role = in.role[block / in.least_parts];
  const Mask mask = in.masks[role.mask];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t part = block % in.least_parts * (kPrepare / 32) + warp;
  T found = gpu::infinity<T>();
  for (int64_t i = part; i < role.rows * in.S; i += in.least_parts * (kPrepare / 32)) {
    const int64_t row = role.start + i / in.S, s = i % in.S;
    if (!mask.at(row, s)) continue;
    for (int64_t e = lane * F::V; e < in.E; e += 32 * F::V) {
      const auto raw = F::load(in.stds, in.stds.at(row, s, e));
      GPU_UNROLL
      for (int j = 0; j < F::V; ++j) {
        const T sigma = F::get(raw, j), square = sigma * sigma;
        found = square > 0 && square < found ? square : found;
      }
    }
  }
  found = over_block<kPrepare>(
      found, &gpu::shared<T>(), [](T a, T b) { return gpu::least(a, b); });
  if (threadIdx.x == 0) static_cast<T*>(in.least)[block] = found;
}

// Active samples, components and rows that are both; the first of each, and of those that are not both.
struct Met {
  enum { SAMPLES, COMPONENTS, BOTH, FIRST_I, FIRST_L, ALONE_I, ALONE_L, COUNT };
  int of[kStreams][kPositions][COUNT];
};

GPU_DEVICE void add(int (&to)[Met::COUNT], int index, bool i, bool l) {
  to[Met::SAMPLES] += i;
  to[Met::COMPONENTS] += l;
  to[Met::BOTH] += i && l;
  if (i && index < to[Met::FIRST_I]) to[Met::FIRST_I] = index;
  if (l && index < to[Met::FIRST_L]) to[Met::FIRST_L] = index;
  if (i && !l && index < to[Met::ALONE_I]) to[Met::ALONE_I] = index;
  if (l && !i && index < to[Met::ALONE_L]) to[Met::ALONE_L] = index;
}

GPU_DEVICE void count_rows(const Jensen& in, int64_t block) {
  Met& met = gpu::shared<Met>();
  const int64_t blocks = (in.S + kPositions - 1) / kPositions;
  const int d = static_cast<int>(block / blocks);
  const int position = threadIdx.x % kPositions, stream = threadIdx.x / kPositions;
  const int64_t s = block % blocks * kPositions + position;
  const Mixture& of = in.mixture[d];
  int found[Met::COUNT] = {0, 0, 0, in.N, in.M, in.N, in.M};
  const int rows = in.N > in.M ? in.N : in.M;
  for (int first = stream; s < in.S && first < rows; first += 8 * kStreams) {
    bool samples[8], components[8];
    GPU_UNROLL
    for (int u = 0; u < 8; ++u) {
      const int i = first + u * kStreams;
      samples[u] = i < in.N && in.masks[0].at(of.sample_start + i, s);
      components[u] = i < in.M && in.masks[1].at(of.component_start + i, s);
    }
    GPU_UNROLL
    for (int u = 0; u < 8; ++u) add(found, first + u * kStreams, samples[u], components[u]);
  }
  GPU_UNROLL
  for (int k = 0; k < Met::COUNT; ++k) met.of[stream][position][k] = found[k];
  gpu::barrier();
  if (stream > 0 || s >= in.S) return;
  for (int other = 1; other < kStreams; ++other) {
    const int(&more)[Met::COUNT] = met.of[other][position];
    GPU_UNROLL
    for (int k = 0; k < Met::FIRST_I; ++k) found[k] += more[k];
    GPU_UNROLL
    for (int k = Met::FIRST_I; k < Met::COUNT; ++k) found[k] = more[k] < found[k] ? more[k] : found[k];
  }
  // A single partner is none of itself.
  const int P = found[Met::SAMPLES], Q = found[Met::COMPONENTS];
  int* to = in.counts + 4 * d * in.S + s;
  to[0] = Q == 0 ? 0 : P - (in.alone && Q == 1 ? found[Met::BOTH] : 0);
  to[in.S] = P == 0 ? 0 : Q - (in.alone && P == 1 ? found[Met::BOTH] : 0);
  to[2 * in.S] = found[in.alone && Q == 1 ? Met::ALONE_I : Met::FIRST_I];
  to[3 * in.S] = found[in.alone && P == 1 ? Met::ALONE_L : Met::FIRST_L];
}

template <class F>
GPU_KERNEL(kPrepare, 4)
prepare_kernel(const Jensen in) {
  const int64_t of_least = in.roles * in.least_parts;
  if (blockIdx.x < of_least) {
    least_variance<F>(in, blockIdx.x);
  } else {
    count_rows(in, blockIdx.x - of_least);
  }
}

// The stabilisers alone, in the order of the roles: one block.
template <class T>
GPU_KERNEL(kPrepare, 1)
stabiliser_kernel(const Jensen in) {
  for (int role = 0; role < in.roles; ++role) {
    const T eps = eps_of<T, kPrepare>(in, role, &gpu::shared<T>());
    if (threadIdx.x == 0) in.header.set(role, static_cast<double>(eps));
  }
}

}  // namespace fused_mi
