// Energies of all pairs: what their kernels share, and what needs no tile of pairs.
#pragma once

#include "elements.h"
#include "moments.h"
#include "two.h"

namespace fused_mi {

struct Pairs {
  View y, x, mu, stds;  // mu may be absent: 0
  const uint8_t* sample_active = nullptr;     // (N, S): which positions contribute
  const uint8_t* component_active = nullptr;  // (M, S)
  Numbers eps;                                // (), of the components
  void* shift = nullptr;      // (S, E) float64 or float32, see `shift_kernel`
  int* irregular = nullptr;   // (): becomes 1 where something is out of range; then there is a careful pass
  int64_t S = 0, E = 0;
  int N = 0, M = 0, sample_start = 0, component_start = 0;
  bool wide = false;  // arithmetic, and the shift, are float64

  // forward
  double* parts = nullptr;   // (splits, N, M)
  double* q = nullptr;       // (N, M)
  int chunks = 0, chunks_per_split = 0, splits = 0;

  // backward: of the rows of a pass
  Numbers upstream;                  // (N, M), of q, in the type of the arithmetic
  int64_t upstream_row = 0;          // elements from one of its rows to the next
  View d_y, d_x, d_mu, d_stds;       // (rows, S, E) contiguous, written where there are any
  bool add = false;                  // on top of what is there
  const double* of_logs = nullptr;   // (M, S): gradients of the log-determinants as components
  const double* of_own = nullptr;    // (M, S): as samples
  const uint8_t* own_active = nullptr;  // (M, S), where they are active as samples
  Numbers own_eps;
  bool components = true;  // whether these rows are components at all
  float* split_gradients = nullptr;  // (gradient_splits, N, S, E): where blocks share the components
  int gradient_splits = 1, components_per_split = 0;  // of the samples' gradient; a multiple of 8

  GPU_DEVICE bool sample(int64_t n, int64_t s) const { return n < N && sample_active[n * S + s] != 0; }
  GPU_DEVICE bool component(int64_t m, int64_t s) const {
    return m < M && component_active[m * S + s] != 0;
  }
};

constexpr int kChunk = 1024;  // features of one position that are added up in float32

// Inverse roots within these bounds, as squares of what counts beside them are in range.
template <class T>
GPU_DEVICE bool irregular_root(T root) {
  return !(root > T(0x1p-31) && root < T(0x1p31));
}

// Of a pair, where something is out of range: roots and divisions in float64.
GPU_DEVICE double careful_energy(const Pairs& in, int64_t n, int64_t m) {
  const double eps = in.eps.get(0);
  const int64_t row_n = in.sample_start + n, row_m = in.component_start + m;
  double total = 0;
  for (int64_t s = 0; s < in.S; ++s) {
    if (!in.sample(n, s) || !in.component(m, s)) continue;
    for (int64_t e = 0; e < in.E; ++e) {
      double distance = element(in.y, row_n, s, e) - element(in.x, row_m, s, e);
      if (in.mu.data) distance -= element(in.mu, row_m, s, e);
      const double z = distance / root_of(element(in.stds, row_m, s, e), eps);
      total = gpu::fma(z, z, total);
    }
  }
  return total / 2;
}

constexpr int kRows = 128;  // threads of kernels that take rows or pairs one by one

// 1/2 sum_e (log v + log 2 pi) of rows and positions, of stds with `eps`.
struct LogDeterminants {
  View stds;
  const uint8_t* active = nullptr;  // (rows, S)
  Numbers eps;
  double* logs = nullptr;  // (rows, S), 0 where not active
  Two<float>* halves = nullptr;  // in place of those
  int* irregular = nullptr;
  int64_t S = 0, E = 0;
  int start = 0, rows = 0;
};

struct PairLogs {
  Pairs of;
  const double *of_components = nullptr, *of_samples = nullptr;  // (M, S), (N, S); the latter may be absent
  const double* log_weights = nullptr;                           // (M,) in place of those
  double *g = nullptr, *k = nullptr;                             // (N, M)
};

}  // namespace fused_mi
