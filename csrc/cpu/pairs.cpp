// Forward: a tile of samples times a tile of components, packed for a block of features at a time.
//
// The features lie across the lanes, and a few pairs at a time stay in registers: two fused
// multiply-adds for each pair and feature. Sums of at most `kDepth` features meet in float64.
#include "pairs_energies.h"

namespace fused_mi::FUSED_MI_PATH {
namespace {

template <class A, class In>
bool distances_of_item(const PairsForward& call, Panel<A>& panel, int64_t item) {
  const PairsCut& cut = call.cut;
  const int64_t split = item % cut.splits, at = item / cut.splits;
  const int64_t tile_m = at % cut.tiles_m, tile_n = at / cut.tiles_m % cut.tiles_n;
  const int64_t d = at / cut.tiles_m / cut.tiles_n, M = cut.components;
  const Meeting rows = call.of(d);
  const Tile tile{
      call.in,
      call.in.mixtures[d],
      part(rows.samples, tile_n, cut.tile_samples),
      part(rows.components, tile_m, cut.tile_components),
      tile_n == 0,
      call.part(split, d) + tile_n * cut.tile_samples * M + tile_m * cut.tile_components,
      M};
  const int64_t begin = split * cut.units_per_split;
  const Rows units{begin, smaller(begin + cut.units_per_split, cut.units)};
  const Runs run_of(call, d);
  return distances_of_tile<A, In>(call, panel, tile, run_of, units, [&](Rows some) {
    // Of each role by the first tile of the other role, while its rows are in the caches.
    return (tile_n != 0 ||
            logs_of_components<A, In>(call, d, tile.components, some, run_of)) &&
        (tile_m != 0 || logs_of_samples<A, In>(call, d, tile.samples, some, run_of));
  });
}

template <class A>
bool distances_of(const PairsForward& call, char* scratch, int64_t begin, int64_t end) {
  Arena arena{scratch};
  Panel<A> panel(call.cut, arena);
  const MomentsInputs& in = call.in;
  const View* inputs[] = {&in.y, &in.x, &in.mu, &in.stds};
  bool regular = true;
  with_input<A>(inputs, 4, [&](auto type) {
    for (int64_t item = begin; item < end && regular; ++item) {
      regular = distances_of_item<A, decltype(type)>(call, panel, item);
    }
  });
  return regular;
}

bool distances(const PairsForward& call, char* scratch, int64_t begin, int64_t end) {
  return call.in.wide ? distances_of<double>(call, scratch, begin, end)
                      : distances_of<float>(call, scratch, begin, end);
}

int64_t bytes(const PairsForward& call) {
  Arena arena{nullptr};
  call.in.wide ? void(Panel<double>(call.cut, arena)) : void(Panel<float>(call.cut, arena));
  return arena.used;
}

// Which components contribute at positions [begin, end): all bits of a double, or none.
void mark(const PairsForward& call, int64_t begin, int64_t end) {
  const MomentsInputs& in = call.in;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t s = item % in.S;
    const Mixture& m = in.mixtures[item / in.S];
    const Rows rows = call.of(item / in.S).components;
    int64_t* to = call.component_bits + item * call.cut.components;
    for (int64_t row = rows.start; row < rows.stop; ++row) {
      *to++ = component_contributes(in, m, call.positions[item], row, s) ? -1 : 0;
    }
  }
}

// Half of the sums over units, for one sample and all components of mixture d. False: see `finish`.
bool finish_row(const PairsForward& call, int64_t d, int64_t n, double* q, double* g, double* k) {
  const PairsCut& cut = call.cut;
  const MomentsInputs& in = call.in;
  const int64_t M = cut.components;
  const double most = in.wide ? INFINITY : kLargestSum;
  const int64_t row = call.of(d).samples.start + n;
  auto here = [&](int64_t s) {
    return sample_contributes(in, in.mixtures[d], call.positions[d * in.S + s], row, s);
  };
  bool known = true;
  constexpr int64_t kWidth = 256;
  for (int64_t first = 0; first < M; first += kWidth) {
    const int width = static_cast<int>(smaller(kWidth, M - first));
    double of_q[kWidth] = {}, of_g[kWidth] = {}, of_k[kWidth] = {};
    for (int64_t split = 0; split < cut.splits; ++split) {
      const double* from = call.part(split, d) + n * M + first;
      for (int j = 0; j < width; ++j) of_q[j] += from[j];
    }
    logs_of_pairs(call, d, n, first, width, here, of_g, in.own_stds ? of_k : nullptr);
    for (int j = 0; j < width; ++j) {
      known &= of_q[j] <= most;
      q[first + j] = of_q[j] / 2;
      g[first + j] = of_g[j] / 2;
      k[first + j] = of_k[j] / 2;
    }
  }
  return known;
}

bool finish(const PairsForward& call, int64_t begin, int64_t end) {
  const int64_t N = call.cut.samples, M = call.cut.components;
  bool known = true;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t d = item / N, n = item % N;
    double* q = call.energies + (d * 3 * N + n) * M;
    known &= finish_row(call, d, n, q, q + N * M, q + 2 * N * M);
  }
  return known;
}

}  // namespace

extern const PairsKernels pairs_kernels = {bytes, distances, mark, finish};

}  // namespace fused_mi::FUSED_MI_PATH
