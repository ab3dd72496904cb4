// A block takes a tile of samples along its share of the components. Between two tiles the numbers of a
// sample are in memory, where they take no registers from the loop over features: one slot for each share
// and each group of lanes that lie side by side in a warp, so that nobody waits for anybody.
#pragma once

#include "online.h"

namespace fused_mi {

// What is known of a sample, relative to the largest density so far.
template <class T>
struct Known {
  T most = -gpu::infinity<T>(), total = 0, q = 0, g = 0, k = 0;

  // 0 * inf: what is never chosen adds nothing.
  static GPU_DEVICE T times(T weight, T value) { return weight == 0 ? T(0) : weight * value; }

  GPU_DEVICE T raise(T higher) {
    const T factor = most == higher ? T(1) : gpu::exp(most - finite_or_0(higher));
    most = higher;
    total *= factor;
    q = times(factor, q), g = times(factor, g), k = times(factor, k);
    return factor;
  }
  GPU_DEVICE void include(T weight, T of_q, T of_g, T of_k) {
    total += weight;
    q += times(weight, of_q), g += times(weight, of_g), k += times(weight, of_k);
  }
  // As long as every density is 0, responsibilities are equal; the first other one drops them.
  GPU_DEVICE T weight(T density, T rest) const {
    const bool none = most == -gpu::infinity<T>() && density == -gpu::infinity<T>();
    return none ? T(1) : gpu::exp((density - finite_or_0(most)) + rest);
  }
};

template <class Tile>
GPU_DEVICE void add_row(
    const Online& in, int64_t n, int first_m, const Spot<Tile>& spot, const float (&sums)[Tile::TM],
    const double* at, double* to, bool first) {
  Known<float> known;
  double energy = 0;
  const int64_t own = in.has_own() ? in.own_of(n) : -1;
  GPU_UNROLL
  for (int j = 0; j < Tile::TM; j += Four::SIZE) {
    const Four pairs(in, n, first_m + spot.component(j), &sums[j], at ? at + j * Tile::THREADS : at, Tile::THREADS);
    if (pairs.odd(in)) gpu::raise(in.pairs.irregular);
    Two<float> density[Four::SIZE];
    float most = known.most;
    bool met[Four::SIZE];
    GPU_UNROLL
    for (int k = 0; k < Four::SIZE; ++k) {
      const bool mine = pairs.m + k == own;
      if (in.origins && mine && pairs.here(in, k)) energy = pairs.q[k].sum() + pairs.g[k].sum();
      met[k] = pairs.here(in, k) && !(in.left_out && mine);
      density[k] = pairs.density(k);
      if (met[k]) most = gpu::most(most, density[k].high);
    }
    known.raise(most);
    GPU_UNROLL
    for (int k = 0; k < Four::SIZE; ++k) {
      const float weight = met[k] ? known.weight(density[k].high, density[k].rest) : 0;
      known.include(weight, pairs.q[k].high, pairs.g[k].high, pairs.k[k].high);
    }
  }
  float most = known.most;
  GPU_UNROLL
  for (int bits = 1; bits < 8; bits *= 2) most = gpu::most(most, gpu::exchange(most, bits));
  known.raise(most);
  GPU_UNROLL
  for (int bits = 1; bits < 8; bits *= 2) {
    known.total += gpu::exchange(known.total, bits);
    known.q += gpu::exchange(known.q, bits);
    known.g += gpu::exchange(known.g, bits);
    known.k += gpu::exchange(known.k, bits);
    if (in.origins) energy += gpu::exchange(energy, bits);
  }
  if (threadIdx.x % 8 != 0 || n >= in.pairs.N) return;
  const int64_t N = in.pairs.N;
  double before[kNumbers] = {-gpu::infinity<double>()};
  GPU_UNROLL
  for (int j = 0; j < kNumbers && !first; ++j) before[j] = to[j * N];
  const float last = static_cast<float>(before[0]), higher = gpu::most(last, most);
  Known<float> factors;
  factors.most = last;
  const double of_before = static_cast<double>(factors.raise(higher));
  const double of_this = static_cast<double>(known.most == higher ? 1.f : gpu::exp(known.most - finite_or_0(higher)));
  const float found[] = {known.total, known.q, known.g, known.k};
  to[0] = static_cast<double>(higher);
  GPU_UNROLL
  for (int j = 0; j < 4; ++j) {
    to[(1 + j) * N] = (of_before == 0 ? 0 : of_before * before[1 + j]) +
        (of_this == 0 ? 0 : of_this * static_cast<double>(found[j]));
  }
  to[5 * N] = before[5] + energy;
}

template <class Tile>
GPU_KERNEL(Tile::THREADS, Tile::BLOCKS)
online_kernel(const Online in) {
  constexpr int ACROSS = Tile::COLUMNS / 8;
  auto& shared = gpu::shared<typename Tile::Shared>();
  const Spot<Tile> spot;
  const int tiles_n = (in.pairs.N + Tile::N - 1) / Tile::N, tiles_m = (in.pairs.M + Tile::M - 1) / Tile::M;
  float sums[Tile::TN][Tile::TM] = {};
  for (int item = blockIdx.x; item < tiles_n * in.splits; item += gridDim.x) {
    const int first_n = item % tiles_n * Tile::N, split = item / tiles_n;
    const int begin = split * in.tiles_per_split, left = tiles_m - begin;
    const int end = begin + (left < in.tiles_per_split ? left : in.tiles_per_split);
    for (int tile_m = begin; tile_m < end; ++tile_m) {
      const int first_m = tile_m * Tile::M;
      const bool some = find_distances<Tile>(in, shared, spot, first_n, first_m, sums);
      const double* at = nullptr;
      if (in.several() && some) at = in.sums + static_cast<int64_t>(blockIdx.x) * Tile::N * Tile::M + threadIdx.x;
      const int slot = split * ACROSS + threadIdx.x / 32 % ACROSS;
      double* to = in.parts + static_cast<int64_t>(slot) * kNumbers * in.pairs.N;
      GPU_LOOP
      for (int i = 0; i < Tile::TN; ++i) {
        const int64_t n = first_n + spot.sample(i);
        const double* row = at ? at + i * Tile::TM * Tile::THREADS : at;
        add_row<Tile>(in, n, first_m, spot, sums[0], row, to + n, tile_m == begin);
        rotate<Tile>(sums);
      }
    }
  }
}

// Where something was out of range, all pairs anew, into the first slot; the others get nothing.
GPU_KERNEL(kRows, 4)
careful_online_kernel(const Online in) {
  if (*in.pairs.irregular == 0) return;
  double* slots = &gpu::shared<double>();
  for (int64_t n = blockIdx.x; n < in.pairs.N; n += gridDim.x) {
    Known<double> known;
    double energy = 0;
    const int64_t own = in.has_own() ? in.own_of(n) : -1;
    for (int64_t m = threadIdx.x; m < in.pairs.M; m += kRows) {
      const Exact pair(in, n, m);
      if (in.origins && m == own) energy = pair.q + pair.g;
      if (in.left_out && m == own) continue;
      const double density = pair.k - pair.q - pair.g;
      known.raise(gpu::most(known.most, density));
      known.include(known.weight(density, 0), pair.q, pair.g, pair.k);
    }
    known.raise(over_block<kRows>(known.most, slots, [](double a, double b) { return gpu::most(a, b); }));
    double found[] = {known.most, known.total, known.q, known.g, known.k, energy};
    for (int j = 1; j < kNumbers; ++j) found[j] = sum_over_block<kRows>(found[j], slots);
    if (threadIdx.x != 0) continue;
    for (int slot = 0; slot < in.slots; ++slot) {
      double* to = in.parts + static_cast<int64_t>(slot) * kNumbers * in.pairs.N + n;
      for (int j = 0; j < kNumbers; ++j) {
        to[static_cast<int64_t>(j) * in.pairs.N] = slot == 0 ? found[j] : j == 0 ? -gpu::infinity<double>() : 0;
      }
    }
  }
}

// The numbers of each sample, of all slots in their order.
GPU_KERNEL(kRows, 8)
online_finish_kernel(const Online in) {
  const int64_t n = blockIdx.x * static_cast<int64_t>(kRows) + threadIdx.x, N = in.pairs.N;
  if (n >= N) return;
  auto at = [&](int slot, int j) { return in.parts[(static_cast<int64_t>(slot) * kNumbers + j) * N + n]; };
  double most = -gpu::infinity<double>();
  for (int slot = 0; slot < in.slots; ++slot) most = gpu::most(most, at(slot, 0));
  Known<double> known;
  double energy = 0;
  for (int slot = 0; slot < in.slots; ++slot) {
    Known<double> more{at(slot, 0), at(slot, 1), at(slot, 2), at(slot, 3), at(slot, 4)};
    more.raise(most);
    known.total += more.total, known.q += more.q, known.g += more.g, known.k += more.k;
    energy += at(slot, 5);
  }
  double log_sum = most == -gpu::infinity<double>() ? most : most + ::log(known.total);
  // A weight that is NaN belongs to no density that is the largest.
  if (known.total != known.total) log_sum = known.total;
  if (in.origins) {  // NaN where there is no such component
    const int64_t own = in.own_of(n);
    if (own < 0 || own >= in.pairs.M) energy = __builtin_nan("");
  }
  const double found[] = {log_sum, known.q / known.total, known.g / known.total, known.k / known.total, energy};
  for (int j = 0; j < 5; ++j) in.rows[j * N + n] = found[j];
}

}  // namespace fused_mi
