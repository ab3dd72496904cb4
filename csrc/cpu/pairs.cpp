// Forward: a tile of samples times a tile of components, packed for a block of features at a time.
//
// The features lie across the lanes, and a few pairs at a time stay in registers: two fused
// multiply-adds for each pair and feature. Sums of at most `kDepth` features meet in float64.
#include "pairs_tile.h"

namespace fused_mi::FUSED_MI_PATH {
namespace {

// `sum_e (log v + log 2 pi)` of a row at a run; `next`: the row after it, to be fetched meanwhile.
template <class A, class In>
double logs_of_row(
    const View& stds, int64_t row, int64_t next, const Run& run, double eps, bool& regular) {
  alignas(64) In buffer[sizeof(In) > 2 ? PairsCut::kDepth : 1];
  const Row<In> sigma{
      read(stds, row, run.s, run.e, run.width, buffer), stds.at(next, run.s, run.e)};
  Logs<A> logs;
  auto variance = [&](int f, auto part) __attribute__((always_inline)) {
    sigma.fetch(f);
    V<A> of_row = load<A>(sigma.now + f, part);
    return inside<A>(of_row * of_row + static_cast<A>(eps), all<A>(1), part);
  };
  constexpr int L = kLanes<A>;
  int f = 0;
  for (; f + 2 * L <= run.width; f += 2 * L) {
    logs.add({variance(f, Whole{}), variance(f + L, Whole{})});
  }
  over_vectors<A>(run.width - f, [&](int rest, auto part) __attribute__((always_inline)) {
    logs.add({variance(f + rest, part)});
  });
  regular &= logs.range.regular();
  return logs.value() + 1.8378770664093454836 * run.width;
}

// Of one role, at some units: row by row, as they lie in memory. 0 where a row has no part.
// `to`: (units, stride), of the first row.
template <class A, class In, class RunOf, class Contributes>
FUSED_MI_INLINE bool logs_of_rows(
    const View& stds, Rows rows, Rows units, double eps, double* to, int64_t stride,
    RunOf&& run_of, Contributes&& contributes) {
  bool regular = true;
  for (int64_t row = rows.start; row < rows.stop; ++row) {
    const int64_t next = row + 1 < rows.stop ? row + 1 : row;
    for (int64_t unit = units.start; unit < units.stop; ++unit) {
      const Run run = run_of(unit);
      to[unit * stride + row - rows.start] =
          contributes(row, run) ? logs_of_row<A, In>(stds, row, next, run, eps, regular) : 0;
    }
  }
  return regular;
}

// Of the rows of a tile: of each role by the first tile of the other role. False where variances are
// not regular.
template <class A, class In, class RunOf>
bool logs_of_tile(
    const PairsForward& call, const Tile& tile, int64_t d, Rows units, RunOf&& run_of) {
  const MomentsInputs& in = call.in;
  const PairsCut& cut = call.cut;
  const Mixture& m = tile.mixture;
  bool regular = true;
  if (tile.samples.start == m.samples.start) {
    regular = logs_of_rows<A, In>(
        in.stds, tile.components, units, m.component_eps,
        call.component_logs + d * cut.units * cut.components + tile.components.start -
            m.components.start,
        cut.components, run_of, [&](int64_t row, const Run& run) {
          return component_contributes(in, m, *run.position, row, run.s);
        });
  }
  if (in.own_stds && tile.components.start == m.components.start) {
    regular &= logs_of_rows<A, In>(
        in.stds, tile.samples, units, m.sample_eps,
        call.sample_logs + d * cut.units * cut.samples + tile.samples.start - m.samples.start,
        cut.samples, run_of, [&](int64_t row, const Run& run) {
          return sample_contributes(in, m, *run.position, row, run.s);
        });
  }
  return regular;
}

// Templates of the standard library would be shared between the paths, see paths.h.
FUSED_MI_INLINE int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

FUSED_MI_INLINE int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}

Rows part(Rows rows, int64_t tile, int64_t size) {
  int64_t start = rows.start + tile * size;
  return {start, smaller(start + size, rows.stop)};
}

template <class A, class In>
bool distances_of_item(const PairsForward& call, Panel<A>& panel, int64_t item) {
  const PairsCut& cut = call.cut;
  const MomentsInputs& in = call.in;
  const int64_t split = item % cut.splits, at = item / cut.splits;
  const int64_t tile_m = at % cut.tiles_m, tile_n = at / cut.tiles_m % cut.tiles_n;
  const int64_t d = at / cut.tiles_m / cut.tiles_n, M = cut.components;
  const Mixture& m = in.mixtures[d];
  const Position* positions = call.positions + d * in.S;
  const Tile tile{
      in,
      m,
      part(m.samples, tile_n, cut.tile_samples),
      part(m.components, tile_m, cut.tile_components),
      call.part(split, d) + tile_n * cut.tile_samples * M + tile_m * cut.tile_components,
      M};
  for (int64_t n = 0; n < tile.samples.count(); ++n) {
    std::memset(tile.sums + n * M, 0, tile.components.count() * sizeof(double));
  }

  const int64_t batch = larger(kDepth<A> * kLanes<A> / cut.width, 1);
  const int64_t begin = split * cut.units_per_split;
  const int64_t end = smaller(begin + cut.units_per_split, cut.units);
  auto run_of = [&](int64_t unit) {
    const int64_t s = unit / cut.blocks, e = unit % cut.blocks * cut.width;
    return Run{s, e, cut.width_at(e), positions + s};
  };
  auto choose = [&](const Run& run) {
    panel.next.choose(in, m, *run.position, run.s, tile.samples, tile.components);
  };
  for (int64_t unit = begin; unit < end; ++unit) {
    if ((unit - begin) % batch == 0) {
      const Rows units{unit, smaller(unit + batch, end)};
      if (!logs_of_tile<A, In>(call, tile, d, units, run_of)) return false;
    }
    const Run run = run_of(unit);
    if (unit == begin || run.e == 0) choose(run);
    if (!panel.next) continue;
    if (!panel.takes(run)) {
      if (!flush<A, In>(tile, panel, &run)) return false;
      panel.now.copy(panel.next);
    }
    panel.add(run);
  }
  if (end == cut.units) return flush<A, In>(tile, panel, nullptr);
  const Run run = run_of(end);  // the next item goes on there
  choose(run);
  return flush<A, In>(tile, panel, &run);
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
    int64_t* to = call.component_bits + item * call.cut.components;
    for (int64_t row = m.components.start; row < m.components.stop; ++row) {
      *to++ = component_contributes(in, m, call.positions[item], row, s) ? -1 : 0;
    }
  }
}

