// What several sets of rows (ranks, micro-batches) have told of themselves, as one.
//
// Readable in python/fused_mi/reference/parts.py. Columns are independent; sets merge in their order.
#pragma once

#include "paths.h"
#include "tensors.h"

namespace fused_mi {

struct Merge {
  static constexpr int64_t kWidth = 256;  // columns of an item

  const void* planes = nullptr;  // (count, sets, 6, n) float32 or float64
  bool wide = false;             // float64, here and in `merged`
  const int64_t* counts = nullptr;  // (count, sets, positions) samples
  int64_t count = 0, sets = 0, n = 0, positions = 0;
  int64_t features = 0, first = 0;  // column i has position (first + i) / features - first / features
  bool apart = false;               // each set meets all others, and not itself
  void* merged = nullptr;           // (count, sets or 1, 6, n): what each set meets, or all of them
  double* sums = nullptr;           // (count, items): what they add to the sum of q

  FUSED_MI_INLINE int64_t items() const {
    return ceil_div(n, kWidth);
  }
  FUSED_MI_INLINE int64_t results() const {
    return apart ? sets : 1;
  }
};

// Items [begin, end) of count * items; false where the type has no room for a result.
struct MergeKernels {
  bool (*merge)(const Merge&, int64_t begin, int64_t end);
};

FUSED_MI_KERNELS(MergeKernels, merge_kernels)

}  // namespace fused_mi
