// The log-sum-exp over components while their energies are found, tile by tile: none is kept. What both
// directions share.
#pragma once

#include "two.h"

#include "pairs_tile.h"

namespace fused_mi {

struct Online {
  Pairs pairs;  // of some samples and some components of a mixture
  const Two<float>* of_components = nullptr;  // (M, S): logs of their determinants
  const Two<float>* of_samples = nullptr;     // (N, S): of the samples' own; or
  const Two<float>* log_weights = nullptr;    // (M,): in place of those; or nothing
  const int64_t* origins = nullptr;           // (N,)
  int64_t own = 0;  // the component of sample i is its origin plus this, or i plus this
  bool left_out = false;
  double* sums = nullptr;  // (blocks, pairs of a tile): where a row has more than one chunk

  // forward
  double* parts = nullptr;  // (slots, kNumbers, N)
  double* rows = nullptr;   // (5, N), see Logsumexp
  int tiles_per_split = 0, splits = 0, slots = 0;

  // backward
  const double* state = nullptr;     // (5, samples) of the mixture, from the first of these samples on
  const double* upstream = nullptr;  // (5, samples), the same; or (5, 1)
  bool each = false;                 // which of the two
  int64_t samples = 0, partners = 0; // of the mixture, and whom each of them meets
  float *of_q = nullptr, *of_g = nullptr, *of_k = nullptr;  // (N, row) written, where they are wanted
  int64_t row = 0;                                          // a multiple of 4

  GPU_DEVICE bool has_own() const { return left_out || origins; }
  GPU_DEVICE int64_t own_of(int64_t n) const { return own + (origins && n < pairs.N ? origins[n] : n); }
  GPU_DEVICE bool several() const { return pairs.chunks > 1; }
};

// Of a sample and a split: the largest density; relative to it, the sum of the weights and weighted sums of
// q, g and k; the energy of the sample's origin.
constexpr int kNumbers = 6;

// The first row of sums goes, and zeros come in at the end: a loop over rows without copies of its body.
template <class Tile>
GPU_DEVICE void rotate(float (&sums)[Tile::TN][Tile::TM]) {
  GPU_UNROLL
  for (int i = 0; i < Tile::TN; ++i) {
    GPU_UNROLL
    for (int j = 0; j < Tile::TM; ++j) sums[i][j] = i + 1 < Tile::TN ? sums[i + 1][j] : 0.f;
  }
}

// The squared distances of a tile, in registers; of several chunks in memory that the block has for one
// tile, in float64. Whether there are any.
template <class Tile>
GPU_DEVICE bool find_distances(
    const Online& in, typename Tile::Shared& shared, const Spot<Tile>& spot, int first_n, int first_m,
    float (&sums)[Tile::TN][Tile::TM]) {
  const Pairs& pairs = in.pairs;
  const float eps = static_cast<float>(pairs.eps.get(0));
  Chunk<Tile> chunk;
  bool some = false;
  for (int number = 0; chunk.find(pairs, first_n, first_m, number, pairs.chunks); some = true) {
    add_chunk<Tile>(pairs, shared, spot, first_n, first_m, chunk, eps, sums);
    if (!in.several()) continue;
    double* to = in.sums + static_cast<int64_t>(blockIdx.x) * Tile::N * Tile::M + threadIdx.x;
    GPU_LOOP
    for (int i = 0; i < Tile::TN; ++i) {
      const bool here = pairs.sample(first_n + spot.sample(i), chunk.s);
      GPU_UNROLL
      for (int j = 0; j < Tile::TM; ++j, to += Tile::THREADS) {
        const bool met = here && pairs.component(first_m + spot.component(j), chunk.s);
        *to = (some ? *to : 0.0) + (met ? static_cast<double>(sums[0][j]) : 0.0);
      }
      rotate<Tile>(sums);
    }
  }
  return some;
}

// Energies of a sample and four components side by side.
struct Four {
  static constexpr int SIZE = 4;
  int64_t n, m;  // the first component
  Two<float> q[SIZE], g[SIZE], k[SIZE];

  // `sums` are those of a thread's row, `to` where they are in memory, `apart` one another.
  GPU_DEVICE Four(
      const Online& in, int64_t n, int64_t m, const float* sums, const double* at, int apart) : n(n), m(m) {
    const Pairs& pairs = in.pairs;
    GPU_UNROLL
    for (int j = 0; j < SIZE && at; ++j) q[j] = halves<float>(at[j * apart] / 2);
    for (int64_t s = 0; s < pairs.S; ++s) {
      if (!pairs.sample(n, s)) continue;
      Two<float> own;
      if (in.of_samples) own = in.of_samples[n * pairs.S + s];
      GPU_UNROLL
      for (int j = 0; j < SIZE; ++j) {
        if (!pairs.component(m + j, s)) continue;
        if (!in.several()) q[j].high = sums[j] / 2;
        g[j] = added(g[j], in.of_components[(m + j) * pairs.S + s]);
        if (in.of_samples) k[j] = added(k[j], own);
      }
    }
    GPU_UNROLL
    for (int j = 0; j < SIZE && in.log_weights; ++j) {
      if (m + j < pairs.M) k[j] = in.log_weights[m + j];
    }
  }
  GPU_DEVICE bool here(const Online& in, int j) const { return n < in.pairs.N && m + j < in.pairs.M; }
  GPU_DEVICE bool odd(const Online& in) const {
    bool found = false;
    GPU_UNROLL
    for (int j = 0; j < SIZE; ++j) found |= here(in, j) && !(q[j].high < Limits<float>::SUM);
    return found;
  }
  GPU_DEVICE Two<float> density(int j) const {
    return added(added(k[j], negative(q[j])), negative(g[j]));
  }
};

// The energies of one pair, where something is out of range: in float64.
struct Exact {
  double q = 0, g = 0, k = 0;

  GPU_DEVICE Exact(const Online& in, int64_t n, int64_t m) {
    const Pairs& pairs = in.pairs;
    q = careful_energy(pairs, n, m);
    for (int64_t s = 0; s < pairs.S; ++s) {
      if (!pairs.sample(n, s) || !pairs.component(m, s)) continue;
      g += in.of_components[m * pairs.S + s].sum();
      if (in.of_samples) k += in.of_samples[n * pairs.S + s].sum();
    }
    if (in.log_weights) k = in.log_weights[m].sum();
  }
};

}  // namespace fused_mi
