// A tile of samples times a tile of components in registers.
//
// A block walks along the features, DEPTH at a time: a slab. Raw values travel by asynchronous copies, are
// prepared once by the thread that copied them (relative to a shift; components times r = 1/sqrt(v)), and
// are laid down with the features outermost; then every thread meets TN samples with TM components:
// z = y r - c r, and z * z, two multiply-adds. Of three slabs one is on its way, one is prepared, and one
// is computed; there is one barrier for each.
#pragma once

#include "pairs.h"

namespace fused_mi {

// KEEPS: where its rows begin is in the registers of a thread, which small tiles have.
template <class F_, int TN_, int TM_, int ROWS_, int COLUMNS_, int BLOCKS_, bool KEEPS_ = false>
struct PairsTile {
  using F = F_;
  using T = typename F::Number;
  static constexpr int V = F::V;
  static constexpr int TN = TN_, TM = TM_;                // pairs of a thread
  static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_;  // threads
  static constexpr int THREADS = ROWS * COLUMNS, BLOCKS = BLOCKS_;
  static constexpr bool KEEPS = KEEPS_;
  static constexpr int N = TN * ROWS, M = TM * COLUMNS;
  static constexpr int DEPTH = 8, PIECES = DEPTH / V, PAD = 4;
  static constexpr int COPIES_N = N * PIECES / THREADS, COPIES_M = M * PIECES / THREADS;
  static_assert(COPIES_N * THREADS == N * PIECES && COPIES_M * THREADS == M * PIECES);

  // Copy i of a thread: which row of the tile it is of, and its first feature in the slab.
  static GPU_DEVICE int row(int i) { return (i * THREADS + threadIdx.x) / PIECES; }
  static GPU_DEVICE int feature() { return threadIdx.x % PIECES * V; }

  struct Raw {  // each thread reads its own alone
    typename F::Raw y[COPIES_N][THREADS], x[COPIES_M][THREADS], mu[COPIES_M][THREADS];
    typename F::Raw stds[COPIES_M][THREADS];
    gpu::Vector<T, V> shift[THREADS];
  };
  struct Ready {
    alignas(16) T y[DEPTH][N + PAD];
    alignas(16) T r[DEPTH][M + PAD];
    alignas(16) T c[DEPTH][M + PAD];
  };
  struct Shared {
    Raw raw[2];
    Ready ready[2];
  };
};

// From global memory into a place of shared memory: there after `wait` where a format copies its elements
// as they are, at once where it converts them.
template <class F>
GPU_DEVICE void fetch(typename F::Raw& to, const View& from, int64_t at, bool inside) {
  if constexpr (F::V == 1) {
    to = inside ? F::load(from, at) : typename F::Raw{};
  } else {
    using Element = typename F::Element;
    gpu::copy_async<sizeof(to)>(&to, static_cast<const Element*>(from.data) + at, inside);
  }
}
template <class T, int V>
GPU_DEVICE void fetch(gpu::Vector<T, V>& to, const T* from, bool inside) {
  if constexpr (sizeof(to) < 16) {
    GPU_UNROLL
    for (int j = 0; j < V; ++j) to.at[j] = inside ? from[j] : T(0);
  } else {
    gpu::copy_async<sizeof(to)>(&to, from, inside);
  }
}

// The features of a position that a block adds up before it looks at the masks, and which rows of this
// thread's copies contribute there.
template <class Tile>
struct Chunk {
  int s = 0, e = 0, stop = 0;  // features from e on, before `stop`
  unsigned samples = 0, components = 0;  // a bit for each copy of this thread
  static constexpr int KEPT_N = Tile::KEEPS ? Tile::COPIES_N : 1, KEPT_M = Tile::KEEPS ? Tile::COPIES_M : 1;
  using Start = const typename Tile::F::Element*;  // feature 0 of a row
  Start y[KEPT_N], x[KEPT_M], mu[KEPT_M], stds[KEPT_M];

