// From the energies e = q + g - k of all pairs to the terms of -log(1/M sum_l exp(-e_il)).
#pragma once

#include "paths.h"
#include "tensors.h"

namespace fused_mi {

struct Logsumexp {
  const double* energies = nullptr;  // (count, 3, N, M): q, g, k
  int64_t count = 0, N = 0, M = 0;
  static constexpr int64_t kNone = INT64_MIN / 2;
  int64_t own = kNone;  // the component that sample 0 does not meet, the next one sample 1
  int64_t samples = 0;  // of the mixture, if N of them are a part; their numbers stand as far apart

  FUSED_MI_INLINE int64_t rows() const {
    return count * N;
  }
  FUSED_MI_INLINE int64_t partners() const {
    return M - (own != kNone);
  }
  FUSED_MI_INLINE int64_t all_samples() const {
    return samples != 0 ? samples : N;
  }
};

struct LogsumexpForward {
  Logsumexp in;
  // (count, 4, N): the log of the sum over the components, -inf where every density is 0, and the
  // means of q, g and k weighted by the responsibilities, which are equal there.
  double* state = nullptr;
};

struct LogsumexpBackward {
  Logsumexp in;
  const double* state = nullptr;     // of the forward pass
  const double* upstream = nullptr;  // (count, 5): of total, q, g, assignment and -k
  double* gradient = nullptr;        // (count, 3, N, M), may be the energies
  bool stream = false;               // past the caches
};

// Over the rows [begin, end) of `count * N`.
struct LogsumexpKernels {
  void (*state)(const LogsumexpForward&, int64_t begin, int64_t end);
  void (*gradient)(const LogsumexpBackward&, int64_t begin, int64_t end);
};

FUSED_MI_KERNELS(LogsumexpKernels, logsumexp_kernels)

}  // namespace fused_mi
