// Squared distances of all pairs, by tiles of them.
#pragma once

#include "pairs_tile.h"

namespace fused_mi {

// Adds the sums of a chunk to the pairs that share the position, in float64, and clears them.
template <class Tile>
GPU_DEVICE void flush(
    const Pairs& in, double* parts, const Spot<Tile>& spot, int first_n, int first_m, int s, bool first,
    typename Tile::T (&sums)[Tile::TN][Tile::TM]) {
  using T = typename Tile::T;
  unsigned components = 0;
  bool odd = false;
  GPU_UNROLL
  for (int j = 0; j < Tile::TM; ++j) {
    components |= static_cast<unsigned>(in.component(first_m + spot.component(j), s)) << j;
  }
  GPU_UNROLL
  for (int i = 0; i < Tile::TN; ++i) {
    const int64_t n = first_n + spot.sample(i);
    const bool here = in.sample(n, s);
    GPU_UNROLL
    for (int j = 0; j < Tile::TM; ++j) {
      const int64_t m = first_m + spot.component(j);
      const bool met = here && components >> j & 1;
      odd |= met && !(sums[i][j] < gpu::infinity<T>());
      if (n < in.N && m < in.M) {
        double& to = parts[n * in.M + m];
        const double more = met ? static_cast<double>(sums[i][j]) : 0;
        to = first ? more : to + more;
      }
      sums[i][j] = 0;
    }
  }
  if (odd) gpu::raise(in.irregular);
}

template <class Tile>
GPU_KERNEL(Tile::THREADS, Tile::BLOCKS)
distances_kernel(const Pairs in) {
  using T = typename Tile::T;
  auto& shared = gpu::shared<typename Tile::Shared>();
  const Spot<Tile> spot;
  const int64_t tiles_n = (in.N + Tile::N - 1) / Tile::N, tiles_m = (in.M + Tile::M - 1) / Tile::M;
  const int first_n = static_cast<int>(blockIdx.x % tiles_n) * Tile::N;
  const int first_m = static_cast<int>(blockIdx.x / tiles_n % tiles_m) * Tile::M;
  const int split = static_cast<int>(blockIdx.x / tiles_n / tiles_m);
  const int left = in.chunks - split * in.chunks_per_split;
  int number = split * in.chunks_per_split;
  const int end = number + (left < in.chunks_per_split ? left : in.chunks_per_split);
  double* parts = in.parts + static_cast<int64_t>(split) * in.N * in.M;
  const T eps = static_cast<T>(in.eps.get(0));
  T sums[Tile::TN][Tile::TM] = {};
  Chunk<Tile> chunk;
  bool first = true;
  for (; chunk.find(in, first_n, first_m, number, end); first = false) {
    add_chunk<Tile>(in, shared, spot, first_n, first_m, chunk, eps, sums);
    flush<Tile>(in, parts, spot, first_n, first_m, chunk.s, first, sums);
  }
  if (!first) return;
  GPU_UNROLL
  for (int i = 0; i < Tile::TN; ++i) {
    GPU_UNROLL
    for (int j = 0; j < Tile::TM; ++j) {
      const int64_t n = first_n + spot.sample(i), m = first_m + spot.component(j);
      if (n < in.N && m < in.M) parts[n * in.M + m] = 0;
    }
  }
}

}  // namespace fused_mi
