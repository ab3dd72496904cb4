// Gradients of the energies of all pairs: the differences once more, weighted by the upstream gradients and
// added up over the other role.
//
// A block has some rows of a gradient and 64 features of one position, a thread SIDE x 4 of these, and rows of
// the other role pass by, eight at a time: a slab; as in pairs_tile.h one slab is on its way, one is
// prepared, and one is computed. Differences are direct: a product of matrices would cancel where a sample is
// close to one component and far from the rest. No atomics: a block owns what it writes.
#pragma once

#include "pairs_tile.h"

namespace fused_mi {

template <class F_, int SIDE_>
struct GradientTile {
  using F = F_;
  using T = typename F::Number;
  static constexpr int V = F::V;
  static constexpr int SIDE = SIDE_, ACROSS = 4;  // elements of a thread
  static constexpr int FEATURES = 64, DEPTH = 8, THREADS = 128, PAD = 4;
  static constexpr int ROWS = SIDE * THREADS / (FEATURES / ACROSS);
  static constexpr int PIECES = FEATURES / V, COPIES = DEPTH * PIECES / THREADS;
  static constexpr int BLOCKS = sizeof(T) == 8 ? 2 : 4;
  static constexpr int UPSTREAM = DEPTH * ROWS / THREADS;

  struct Raw {  // each thread reads its own alone
    typename F::Raw first[COPIES][THREADS], mu[COPIES][THREADS], stds[COPIES][THREADS];
  };
  struct Ready {
    alignas(16) T first[DEPTH][FEATURES];   // r, or y
    alignas(16) T second[DEPTH][FEATURES];  // c r, or nothing
    alignas(16) T upstream[DEPTH][ROWS + PAD];
  };
  struct Shared {
    Raw raw[2];
    Ready ready[2];
  };
  struct Ahead {  // of a slab, in the registers of a thread
    T upstream[UPSTREAM];
    unsigned use;  // a bit for each copy: whether its row contributes
  };
};

// Where a block and a thread are.
template <class Tile>
struct Field {
  int first_row;
  int64_t s, first_e;
  int row, column;  // of this thread, in the block

  GPU_DEVICE Field(int rows, const Pairs& in) {
    const int64_t tiles = (rows + Tile::ROWS - 1) / Tile::ROWS;
    const int64_t tiles_e = (in.E + Tile::FEATURES - 1) / Tile::FEATURES;
    first_row = static_cast<int>(blockIdx.x % tiles) * Tile::ROWS;
    first_e = blockIdx.x / tiles % tiles_e * Tile::FEATURES;
    s = blockIdx.x / tiles / tiles_e;
    row = threadIdx.x / (Tile::FEATURES / Tile::ACROSS) * Tile::SIDE;
    column = threadIdx.x % (Tile::FEATURES / Tile::ACROSS) * Tile::ACROSS;
  }
};

template <class Tile>
using Square = typename Tile::T[Tile::SIDE][Tile::ACROSS];

// Of rows of this thread that are `here`, its columns; 0 elsewhere.
template <class Tile, class Here>
GPU_DEVICE void load_square(
    const View& from, int start, const Field<Tile>& at, int64_t E, const Here& here, Square<Tile>& to) {
  using F = typename Tile::F;
  GPU_UNROLL
  for (int i = 0; i < Tile::SIDE; ++i) {
    GPU_UNROLL
    for (int j = 0; j < Tile::ACROSS; j += F::V) {
      const int64_t e = at.first_e + at.column + j;
      typename F::Raw raw{};
      if (here(i) && e < E) raw = F::load(from, from.at(start + at.first_row + at.row + i, at.s, e));
      GPU_UNROLL
      for (int k = 0; k < F::V; ++k) to[i][j + k] = here(i) && e < E ? F::get(raw, k) : 0;
    }
  }
}

template <class Tile, class F>
GPU_DEVICE void store_square_as(
    const View& to, int start, int rows, const Field<Tile>& at, int64_t E, bool add, const Square<Tile>& from) {
  GPU_UNROLL
  for (int i = 0; i < Tile::SIDE; ++i) {
    if (at.first_row + at.row + i >= rows) continue;
    GPU_UNROLL
    for (int j = 0; j < Tile::ACROSS; j += F::V) {
      const int64_t e = at.first_e + at.column + j;
      if (e >= E) continue;
      const int64_t place = to.at(start + at.first_row + at.row + i, at.s, e);
      typename F::Raw before{};
      if (add) before = F::load(to, place);
      typename Tile::T values[F::V];
      GPU_UNROLL
      for (int k = 0; k < F::V; ++k) values[k] = add ? F::get(before, k) + from[i][j + k] : from[i][j + k];
      F::store(to, place, values);
    }
  }
}

// In the type of the inputs, or in float32, in which gradients of several blocks of pairs add up.
template <class Tile>
GPU_DEVICE void store_square(
    const View& to, int start, int rows, const Field<Tile>& at, int64_t E, bool add, const Square<Tile>& from) {
  using F = typename Tile::F;
  if (!to.data) return;
  if constexpr (F::V > 1) {
    if (to.type == Type::float32) {
      return store_square_as<Tile, Packed<float, float, F::V>>(to, start, rows, at, E, add, from);
    }
  }
  store_square_as<Tile, F>(to, start, rows, at, E, add, from);
}

// The shift of this thread's columns.
template <class Tile>
GPU_DEVICE void load_shift(const Pairs& in, const Field<Tile>& at, typename Tile::T (&to)[Tile::ACROSS]) {
  const auto* shift = static_cast<const typename Tile::T*>(in.shift) + at.s * in.E;
  GPU_UNROLL
  for (int j = 0; j < Tile::ACROSS; ++j) {
    const int64_t e = at.first_e + at.column + j;
    to[j] = e < in.E ? shift[e] : 0;
  }
}

// Slabs of the other role pass by, from `begin` on: `fetch(slab, raw, ahead)`, `prepare(raw, ahead, ready)` and `meet(ready)`.
template <class Tile, class Fetch, class Prepare, class Meet>
GPU_DEVICE void pass_by(
    int begin, int stop, typename Tile::Shared& shared, const Fetch& fetch, const Prepare& prepare,
    const Meet& meet) {
  typename Tile::Ahead ahead[2];
  const int first = begin / Tile::DEPTH, end = (stop + Tile::DEPTH - 1) / Tile::DEPTH;
  fetch(first, shared.raw[0], ahead[0]);
  fetch(first + 1, shared.raw[1], ahead[1]);
  gpu::wait<1>();
  prepare(shared.raw[0], ahead[0], shared.ready[0]);
  auto step = [&](int slab, int at) {
    gpu::wait<0>();
    gpu::barrier();
    prepare(shared.raw[1 - at], ahead[1 - at], shared.ready[1 - at]);
    fetch(slab + 2, shared.raw[at], ahead[at]);
    meet(shared.ready[at]);
  };
  for (int slab = first; slab < end; slab += 2) {  // a slab beyond the last one adds nothing
    step(slab, 0);
    step(slab + 1, 1);
  }
  gpu::wait<0>();  // redundant: what is on its way are zeros that nobody reads
}

}  // namespace fused_mi
