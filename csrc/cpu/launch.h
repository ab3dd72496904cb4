// From a call to items of work for threads; no torch header.
//
// `parallel(begin, end, grain, body)` runs `body(b, e)` over disjoint ranges of [begin, end), in
// any number of threads. Results do not depend on the ranges.
//
// A call is computed in float32 where that is enough, else once more as a whole in float64, which has
// room for every float32: where variances are not regular (see `Range`), or sums become too large.
// What float64 has no room for is left to the caller: then a function returns false.
#pragma once

#include "join.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

namespace fused_mi {

constexpr int64_t kGrain = 1 << 15;  // elements that are worth a thread
constexpr int64_t kLarge = 1 << 25;  // bytes of results that would not stay in the caches
constexpr int64_t kLine = 64;        // of a cache

inline int64_t grain(int64_t elements_of_item) {
  return elements_of_item > 0 && elements_of_item < kGrain ? kGrain / elements_of_item : 1;
}

template <class Parallel>
double launch_least(VarianceInputs in, Path path, Parallel&& parallel) {
  join_positions(in);
  std::atomic<double> least{std::numeric_limits<double>::infinity()};
  parallel(0, in.rows.count() * in.S, grain(in.E), [&](int64_t begin, int64_t end) {
    double found = variance_kernels(path).least(in, begin, end), before = least.load();
    while (found < before && !least.compare_exchange_weak(before, found)) {
    }
  });
  return least;
}

inline std::unique_ptr<Position[]> positions_of(const MomentsInputs& in) {
  return std::unique_ptr<Position[]>(new Position[in.count * in.S]);
}

// Most rows of one role, of any mixture.
inline int64_t most_rows(const MomentsInputs& in) {
  int64_t most = 0;
  for (int64_t d = 0; d < in.count; ++d) {
    const Mixture& m = in.mixtures[d];
    for (int64_t rows : {m.samples.count(), m.components.count()}) most = rows > most ? rows : most;
  }
  return most;
}

// Runs body(begin, end) in parallel; false where it was once.
template <class Parallel, class Body>
bool all_of(Parallel&& parallel, int64_t count, int64_t grain, Body&& body) {
  std::atomic<bool> holds{true};
  parallel(0, count, grain, [&](int64_t begin, int64_t end) {
    if (holds && !body(begin, end)) holds = false;
  });
  return holds;
}

inline int64_t state_size(const MomentsInputs& in) {
  return in.count * 4 * in.S * in.E;
}

// Writes `state` and `sums`, in the type of `in`; false where its range is not enough.
template <class Parallel>
bool try_moments(MomentsInputs in, char* state, double* sums, Path path, Parallel&& parallel) {
  join_positions(in);
  const int64_t rows = most_rows(in);
  MomentsForward call;
  call.in = in;
  call.cut = Cut(in.S, in.E, rows, in.wide);
  call.state = state;
  const int64_t tiles = call.cut.tiles(), splits = call.cut.splits;
  auto positions = positions_of(in);
  call.positions = positions.get();
  std::unique_ptr<double[]> partial_sums(new double[in.count * tiles * 3]);
  call.partial_sums = partial_sums.get();
  std::unique_ptr<Totals[]> totals;
  if (splits > 1) totals.reset(new Totals[in.count * tiles * splits]);
  call.totals = totals.get();

  const MomentsKernels& kernels = moments_kernels(path);
  parallel(0, in.S, grain(rows), [&](int64_t begin, int64_t end) {
    kernels.positions(in, call.positions, begin, end);
  });
  int64_t elements = call.cut.rows_per_split * call.cut.width;
  bool regular = all_of(
      parallel, tiles * splits, grain(elements),
      [&](int64_t begin, int64_t end) { return kernels.accumulate(call, begin, end); });
  if (!regular) return false;
  if (splits > 1) {
    parallel(0, tiles, grain(splits * call.cut.width), [&](int64_t begin, int64_t end) {
      kernels.finish(call, begin, end);
    });
  }
  const double most = in.wide ? kLargestWideSum : kLargestSum;
  bool known = true;
  for (int64_t d = 0; d < in.count; ++d) {
    for (int64_t j = 0; j < 3; ++j) {
      double sum = 0;
      for (int64_t tile = 0; tile < tiles; ++tile) sum += partial_sums[(d * tiles + tile) * 3 + j];
      sums[d * 3 + j] = sum;
      known &= std::fabs(sum) <= most;
    }
  }
  return known;
}

// Writes `sums` (count, 3): of q, g and k, and `state`, float64 where `in` is wide. A state that is
// NaN says that the gradients compute the moments anew, in float64.
template <class Parallel>
bool launch_moments(
    const MomentsInputs& in, char* state, double* sums, Path path, Parallel&& parallel) {
  bool known = try_moments(in, state, sums, path, parallel);
  if (known) return true;
  std::memset(state, 0xff, state_size(in) * (in.wide ? 8 : 4));
  if (in.wide) return false;
  MomentsInputs wide = in;
  wide.wide = true;
  std::unique_ptr<double[]> unread(new double[state_size(in)]);
  return try_moments(wide, reinterpret_cast<char*>(unread.get()), sums, path, parallel);
}

inline bool has_moments(const char* state, bool wide) {
  return wide ? !std::isnan(*reinterpret_cast<const double*>(state))
              : !std::isnan(*reinterpret_cast<const float*>(state));
}

// Whether gradients (4) should not pass through the caches: they would not stay there, and memory is
// spared a read of each line before it is written. Needs rows of whole, aligned lines, and blocks of
// `width` features of them. `rows` of each are written; `buffered`: by way of buffers, in any case.
inline bool streams(
    const MomentsInputs& in, const View* const* gradients, bool buffered, int64_t width,
    int64_t rows) {
  bool mixed = in.y.type != in.x.type || in.y.type != in.mu.type || in.y.type != in.stds.type;
  if (buffered || mixed) return false;
  int64_t bytes = 0;
  for (int i = 0; i < 4; ++i) {
    const View& g = *gradients[i];
    if (g.data == nullptr) continue;
    int64_t size = size_of(g.type);
    if (reinterpret_cast<uintptr_t>(g.data) % kLine || g.row % kLine || g.position % kLine ||
        width * size % kLine || in.E * size % kLine) {
      return false;
    }
    bytes += rows * in.S * in.E * size;
  }
  return bytes >= kLarge;
}

// Writes the gradients that `call` names; its cut and positions are filled in here.
template <class Parallel>
bool launch_gradients(MomentsBackward call, Path path, Parallel&& parallel) {
  std::unique_ptr<double[]> anew;
  if (!has_moments(call.state, call.in.wide)) {
    if (call.in.wide) return false;
    call.in.wide = true;
    const int64_t size = state_size(call.in), sums = call.in.count * 3;
    anew.reset(new double[size + sums]);
    char* state = reinterpret_cast<char*>(anew.get());
    if (!try_moments(call.in, state, anew.get() + size, path, parallel)) return false;
    call.state = state;
  }
  join_positions(call.in, {&call.d_y, &call.d_x, &call.d_mu, &call.d_stds});
  int64_t rows = 0, all_rows = 0;
  for (int64_t p = 0; p < call.pass_count; ++p) {
    int64_t count = call.passes[p].rows.count();
    rows = count > rows ? count : rows;
    all_rows += count;
  }
  const MomentsInputs& in = call.in;
  call.cut = Cut(in.S, in.E, rows, in.wide);
  const View* gradients[] = {&call.d_y, &call.d_x, &call.d_mu, &call.d_stds};
  call.stream = streams(in, gradients, in.wide, call.cut.width, all_rows);
  auto positions = positions_of(in);
  call.positions = positions.get();
  parallel(0, in.S, grain(rows), [&](int64_t begin, int64_t end) {
    moments_kernels(path).positions(in, call.positions, begin, end);
  });
  int64_t items = call.pass_count * call.cut.tiles() * call.cut.splits;
  int64_t elements = call.cut.rows_per_split * call.cut.width;
  parallel(0, items, grain(elements), [&](int64_t begin, int64_t end) {
    moments_backward_kernels(path).gradients(call, begin, end);
  });
  return true;
}

}  // namespace fused_mi
