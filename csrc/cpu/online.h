// The log-sum-exp over components while their energies are found, tile by tile: none is kept.
#pragma once

#include "logsumexp.h"
#include "pairs.h"

namespace fused_mi {

// Of a mixture whose components have weights, or whose samples come from some of them; else nothing.
struct Labels {
  const double* log_weights = nullptr;  // (M,), in place of k
  const int64_t* origins = nullptr;     // (N,), see Own
  bool left_out = false;
  double* of_weights = nullptr;  // (M,) gradients, which are added up

  FUSED_MI_INLINE Own own(bool exclude_diagonal) const {
    if (origins != nullptr) return {Own::kNone, origins, left_out};
    return {exclude_diagonal ? 0 : Own::kNone};
  }
};

struct OnlineForward {
  static constexpr int64_t kComponents = 128;  // of a tile, at most
  static constexpr int64_t kItems = 64;        // enough for the cores of a machine
  static constexpr int64_t kNumbers = 6;  // the largest density; relative to it, see `Sums`; the origin's

  PairsForward pairs;  // of all pairs, without energies
  Labels labels;
  int64_t splits = 0, tiles_per_split = 0;  // of the components
  double* parts = nullptr;                  // (splits, count, N, kNumbers)
};

// What pairs weigh in the gradients, of a mixture of one position where every row contributes.
struct OnlineWeigh {
  PairsForward pairs;                // of all pairs, without energies
  Labels labels;
  int64_t d = 0, partners = 0;       // which mixture; whom a sample meets
  Meeting block;                     // whose pairs are weighed
  const double* state = nullptr;     // of the mixture, see LogsumexpForward
  OfTerms upstream;                  // of the mixture
  char* weights = nullptr;           // see PairsBackward
  double* of_k = nullptr;            // (tiles(), N of the block)

  FUSED_MI_INLINE int64_t tiles() const {
    return ceil_div(block.components.count(), PairsBackward::kWeighed);
  }
};

struct OnlineKernels {
  int64_t (*bytes)(const PairsForward&);  // of the scratch memory of a thread
  // count * (tiles_m + tiles_n): components, then samples; false: variances are not regular
  bool (*logs)(const PairsForward&, int64_t begin, int64_t end);
  // count * tiles_n * splits; false: digits are lost, or float32 has no room
  bool (*reduce)(const OnlineForward&, char* scratch, int64_t begin, int64_t end);
  // tiles(); false: see `reduce`
  bool (*weigh)(const OnlineWeigh&, char* scratch, int64_t begin, int64_t end);
  void (*sum_weights)(const OnlineWeigh&);  // of_k, after that
};

FUSED_MI_KERNELS(OnlineKernels, online_kernels)

}  // namespace fused_mi
