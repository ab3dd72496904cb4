// The least positive variance of active positions, from which the stabiliser eps follows.
#pragma once

#include "paths.h"
#include "tensors.h"

namespace fused_mi {

struct VarianceInputs {
  View stds;  // (rows, S, E)
  Mask mask;
  Rows rows;
  bool wide = false;  // square in float64, not in float32
  int64_t S = 0, E = 0;
};

struct VarianceKernels {
  // Over the positions [begin, end) of all rows, row by row; infinite where there is none.
  double (*least)(const VarianceInputs&, int64_t begin, int64_t end);
};

FUSED_MI_KERNELS(VarianceKernels, variance_kernels)

}  // namespace fused_mi
