// The log-sum-exp over components while their energies are found, tile by tile: none is kept.
#pragma once

#include "pairs.h"

namespace fused_mi {

struct OnlineForward {
  static constexpr int64_t kComponents = 128;  // of a tile
  static constexpr int64_t kItems = 64;        // enough for the cores of a machine
  static constexpr int64_t kNumbers = 5;       // the largest density; relative to it, see `Sums`

  PairsForward pairs;  // without energies
  int64_t splits = 0, tiles_per_split = 0;  // of the components
  double* parts = nullptr;                  // (splits, count, N, kNumbers)

  // Depends on sizes alone, see PairsCut. All features of a tile are one split.
  void cut() {
    PairsCut& c = pairs.cut;
    c.tile_components = kComponents;
    c.tiles_m = ceil_div(c.components, c.tile_components);
    c.units_per_split = c.units, c.splits = 1;
    const int64_t wanted = ceil_div(kItems, pairs.in.count * c.tiles_n);
    tiles_per_split = ceil_div(c.tiles_m, wanted);
    splits = ceil_div(c.tiles_m, tiles_per_split);
  }
};

// What pairs weigh in the gradients, of a mixture of one position where every row contributes.
struct OnlineWeigh {
  PairsForward pairs;               // some of them meet; without energies
  const double* state = nullptr;    // of the first sample, see LogsumexpForward
  const double* upstream = nullptr; // (5,), see LogsumexpBackward
  int64_t samples = 0, partners = 0;  // of the mixture
  char* weights = nullptr;          // see PairsBackward
  double* of_k = nullptr;           // (tiles_m, N)
};

struct OnlineKernels {
  int64_t (*bytes)(const OnlineForward&);  // of the scratch memory of a thread
  // count * (tiles_m + tiles_n): components, then samples; false: variances are not regular
  bool (*logs)(const OnlineForward&, int64_t begin, int64_t end);
  // count * tiles_n * splits; false: digits are lost, or float32 has no room
  bool (*reduce)(const OnlineForward&, char* scratch, int64_t begin, int64_t end);
  bool (*sample_logs)(const OnlineWeigh&);  // before `weigh`; false: variances are not regular
  int64_t (*weigh_bytes)(const OnlineWeigh&);
  // tiles_m; false: see `reduce`
  bool (*weigh)(const OnlineWeigh&, char* scratch, int64_t begin, int64_t end);
  void (*sum_weights)(const OnlineWeigh&);  // of_k, after that
};

FUSED_MI_KERNELS(OnlineKernels, online_kernels)

}  // namespace fused_mi
