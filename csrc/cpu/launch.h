// From a call to items of work for threads; no torch header.
//
// `parallel(begin, end, grain, body)` runs `body(b, e)` over disjoint ranges of [begin, end), in
// any number of threads. Results do not depend on the ranges.
//
// A call is computed in float32 where that is enough, else once more as a whole in float64, which has
// room for every float32: where variances are not regular (see `Range`), or sums become too large.
// `try_...` computes in one type, and returns false where its range is not enough; `launch_...` returns
// false where float64 is not enough either, and leaves the call to plain torch.
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

}  // namespace fused_mi
