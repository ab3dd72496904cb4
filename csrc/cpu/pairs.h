// The energies q, g and k of all pairs of samples and components, and their gradients.
//
// The mathematics is in docs/mathematics.md and, readable, in python/fused_mi/reference/pairs.py.
#pragma once

#include "moments.h"

namespace fused_mi {

// How pairs and features are cut. Depends on sizes alone, so that results do not depend on the
// number of threads.
struct PairsCut {
  static constexpr int64_t kSamples = 128, kComponents = 64;  // most rows of a tile
  static constexpr int64_t kDepth = 768;  // most features summed in float32; half in float64
  static constexpr int64_t kItems = 64;   // enough for the cores of a machine

  int64_t samples = 0, components = 0, features = 0;
  int64_t tile_samples = 0, tile_components = 0, tiles_n = 0, tiles_m = 0;
  int64_t width = 0, blocks = 0;            // of features
  int64_t units = 0, units_per_split = 0, splits = 0;  // a unit is a block at a position

  PairsCut() = default;
  PairsCut(int64_t N, int64_t M, int64_t S, int64_t E, bool wide)
      : samples(N), components(M), features(E) {
    tiles_n = ceil_div(N, kSamples);
    tiles_m = ceil_div(M, kComponents);
    tile_samples = ceil_div(ceil_div(N, tiles_n), 4) * 4;
    tile_components = ceil_div(ceil_div(M, tiles_m), 4) * 4;
    tiles_n = ceil_div(N, tile_samples);
    tiles_m = ceil_div(M, tile_components);
    int64_t depth = wide ? kDepth / 2 : kDepth;
    blocks = ceil_div(E, depth);
    width = ceil_div(ceil_div(E, blocks), 16) * 16;
    blocks = ceil_div(E, width);
    units = S * blocks;
    int64_t wanted = ceil_div(kItems, tiles_n * tiles_m);
    units_per_split = ceil_div(units, wanted);
    int64_t least = depth / width;  // as many as fill the panels
    units_per_split = units_per_split > least ? units_per_split : least;
    splits = ceil_div(units, units_per_split);
  }

  FUSED_MI_INLINE int width_at(int64_t e) const {
    return static_cast<int>(width < features - e ? width : features - e);
  }
};

// Some samples and components of a mixture.
struct Meeting {
  Rows samples, components;
};

struct PairsForward {
  MomentsInputs in;
  PairsCut cut;
  const Meeting* meeting = nullptr;  // of the only mixture; nullptr: all meet all
  Position* positions = nullptr;   // (count, S)
  double* component_logs = nullptr;  // (count, units, M): sum_e (log v + log 2 pi), 0 = no part
  double* sample_logs = nullptr;     // (count, units, N), where samples have variances of their own
  int64_t* component_bits = nullptr;  // (count, S, M): -1 where a component contributes, else 0
  double* parts = nullptr;           // (splits, count, N, M): sums of squares, where splits > 1
  double* energies = nullptr;        // (count, 3, N, M), written

  FUSED_MI_INLINE Meeting of(int64_t d) const {
    return meeting ? *meeting : Meeting{in.mixtures[d].samples, in.mixtures[d].components};
  }

  // (N, M) of a mixture; a single split adds up in its place.
  FUSED_MI_INLINE double* part(int64_t split, int64_t d) const {
    const int64_t size = cut.samples * cut.components;
    return cut.splits == 1 ? energies + d * 3 * size : parts + (split * in.count + d) * size;
  }
};

struct PairsBackward {
  static constexpr int64_t kWeighed = 64;  // rows of an item of `weigh`

  MomentsInputs in;
  const Meeting* meeting = nullptr;  // of the only mixture; nullptr: all meet all
  bool add = false;                  // to what the gradients hold, in the type of the computation
  int64_t N = 0, M = 0;
  int64_t width = 0, blocks = 0;     // of features
  Position* positions = nullptr;     // (count, S)
  const double* upstream = nullptr;  // (count, 3, N, M)
  bool finite_upstream = true;       // else gradients are not finite either, whatever the type
  char* weights = nullptr;  // of the only position, ready before any item; nullptr: there are more
  const Pass* passes = nullptr;
  int64_t pass_count = 0;
  View d_y, d_x, d_mu, d_stds;
  bool stream = false;  // write them past the caches: rows are aligned, and all of them are large

  FUSED_MI_INLINE Meeting of(int64_t d) const {
    return meeting ? *meeting : Meeting{in.mixtures[d].samples, in.mixtures[d].components};
  }
  // Of a mixture: blocks of components, then of samples.
  FUSED_MI_INLINE int64_t weigh_items() const {
    return ceil_div(M, kWeighed) + ceil_div(N, kWeighed);
  }
};

// Each function does the items [begin, end) of the dimension that its comment names. `scratch`:
// aligned memory of a thread, of as many bytes as the function before it says.
struct PairsKernels {
  int64_t (*bytes)(const PairsForward&);
  bool (*distances)(  // count * tiles_n * tiles_m * splits; false: variances are not regular
      const PairsForward&, char* scratch, int64_t begin, int64_t end);
  void (*mark)(const PairsForward&, int64_t begin, int64_t end);  // count * S
  // count * N; false: there is NaN, or what may have left the range of float32
  bool (*finish)(const PairsForward&, int64_t begin, int64_t end);
};

struct PairsBackwardKernels {
  int64_t (*prepare)(const PairsBackward&, char* weights);  // their bytes; nullptr: that alone
  void (*weigh)(const PairsBackward&, int64_t begin, int64_t end);  // count * weigh_items()
  int64_t (*bytes)(const PairsBackward&);
  // S * blocks; false: variances are not regular, or float32 gives a gradient that is not finite
  bool (*gradients)(
      const PairsBackward&, char* scratch, int64_t begin, int64_t end);
};

FUSED_MI_KERNELS(PairsKernels, pairs_kernels)
FUSED_MI_KERNELS(PairsBackwardKernels, pairs_backward_kernels)

}  // namespace fused_mi