  // The first chunk from `number` on, before `end`, to which some pair of the tile contributes; whether
  // there is one. A call for whole warps, with the same answer in all.
  GPU_DEVICE bool find(const Pairs& in, int first_n, int first_m, int& number, int end) {
    const int E = static_cast<int>(in.E), per_position = (E + kChunk - 1) / kChunk;
    for (; number < end; ++number) {
      s = number / per_position;
      bool some_n = false, some_m = false;
      for (int i = threadIdx.x % 32; i < Tile::N; i += 32) some_n |= in.sample(first_n + i, s);
      for (int i = threadIdx.x % 32; i < Tile::M; i += 32) some_m |= in.component(first_m + i, s);
      if (gpu::ballot(some_n) && gpu::ballot(some_m)) break;
    }
    if (number >= end) return false;
    e = number % per_position * kChunk;
    stop = E - e < kChunk ? E : e + kChunk;
    samples = components = 0;
    GPU_UNROLL
    for (int i = 0; i < Tile::COPIES_N; ++i) {
      samples |= static_cast<unsigned>(in.sample(first_n + Tile::row(i), s)) << i;
    }
    GPU_UNROLL
    for (int i = 0; i < Tile::COPIES_M; ++i) {
      components |= static_cast<unsigned>(in.component(first_m + Tile::row(i), s)) << i;
    }
    ++number;
    if constexpr (Tile::KEEPS) {
      using F = typename Tile::F;
      const auto start = [&](const View& v, int64_t row) {
        return static_cast<Start>(v.data) + place<F>(v, row, s, 0);
      };
      GPU_UNROLL
      for (int i = 0; i < KEPT_N; ++i) y[i] = start(in.y, in.sample_start + first_n + Tile::row(i));
      GPU_UNROLL
      for (int i = 0; i < KEPT_M; ++i) {
        const int64_t row = in.component_start + first_m + Tile::row(i);
        x[i] = start(in.x, row), mu[i] = start(in.mu, row), stds[i] = start(in.stds, row);
      }
    }
    return true;
  }
};

// Features from e on, of the rows that contribute; zeros beyond the last one.
template <class Tile>
GPU_DEVICE void fetch_slab(
    const Pairs& in, int first_n, int first_m, const Chunk<Tile>& chunk, int e, typename Tile::Raw& to) {
  using F = typename Tile::F;
  const int thread = threadIdx.x;
  e += Tile::feature();
  const bool inside = e < chunk.stop;
  const auto copy = [&](typename F::Raw& raw, const View& v, int64_t row, const auto& kept, int i, bool here) {
    if constexpr (Tile::KEEPS) {
      gpu::copy_async<sizeof(raw)>(&raw, kept[i] + e, here);
    } else {
      fetch<F>(raw, v, place<F>(v, row, chunk.s, e), here);
    }
  };
  GPU_UNROLL
  for (int i = 0; i < Tile::COPIES_N; ++i) {
    const bool here = inside && chunk.samples >> i & 1;
    copy(to.y[i][thread], in.y, in.sample_start + first_n + Tile::row(i), chunk.y, i, here);
  }
  GPU_UNROLL
  for (int i = 0; i < Tile::COPIES_M; ++i) {
    const bool here = inside && chunk.components >> i & 1;
    const int64_t row = in.component_start + first_m + Tile::row(i);
    copy(to.x[i][thread], in.x, row, chunk.x, i, here);
    if (in.mu.data) copy(to.mu[i][thread], in.mu, row, chunk.mu, i, here);
    copy(to.stds[i][thread], in.stds, row, chunk.stds, i, here);
  }
  fetch(to.shift[thread], static_cast<const typename Tile::T*>(in.shift) + chunk.s * in.E + e, inside);
  gpu::commit();
}

// What does not contribute has r = c = 0 as a component; as a sample it is deselected later.
template <class Tile>
GPU_DEVICE void prepare_slab(
    const Pairs& in, const Chunk<Tile>& chunk, int e, typename Tile::T eps,
    const typename Tile::Raw& from, typename Tile::Ready& to) {
  using F = typename Tile::F;
  using T = typename Tile::T;
  const int thread = threadIdx.x, piece = Tile::feature();
  const bool inside = e + piece < chunk.stop;
  const gpu::Vector<T, Tile::V> shift = from.shift[thread];
  GPU_UNROLL
  for (int i = 0; i < Tile::COPIES_N; ++i) {
    const typename F::Raw y = from.y[i][thread];
    GPU_UNROLL
    for (int j = 0; j < Tile::V; ++j) to.y[piece + j][Tile::row(i)] = F::get(y, j) - shift.at[j];
  }
  GPU_UNROLL
  for (int i = 0; i < Tile::COPIES_M; ++i) {
    const bool here = inside && chunk.components >> i & 1;
    const typename F::Raw x = from.x[i][thread], stds = from.stds[i][thread];
    typename F::Raw mu{};
    if (in.mu.data) mu = from.mu[i][thread];
    const T added = here ? eps : gpu::infinity<T>();  // then r = 0
    GPU_UNROLL
    for (int j = 0; j < Tile::V; ++j) {
      const T sigma = F::get(stds, j), r = gpu::inverse_root(gpu::fma(sigma, sigma, added));
      to.r[piece + j][Tile::row(i)] = r;
      to.c[piece + j][Tile::row(i)] = ((F::get(x, j) - shift.at[j]) + F::get(mu, j)) * r;
    }
  }
}

// COUNT values that lie four together, `apart` from the next four.
template <int COUNT, class T>
GPU_DEVICE void operands(const T* from, int apart, T (&to)[COUNT]) {
  GPU_UNROLL
  for (int i = 0; i < COUNT; i += 4) {
    GPU_UNROLL
    for (int k = 0; k < 4; k += 16 / static_cast<int>(sizeof(T))) {
      using Part = gpu::Vector<T, 16 / sizeof(T)>;
      const Part part = *reinterpret_cast<const Part*>(from + i / 4 * apart + k);
      GPU_UNROLL
      for (int j = 0; j < static_cast<int>(16 / sizeof(T)); ++j) to[i + k + j] = part.at[j];
    }
  }
}

// Threads lie in a warp as 4 x 8, so that a warp needs few different operands.
template <class Tile>
struct Spot {
  int row, column;
  GPU_DEVICE Spot() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    constexpr int ACROSS = Tile::COLUMNS / 8;
    row = warp / ACROSS * 4 + lane / 8;
    column = warp % ACROSS * 8 + lane % 8;
  }
  GPU_DEVICE int sample(int i) const { return i / 4 * 4 * Tile::ROWS + row * 4 + i % 4; }
  GPU_DEVICE int component(int i) const { return i / 4 * 4 * Tile::COLUMNS + column * 4 + i % 4; }
};

