// What the pairs of a block weigh in the gradients, from energies that are found once more. Gradients follow
// by the kernels of the pairs, which read the weights: an energy has all features, and its weight is known
// before the first feature of a gradient.
#pragma once

#include "online.h"

namespace fused_mi {

// What a sample has left, and the gradients of its terms.
template <class T>
struct PullOfSample {
  Two<T> log_sum, q, g, k;
  T total, of_q, of_g, assignment, of_k, equal;
  bool hopeless;

  GPU_DEVICE PullOfSample(const Online& in, int64_t n) {
    const bool here = n < in.pairs.N;
    auto kept = [&](int j) { return halves<T>(here ? in.state[j * in.samples + n] : 0); };
    log_sum = kept(0), q = kept(1), g = kept(2), k = kept(3);
    const int64_t step = in.each ? in.samples : 1;
    auto up = [&](int j) { return static_cast<T>(here ? in.upstream[j * step + (in.each ? n : 0)] : 0); };
    total = up(0), of_q = up(1), of_g = up(2), assignment = up(3), of_k = -up(4);
    equal = T(1) / static_cast<T>(in.partners);
    hopeless = log_sum.high == -gpu::infinity<T>();
  }

  // Gradients of the energies of a pair. Select: energies and upstream gradients may be infinite where
  // nothing is chosen.
  GPU_DEVICE void operator()(
      const Two<T>& density, const Two<T>& energy_q, const Two<T>& energy_g, const Two<T>& energy_k,
      bool met, bool origin, T (&to)[3]) const {
    const T r = !met ? T(0) : hopeless ? equal : gpu::exp(difference(density, log_sum));
    T of_density = 0;  // of the log-density, relative to r: a hopeless row has none
    if (!hopeless) {
      of_density = (of_q - assignment) * difference(energy_q, q) - total;
      of_density += (of_g - assignment) * difference(energy_g, g);
      of_density += (of_k + assignment) * difference(energy_k, k);
    }
    const T own = origin && !hopeless ? total : T(0);
    to[0] = (r == 0 ? T(0) : r * (of_q - of_density)) - own;
    to[1] = (r == 0 ? T(0) : r * (of_g - of_density)) - own;
    to[2] = r == 0 ? T(0) : r * (of_k + of_density);
  }
};

// Zeros beyond the last component.
GPU_DEVICE void store_four(float* to, int64_t at, const float (&values)[Four::SIZE]) {
  using Part = gpu::Vector<float, Four::SIZE>;
  if (!to) return;
  Part part;
  GPU_UNROLL
  for (int j = 0; j < Four::SIZE; ++j) part.at[j] = values[j];
  *reinterpret_cast<Part*>(to + at) = part;
}

template <class Tile>
GPU_DEVICE void weigh_row(
    const Online& in, int64_t n, int first_m, const Spot<Tile>& spot, const float (&sums)[Tile::TM],
    const double* at) {
  const PullOfSample<float> pull(in, n);
  const int64_t own = in.has_own() ? in.own_of(n) : -1;
  GPU_UNROLL
  for (int j = 0; j < Tile::TM; j += Four::SIZE) {
    const Four pairs(in, n, first_m + spot.component(j), &sums[j], at ? at + j * Tile::THREADS : at, Tile::THREADS);
    if (pairs.odd(in)) gpu::raise(in.pairs.irregular);
    float weights[3][Four::SIZE];
    GPU_UNROLL
    for (int k = 0; k < Four::SIZE; ++k) {
      const bool mine = pairs.m + k == own, here = pairs.here(in, k);
      float found[3];
      pull(pairs.density(k), pairs.q[k], pairs.g[k], pairs.k[k], here && !(in.left_out && mine),
           here && mine && in.origins, found);
      GPU_UNROLL
      for (int of = 0; of < 3; ++of) weights[of][k] = found[of];
    }
    if (n >= in.pairs.N || pairs.m >= in.row) continue;
    const int64_t to = n * in.row + pairs.m;
    store_four(in.of_q, to, weights[0]);
    store_four(in.of_g, to, weights[1]);
    store_four(in.of_k, to, weights[2]);
  }
}

template <class Tile>
GPU_KERNEL(Tile::THREADS, Tile::BLOCKS)
weigh_kernel(const Online in) {
  auto& shared = gpu::shared<typename Tile::Shared>();
  const Spot<Tile> spot;
  const int tiles_n = (in.pairs.N + Tile::N - 1) / Tile::N, tiles_m = (in.pairs.M + Tile::M - 1) / Tile::M;
  float sums[Tile::TN][Tile::TM] = {};
  for (int item = blockIdx.x; item < tiles_n * tiles_m; item += gridDim.x) {
    const int first_n = item % tiles_n * Tile::N, first_m = item / tiles_n * Tile::M;
    const bool some = find_distances<Tile>(in, shared, spot, first_n, first_m, sums);
    const double* at = nullptr;
    if (in.several() && some) at = in.sums + static_cast<int64_t>(blockIdx.x) * Tile::N * Tile::M + threadIdx.x;
    GPU_LOOP
    for (int i = 0; i < Tile::TN; ++i) {
      const double* row = at ? at + i * Tile::TM * Tile::THREADS : at;
      weigh_row<Tile>(in, first_n + spot.sample(i), first_m, spot, sums[0], row);
      rotate<Tile>(sums);
    }
  }
}

GPU_KERNEL(kRows, 4)
careful_weigh_kernel(const Online in) {
  if (*in.pairs.irregular == 0) return;
  const int64_t M = in.pairs.M, all = static_cast<int64_t>(in.pairs.N) * M;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kRows) + threadIdx.x; i < all;
       i += gridDim.x * static_cast<int64_t>(kRows)) {
    const int64_t n = i / M, m = i % M;
    const PullOfSample<double> pull(in, n);
    const Exact pair(in, n, m);
    const bool mine = in.has_own() && m == in.own_of(n);
    double found[3];
    pull({pair.k - pair.q - pair.g, 0}, {pair.q, 0}, {pair.g, 0}, {pair.k, 0}, !(in.left_out && mine),
         mine && in.origins, found);
    float* const matrices[] = {in.of_q, in.of_g, in.of_k};
    for (int of = 0; of < 3; ++of) {
      if (matrices[of]) matrices[of][n * in.row + m] = static_cast<float>(found[of]);
    }
  }
}

}  // namespace fused_mi
