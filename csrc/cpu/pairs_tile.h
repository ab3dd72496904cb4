// A tile of samples times components: the samples of a panel are packed, then components, a few at
// a time, meet all of them.
#pragma once

#include "pairs.h"
#include "pairs_panels.h"

#include <utility>

namespace fused_mi::FUSED_MI_PATH {
namespace {

constexpr int kN = 4;  // samples in registers

template <class A>
constexpr int kDepth = PairsCut::kDepth / (sizeof(A) / 4) / kLanes<A>;  // in vectors

// A block of features of a position.
struct Run {
  int64_t s, e;
  int width;
  const Position* position;
};

// What meets at a time: the same rows at up to kDepth vectors of features.
template <class A>
struct Panel {
  V<A>* samples;     // (groups, kDepth, kN)
  V<A>* components;  // (kDepth, kM, 2): r, and -c r, of one group; it stays in the first cache
  Sizes<A> sizes;    // (kDepth,) each
  Run* runs;         // (kDepth,)
  int count = 0;     // of runs
  int depth = 0;     // of the panel, in vectors
  Lists now, next;   // rows of the panel, and of what will be packed after it

  Panel(const PairsCut& cut, Arena& arena) {
    samples = arena.take<V<A>>(ceil_div(cut.tile_samples, kN) * kN * kDepth<A>);
    components = arena.take<V<A>>(kDepth<A> * kM * 2);
    sizes = {arena.take<V<A>>(kDepth<A>), arena.take<V<A>>(kDepth<A>)};
    runs = arena.take<Run>(kDepth<A>);
    now = Lists(arena, cut.tile_samples, cut.tile_components);
    next = Lists(arena, cut.tile_samples, cut.tile_components);
  }

  FUSED_MI_INLINE V<A>* sample(int j, int v) const {
    return samples + (j / kN * kDepth<A> + v) * kN + j % kN;
  }

  // Whether a run of the rows `next` fits into what is left.
  bool takes(const Run& run) const {
    return depth > 0 && depth + vectors_of(run) <= kDepth<A> && now == next;
  }

  void add(const Run& run) {
    runs[count++] = run;
    depth += vectors_of(run);
  }

  static int vectors_of(const Run& run) {
    return static_cast<int>(ceil_div(run.width, kLanes<A>));
  }
};

// The rows of a tile, wherever they stand in the inputs.
struct Tile {
  const MomentsInputs& in;
  const Mixture& mixture;
  Rows samples, components;
  bool sized;  // it looks for a far shift: one for each tile of components
  double* sums;  // `stride` apart
  int64_t stride;
};

#if defined(__clang__)
#define FUSED_MI_PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define FUSED_MI_PICK(a, b, ...) __builtin_shuffle(a, b, Bits<A>{__VA_ARGS__})
#endif

// `a` and `b` hold groups of 2 * HALF lanes; the two halves of each group are added up, so that the
// result holds groups of HALF lanes: those of a, then those of b.
template <int HALF, class A, int... I>
FUSED_MI_INLINE V<A> fold(V<A> a, V<A> b, std::integer_sequence<int, I...>) {
  constexpr int L = kLanes<A>, H = L / 2;
  V<A> low = FUSED_MI_PICK(a, b, (I % H / HALF * 2 * HALF + I % HALF + (I < H ? 0 : L))...);
  V<A> high = FUSED_MI_PICK(a, b, (I % H / HALF * 2 * HALF + I % HALF + (I < H ? 0 : L) + HALF)...);
  return low + high;
}

// The sum of the lanes of vector j, in lane j; `vectors`: 2 * HALF of them, overwritten.
template <class A, int HALF = kLanes<A> / 2>
FUSED_MI_INLINE V<A> sums_of_lanes(V<A>* vectors) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes<A>>();
#pragma GCC unroll 8
  for (int j = 0; j < HALF; ++j) {
    vectors[j] = fold<HALF, A>(vectors[2 * j], vectors[2 * j + 1], lanes);
  }
  if constexpr (HALF > 1) {
    return sums_of_lanes<A, HALF / 2>(vectors);
  } else {
    return vectors[0];
  }
}

// Rows that are needed soon, one for each group of pairs: components that come next, then what the
// next panel begins with.
template <class A>
struct Ahead {
  const Tile& tile;
  const Lists &now, &next;
  const Run &run, *next_run;  // the first one of the panel, and of the next one, if there is any
  int component = 0, end = 0, next_sample = 0, next_component = 0;

  void components(int first, int count) {
    component = 3 * first;
    end = 3 * (first + count);
  }

  const char* row(int64_t& step) {
    if (component < end) return of_component(now.components, component++, run, step);
    if (next_run && next_sample < next.sample_count) {
      const int64_t row = tile.samples.start + next.samples[next_sample++];
      return of(tile.in.y, row, *next_run, step);
    }
    if (next_run && next_component < 3 * kM && next_component < 3 * next.component_count) {
      return of_component(next.components, next_component++, *next_run, step);
    }
    step = 0;
    return tile.in.y.data;
  }

 private:
  FUSED_MI_INLINE const char* of_component(
      const int32_t* rows, int i, const Run& at, int64_t& step) {
    const MomentsInputs& in = tile.in;
    const View& view = i % 3 == 0 ? in.x : i % 3 == 1 ? in.mu : in.stds;
    return of(view, tile.components.start + rows[i / 3], at, step);
  }