template <class Tile>
GPU_DEVICE void meet(
    const typename Tile::Ready& from, const Spot<Tile>& spot, typename Tile::T (&sums)[Tile::TN][Tile::TM]) {
  using T = typename Tile::T;
  GPU_UNROLL
  for (int k = 0; k < Tile::DEPTH; ++k) {
    T y[Tile::TN];
    operands(&from.y[k][spot.row * 4], 4 * Tile::ROWS, y);
    GPU_UNROLL
    for (int j = 0; j < Tile::TM; j += 4) {  // four components at a time: fewer registers
      T r[4], c[4];
      operands(&from.r[k][j * Tile::COLUMNS + spot.column * 4], 0, r);
      operands(&from.c[k][j * Tile::COLUMNS + spot.column * 4], 0, c);
      GPU_UNROLL
      for (int i = 0; i < Tile::TN; ++i) {
        GPU_UNROLL
        for (int l = 0; l < 4; ++l) {
          const T z = gpu::fma(y[i], r[l], -c[l]);
          sums[i][j + l] = gpu::fma(z, z, sums[i][j + l]);
        }
      }
    }
  }
}

// Adds the features of a chunk to the sums; for the whole block.
template <class Tile>
GPU_DEVICE void add_chunk(
    const Pairs& in, typename Tile::Shared& shared, const Spot<Tile>& spot, int first_n, int first_m,
    const Chunk<Tile>& chunk, typename Tile::T eps, typename Tile::T (&sums)[Tile::TN][Tile::TM]) {
  constexpr int D = Tile::DEPTH;
  auto fetch_at = [&](int e, int at) {
    fetch_slab<Tile>(in, first_n, first_m, chunk, e, shared.raw[at]);
  };
  auto prepare_at = [&](int e, int at) {
    prepare_slab<Tile>(in, chunk, e, eps, shared.raw[at], shared.ready[at]);
  };
  auto step = [&](int e, int at) {
    gpu::wait<0>();
    gpu::barrier();  // this slab is ready, and the one before it has been read
    prepare_at(e + D, 1 - at);
    fetch_at(e + 2 * D, at);
    meet<Tile>(shared.ready[at], spot, sums);
  };
  fetch_at(chunk.e, 0);
  fetch_at(chunk.e + D, 1);
  gpu::wait<1>();
  prepare_at(chunk.e, 0);
  // Two at a time, for buffers that the compiler knows: a slab beyond the last one adds nothing.
  for (int e = chunk.e; e < chunk.stop; e += 2 * D) {
    step(e, 0);
    step(e + D, 1);
  }
  gpu::wait<0>();  // nothing may be on its way to where the next chunk goes
}

}  // namespace fused_mi
