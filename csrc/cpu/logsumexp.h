// From the energies e = q + g - k of all pairs to the terms of -log(1/M sum_l exp(-e_il)).
#pragma once

#include "paths.h"
#include "tensors.h"

namespace fused_mi {

// The component of each sample that is its own.
struct Own {
  static constexpr int64_t kNone = INT64_MIN / 2;
  int64_t first = kNone;             // that of sample 0, which it does not meet; the next one of sample 1
  const int64_t* origins = nullptr;  // (N,), or in place of that: then their energies matter
  bool left_out = true;              // samples do not meet them

  FUSED_MI_INLINE int64_t of(int64_t sample) const {
    return origins != nullptr ? origins[sample] : first + sample;
  }
};

struct Logsumexp {
  static constexpr int64_t kRows = 5;  // numbers of a sample, see LogsumexpForward
  static constexpr int64_t kTerms = 5;
  const double* energies = nullptr;  // (count, 3, N, M): q, g, k
  int64_t count = 0, N = 0, M = 0;
  Own own;
  int64_t samples = 0;  // of the mixture, if N of them are a part; their numbers stand as far apart

  FUSED_MI_INLINE int64_t rows() const {
    return count * N;
  }
  // Over how many components the mean is.
  FUSED_MI_INLINE int64_t partners() const {
    return M - (own.first != Own::kNone);
  }
  // How many a sample meets.
  FUSED_MI_INLINE int64_t met() const {
    return own.origins != nullptr ? M - own.left_out : partners();
  }
  FUSED_MI_INLINE int64_t all_samples() const {
    return samples != 0 ? samples : N;
  }
};

struct LogsumexpForward {
  Logsumexp in;
  // (count, 5, N): the log of the sum over the components, -inf where every density is 0, the means
  // of q, g and k weighted by the responsibilities, which are equal there, and q + g of the origins.
  double* state = nullptr;
};

// Gradients of the terms of a sample: of total, q, g, assignment and -k.
struct OfTerms {
  const double* data = nullptr;  // (count, 5, samples), or (count, 5, 1) for all of them
  int64_t samples = 1;

  FUSED_MI_INLINE OfTerms of(int64_t d, int64_t sample) const {
    return {data + d * Logsumexp::kTerms * samples + (samples == 1 ? 0 : sample), samples};
  }
  FUSED_MI_INLINE double operator[](int j) const {
    return data[j * samples];
  }
};

struct LogsumexpBackward {
  Logsumexp in;
  const double* state = nullptr;  // of the forward pass
  OfTerms upstream = {};
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
