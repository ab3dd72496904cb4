// Energies of all pairs: what their kernels share, and what needs no tile of pairs.
#pragma once

#include "elements.h"
#include "moments.h"

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
  const double* upstream = nullptr;  // (N, M), of q
  View d_y, d_x, d_mu, d_stds;       // (rows, S, E) contiguous, written where there are any
  const double* of_logs = nullptr;   // (M, S): gradients of the log-determinants as components
  const double* of_own = nullptr;    // (M, S): as samples
  const uint8_t* own_active = nullptr;  // (M, S), where they are active as samples
  Numbers own_eps;
  bool components = true;  // whether these rows are components at all

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

constexpr int kRows = 128;  // threads of kernels that take rows or pairs one by one

// 1/2 sum_e (log v + log 2 pi) of rows and positions, of stds with `eps`.
struct LogDeterminants {
  View stds;
  const uint8_t* active = nullptr;  // (rows, S)
  Numbers eps;
  double* logs = nullptr;  // (rows, S), 0 where not active
  int* irregular = nullptr;
  int64_t S = 0, E = 0;
  int start = 0, rows = 0;
};

}  // namespace fused_mi
