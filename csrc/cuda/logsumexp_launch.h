// How the kernels of the log-sum-exp are launched.
#pragma once

#include "elements.h"

namespace fused_mi {

struct Logsumexp {
  const double* energies = nullptr;  // (D, 3, N, M): q, g and k
  double* rows = nullptr;            // (D, 5, N): log of the sum, means of q, g and k, energy of the own
  const double* upstream = nullptr;  // (D, 5, N), or (D, 5, 1)
  Numbers gradient;                  // (D, 3, N, M)
  const int64_t* origins = nullptr;  // (N,): own components, in place of `own` + i
  int64_t own = 0;
  int D = 0, N = 0, M = 0;
  bool left_out = false, each = false;  // each: of each sample
};

// Each returns nullptr, or what is wrong.
const char* launch_logsumexp(const Logsumexp& in, void* stream);
const char* launch_logsumexp_gradient(const Logsumexp& in, void* stream);

}  // namespace fused_mi