// Half of the sums over units, for one sample and all components of mixture d. False: see `finish`.
bool finish_row(const PairsForward& call, int64_t d, int64_t n, double* q, double* g, double* k) {
  const PairsCut& cut = call.cut;
  const MomentsInputs& in = call.in;
  const Mixture& mixture = in.mixtures[d];
  const int64_t N = cut.samples, M = cut.components;
  const double most = in.wide ? INFINITY : kLargestSum;
  bool known = true;
  constexpr int64_t kWidth = 256;
  for (int64_t first = 0; first < M; first += kWidth) {
    const int width = static_cast<int>(smaller(kWidth, M - first));
    double of_q[kWidth] = {}, of_g[kWidth] = {}, of_k[kWidth] = {};
    for (int64_t split = 0; split < cut.splits; ++split) {
      const double* from = call.part(split, d) + n * M + first;
      for (int j = 0; j < width; ++j) of_q[j] += from[j];
    }
    for (int64_t s = 0; s < in.S; ++s) {
      const Position& p = call.positions[d * in.S + s];
      if (!sample_contributes(in, mixture, p, mixture.samples.start + n, s)) continue;
      const int64_t unit = d * cut.units + s * cut.blocks;
      double own = 0;
      for (int64_t block = unit; block < unit + cut.blocks; ++block) {
        const double* from = call.component_logs + block * M + first;
        for (int j = 0; j < width; ++j) of_g[j] += from[j];
        if (in.own_stds) own += call.sample_logs[block * N + n];
      }
      if (!in.own_stds) continue;
      int64_t bits;  // selected, not multiplied: a log may be infinite
      std::memcpy(&bits, &own, sizeof bits);
      const int64_t* from = call.component_bits + (d * in.S + s) * M + first;
      for (int j = 0; j < width; ++j) {
        int64_t chosen = bits & from[j];
        double value;
        std::memcpy(&value, &chosen, sizeof value);
        of_k[j] += value;
      }
    }
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