  FUSED_MI_INLINE const char* of(const View& view, int64_t row, const Run& at, int64_t& step) {
    step = kLanes<A> * size_of(view.type);
    return view.at(row, at.s, at.e);
  }
};

// The sums of squares of kN samples times kM components; with each vector, `step` bytes of the row
// `ahead` are fetched.
template <class A>
FUSED_MI_INLINE void pair_group(
    const V<A>* y, const V<A>* c, int depth, const char* ahead, int64_t step,
    A (&sums)[kN * kM]) {
  V<A> total[kN * kM] = {};
  for (int v = 0; v < depth; ++v, y += kN, c += 2 * kM, ahead += step) {
    __builtin_prefetch(ahead, 0, 2);  // to the second cache: the first is full of operands
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) {
#pragma GCC unroll 4
      for (int m = 0; m < kM; ++m) {
        V<A> z = multiply_add(y[n], c[2 * m], c[2 * m + 1]);
        total[n * kM + m] = multiply_add(z, z, total[n * kM + m]);
      }
    }
  }
  static_assert(kN * kM % kLanes<A> == 0);
#pragma GCC unroll 4
  for (int i = 0; i < kN * kM; i += kLanes<A>) {
    V<A> found = sums_of_lanes<A>(total + i);
    std::memcpy(sums + i, &found, kBytes);
  }
}

template <class A, class In>
void pack_samples(const Tile& tile, const Panel<A>& panel) {
  const Lists& lists = panel.now;
  int depth = 0;
  for (int i = 0; i < panel.count; ++i) {
    const Run& run = panel.runs[i];
    Packer<A, In> packer(tile.in, tile.mixture, *run.position, run.s, run.e, run.width);
    packer.samples(
        lists.samples, lists.sample_count, tile.samples.start,
        [&](int j) __attribute__((always_inline)) {
          return Column<A>{panel.sample(j, depth), kN};
        });
    depth += Panel<A>::vectors_of(run);
  }
  for (int j = lists.sample_count; j % kN != 0; ++j) {
    for (int v = 0; v < depth; ++v) *panel.sample(j, v) = V<A>{};
  }
}

// `count` of them, from place `first` of the list on.
template <class A, class In>
void pack_components(
    const Tile& tile, const Panel<A>& panel, const Sizes<A>& sizes, int first, int count) {
  V<A>* to = panel.components;
  int depth = 0;
  for (int i = 0; i < panel.count; ++i) {
    const Run& run = panel.runs[i];
    Packer<A, In> packer(tile.in, tile.mixture, *run.position, run.s, run.e, run.width);
    packer.components(
        panel.now.components + first, count, tile.components.start, sizes.from(depth),
        [&](int j) __attribute__((always_inline)) {
          return Centre<A>{{to + 2 * j, 2 * kM}, {to + 2 * j + 1, 2 * kM}};
        });
    to += Panel<A>::vectors_of(run) * kM * 2;
    depth += Panel<A>::vectors_of(run);
  }
  for (int v = 0; v < panel.depth; ++v) {
    for (int j = 2 * count; j < 2 * kM; ++j) panel.components[v * 2 * kM + j] = V<A>{};
  }
}

// Whether the shift of a run is far from the components of the tile, see `Packer::far`.
template <class A, class In>
bool far(const Tile& tile, const Panel<A>& panel) {
  int depth = 0;
  for (int i = 0; i < panel.count; ++i) {
    const Run& run = panel.runs[i];
    Packer<A, In> packer(tile.in, tile.mixture, *run.position, run.s, run.e, run.width);
    if (packer.far(panel.sizes.from(depth))) return true;
    depth += Panel<A>::vectors_of(run);
  }
  return false;
}

// Adds the pairs of a panel to the sums of the tile. `next_run`: what comes after it, of the rows
// `panel.next`, if anything. False where digits are lost.
template <class A, class In>
bool flush(const Tile& tile, Panel<A>& panel, const Run* next_run) {
  if (panel.depth == 0) return true;
  const Lists& lists = panel.now;
  const Sizes<A> sizes = tile.sized ? panel.sizes : Sizes<A>{};
  sizes.clear(panel.depth);
  pack_samples<A, In>(tile, panel);
  Ahead<A> ahead{tile, lists, panel.next, panel.runs[0], next_run};
  for (int m = 0; m < lists.component_count; m += kM) {
    const int left = lists.component_count - m, columns = left < kM ? left : kM;
    const bool adjacent =
        columns == kM && lists.components[m + kM - 1] - lists.components[m] == kM - 1;
    pack_components<A, In>(tile, panel, sizes, m, columns);
    ahead.components(m + columns, left - columns < kM ? left - columns : kM);
    for (int n = 0; n < lists.sample_count; n += kN) {
      const int rows = lists.sample_count - n < kN ? lists.sample_count - n : kN;
      alignas(64) A sums[kN * kM];
      int64_t step;
      const char* row = ahead.row(step);
      pair_group<A>(panel.sample(n, 0), panel.components, panel.depth, row, step, sums);
      for (int i = 0; i < rows; ++i) {
        double* to = tile.sums + lists.samples[n + i] * tile.stride;
        if (adjacent) {
#pragma GCC unroll 4
          for (int j = 0; j < kM; ++j) to[lists.components[m] + j] += sums[i * kM + j];
        } else {
          for (int j = 0; j < columns; ++j) to[lists.components[m + j]] += sums[i * kM + j];
        }
      }
    }
  }
  const bool exact = !tile.sized || !far<A, In>(tile, panel);
  panel.count = panel.depth = 0;
  return exact;
}

}  // namespace
}  // namespace fused_mi::FUSED_MI_PATH
