// What the energies of a tile of pairs are made of: squared distances, and logs of variances.
#pragma once

#include "pairs_tile.h"

namespace fused_mi::FUSED_MI_PATH {
namespace {

// Templates of the standard library would be shared between the paths, see paths.h.
FUSED_MI_INLINE int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

FUSED_MI_INLINE int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}

FUSED_MI_INLINE Rows part(Rows rows, int64_t tile, int64_t size) {
  int64_t start = rows.start + tile * size;
  return {start, smaller(start + size, rows.stop)};
}

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

// Of some components at some units. False where variances are not regular.
template <class A, class In, class RunOf>
bool logs_of_components(
    const PairsForward& call, int64_t d, Rows rows, Rows units, RunOf&& run_of) {
  const MomentsInputs& in = call.in;
  const PairsCut& cut = call.cut;
  const Mixture& m = in.mixtures[d];
  return logs_of_rows<A, In>(
      in.stds, rows, units, m.component_eps,
      call.component_logs + d * cut.units * cut.components + rows.start -
          call.of(d).components.start,
      cut.components, run_of, [&](int64_t row, const Run& run) {
        return component_contributes(in, m, *run.position, row, run.s);
      });
}

// Of some samples, where they have variances of their own.
template <class A, class In, class RunOf>
bool logs_of_samples(
    const PairsForward& call, int64_t d, Rows rows, Rows units, RunOf&& run_of) {
  const MomentsInputs& in = call.in;
  const PairsCut& cut = call.cut;
  const Mixture& m = in.mixtures[d];
  return !in.own_stds ||
      logs_of_rows<A, In>(
             in.stds, rows, units, m.sample_eps,
             call.sample_logs + d * cut.units * cut.samples + rows.start -
                 call.of(d).samples.start,
             cut.samples, run_of, [&](int64_t row, const Run& run) {
               return sample_contributes(in, m, *run.position, row, run.s);
             });
}

// Where the units of a mixture lie.
struct Runs {
  const PairsForward& call;
  const Position* positions;

  Runs(const PairsForward& call, int64_t d)
      : call(call), positions(call.positions + d * call.in.S) {}

  FUSED_MI_INLINE Run operator()(int64_t unit) const {
    const PairsCut& cut = call.cut;
    const int64_t s = unit / cut.blocks, e = unit % cut.blocks * cut.width;
    return Run{s, e, cut.width_at(e), positions + s};
  }
};

// Adds the squared distances of the pairs of a tile at some units to its sums. `before(units)` runs
// once for each panel of them, and says whether to go on. False where it does not, or digits are lost.
template <class A, class In, class Before>
FUSED_MI_INLINE bool distances_of_tile(
    const PairsForward& call, Panel<A>& panel, const Tile& tile, const Runs& run_of, Rows units,
    Before&& before) {
  const PairsCut& cut = call.cut;
  for (int64_t n = 0; n < tile.samples.count(); ++n) {
    std::memset(tile.sums + n * tile.stride, 0, tile.components.count() * sizeof(double));
  }
  const int64_t batch = larger(kDepth<A> * kLanes<A> / cut.width, 1);
  auto choose = [&](const Run& run) {
    panel.next.choose(
        call.in, tile.mixture, *run.position, run.s, tile.samples, tile.components);
  };
  for (int64_t unit = units.start; unit < units.stop; ++unit) {
    if ((unit - units.start) % batch == 0) {
      if (!before(Rows{unit, smaller(unit + batch, units.stop)})) return false;
    }
    const Run run = run_of(unit);
    if (unit == units.start || run.e == 0) choose(run);
    if (!panel.next) continue;
    if (!panel.takes(run)) {
      if (!flush<A, In>(tile, panel, &run)) return false;
      panel.now.copy(panel.next);
    }
    panel.add(run);
  }
  if (units.stop == cut.units) return flush<A, In>(tile, panel, nullptr);
  const Run run = run_of(units.stop);  // the next item goes on there
  choose(run);
  return flush<A, In>(tile, panel, &run);
}

// Adds to `of_g` the logs of components `first` to `first + width` at the positions where `here(s)`, and
// to `of_k` those of sample n at the positions that each of them shares. nullptr: not wanted.
template <class Here>
FUSED_MI_INLINE void logs_of_pairs(
    const PairsForward& call, int64_t d, int64_t n, int64_t first, int width, Here&& here,
    double* of_g, double* of_k) {
  const PairsCut& cut = call.cut;
  const int64_t N = cut.samples, M = cut.components;
  for (int64_t s = 0; s < call.in.S; ++s) {
    if (!here(s)) continue;
    const int64_t unit = d * cut.units + s * cut.blocks;
    double own = 0;
    for (int64_t block = unit; block < unit + cut.blocks; ++block) {
      const double* from = call.component_logs + block * M + first;
      for (int j = 0; of_g != nullptr && j < width; ++j) of_g[j] += from[j];
      if (of_k != nullptr) own += call.sample_logs[block * N + n];
    }
    if (of_k == nullptr) continue;
    int64_t bits;  // selected, not multiplied: a log may be infinite
    std::memcpy(&bits, &own, sizeof bits);
    const int64_t* from = call.component_bits + (d * call.in.S + s) * M + first;
    for (int j = 0; j < width; ++j) {
      int64_t chosen = bits & from[j];
      double value;
      std::memcpy(&value, &chosen, sizeof value);
      of_k[j] += value;
    }
  }
}

}  // namespace
}  // namespace fused_mi::FUSED_MI_PATH
