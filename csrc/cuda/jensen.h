// What the kernels of a Jensen loss share: who meets whom, and memory for what one leaves to the next.
//
// Forward there are four launches, prepare, accumulate, finish and reduce, backward two, gradient and
// gradient_of_pairs. Every number is written by one thread, and sums have a fixed order.
#pragma once

#include "elements.h"

namespace fused_mi {

// Rows of a mask that share a stabiliser.
struct Role {
  int mask = 0;  // 0: of the samples, 1: of the components
  int start = 0, rows = 0;
};

// eps = factor * least positive variance, within bounds; a factor below 0 is minus eps.
struct Stabiliser {
  double factor = 0, smallest = 0, largest = 0;
};

struct Mixture {
  int sample_start = 0, component_start = 0;
  int sample_role = -1, component_role = 0;  // of the stabilisers; -1: samples have no stds
};

constexpr int kAloneWidth = 2;  // features of a thread where rows are left out: registers allow no more
constexpr int kHeader = 16;  // numbers at the beginning of a state, see HEADER

struct Jensen {
  View y, x, mu, stds;
  Mask masks[2];  // of samples, of components
  int64_t S = 0, E = 0;
  int N = 0, M = 0, mixtures = 0, roles = 0;
  bool alone = false;  // leave one out: no row meets itself
  bool wide = false;   // arithmetic, parts and least variances are float64
  Mixture mixture[2];
  Role role[4];
  Stabiliser stabiliser;
  double divisor = 1;  // of the sums, in the terms

  // kept for the backward pass
  Numbers header;         // (kHeader,): eps of the components of each mixture, then of their samples
  Numbers state;          // (mixtures, 4, S, E), see `settle`
  int* counts = nullptr;  // (mixtures, 4, S): contributing samples, components, the first of each

  // from one launch to the next
  void* least = nullptr;     // (roles, least_parts): least positive variances
  void* parts = nullptr;     // (mixtures, splits, planes, S, E), see `Plane`; where splits > 1
  void* samples = nullptr;   // (mixtures, splits, S): contributing samples; where splits > 1
  double* sums = nullptr;    // (mixtures, accumulated, 3): of q, g and k, times 2
  double* merged = nullptr;  // (mixtures, finished, 3): the same, of fewer blocks
  Numbers total, terms;      // (), (6,)
  int64_t least_parts = 0, tiles = 0, accumulated = 0, looks = 0, finished = 0;
  int columns = 0;  // threads side by side along the features, a power of two
  int splits = 0, samples_per_split = 0, components_per_split = 0;
};

// Contributing rows of a mixture at a position.
struct Counts {
  int n, m, first_i, first_l;

  GPU_DEVICE Counts(const Jensen& in, int d, int64_t s) {
    const int* counts = in.counts + 4 * d * in.S + s;
    n = counts[0], m = counts[in.S], first_i = counts[2 * in.S], first_l = counts[3 * in.S];
  }
  // Whether an active row has a partner.
  GPU_DEVICE bool sample(const Jensen& in, int i) const {
    return m > 1 || (m == 1 && !(in.alone && first_l == i));
  }
  GPU_DEVICE bool component(const Jensen& in, int l) const {
    return n > 1 || (n == 1 && !(in.alone && first_i == l));
  }
};

GPU_DEVICE double bounded(const Stabiliser& of, double least) {
  if (of.factor < 0) return -of.factor < of.largest ? -of.factor : of.largest;
  const double found = (least < gpu::infinity<double>() ? least : 1) * of.factor;
  const double bounded = found > of.smallest ? found : of.smallest;
  return bounded < of.largest ? bounded : of.largest;
}

// eps of a role, in all threads of a block; 0 of none. A call for the whole block.
template <class T, int THREADS>
GPU_DEVICE T eps_of(const Jensen& in, int role, T* slots) {
  if (role < 0) return 0;
  const T* least = static_cast<const T*>(in.least) + role * in.least_parts;
  T found = gpu::infinity<T>();
  for (int64_t i = threadIdx.x; i < in.least_parts; i += THREADS) found = gpu::least(found, least[i]);
  found = over_block<THREADS>(found, slots, [](T a, T b) { return gpu::least(a, b); });
  return static_cast<T>(bounded(in.stabiliser, static_cast<double>(found)));
}

}  // namespace fused_mi
