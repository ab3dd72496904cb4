// The sums over all pairs of q, g and k from the moments of two roles, and their gradients.
//
// The mathematics is in docs/mathematics.md and, readable, in python/fused_mi/reference/moments.py.
#pragma once

#include "paths.h"
#include "tensors.h"

namespace fused_mi {

// Samples are scored against components; both are ranges of rows.
struct Mixture {
  Rows samples, components;
  double component_eps = 0, sample_eps = 0;
};

// Of squared distances, in units of variances: as long as their sums are no larger, everything that a
// gradient is made of stays in range.
constexpr double kLargestSum = 0x1p80, kLargestWideSum = 0x1p700;

// Of the weighted squares of a sample: a component of its own that is more, and far from all others,
// takes the digits of float32.
constexpr double kMostOwn = 0.9;

struct MomentsInputs {
  View y, x, mu, stds;  // (rows, S, E)
  Mask sample_mask, component_mask;
  const Mixture* mixtures = nullptr;
  int64_t count = 0;  // of mixtures
  bool own_stds = false;          // samples have variances of their own: k
  bool exclude_diagonal = false;  // leave the pairs (i, i) out
  bool wide = false;              // compute in float64, not in float32
  // Where the rows that these meet are elsewhere: of each mixture how many components a sample meets,
  // and how many samples a component, (count, 2, S). Then every role is there for itself.
  const int64_t* partners = nullptr;
  int64_t partners_row = 0;  // its last dimension, also where positions are joined
  int64_t S = 0, E = 0;

  FUSED_MI_INLINE int64_t met_by_samples(int64_t d, int64_t s) const {
    return partners[2 * d * partners_row + s];
  }
  FUSED_MI_INLINE int64_t met_by_components(int64_t d, int64_t s) const {
    return partners[(2 * d + 1) * partners_row + s];
  }

  // Of moments: without the diagonal, differences of them follow.
  FUSED_MI_INLINE bool wide_state() const {
    return wide || exclude_diagonal;
  }
  // Whether float64 has digits to lose: it is wider than every input.
  FUSED_MI_INLINE bool spare_digits() const {
    return y.type != Type::float64 && x.type != Type::float64 && mu.type != Type::float64 &&
        stds.type != Type::float64;
  }
  // Without the diagonal a difference of sums remains. It has digits enough as long as it is at least
  // this share of what is subtracted; in float64 or float32.
  FUSED_MI_INLINE double least_share(bool in_float64) const {
    return !in_float64 ? 0x1p-1 : spare_digits() ? 0x1p-28 : 0x1p-2;
  }
  // Deviations are from one row's value. They have digits enough as long as what weighs is no farther
  // from it than this many times its size; squared.
  FUSED_MI_INLINE double farthest_shift(bool in_float64) const {
    return in_float64 && spare_digits() ? 0x1p66 : 0x1p8;
  }
};

// Of one mixture at one position: a row contributes where it is active and has an active partner.
struct Position {
  int64_t active_samples, active_components;  // by the masks alone
  int64_t samples, components;                // that contribute
  int64_t first_sample, first_component;      // rows, where there are any
};

// Moments of both roles for the features of one item; rows merge into it in float64.
struct Totals {
  int64_t samples;
  bool regular;                               // all variances are, see `Range`
  double log_i, log_l;                     // sums of log v
  double diagonal_g, diagonal_k;              // of the pairs (i, i)
  double mean_y[Cut::kWidth], m2_y[Cut::kWidth];
  double weight[Cut::kWidth], mean_c[Cut::kWidth], m2_c[Cut::kWidth];
  // Of the pairs (i, i), where they are left out: q, the largest 1 / v, the most by which a sample's
  // own square exceeds kMostOwn of its squares, the least and the largest y, from the shift.
  double diagonal_q[Cut::kWidth], heaviest[Cut::kWidth], excess[Cut::kWidth];
  double low[Cut::kWidth], high[Cut::kWidth];
};

struct MomentsForward {
  MomentsInputs in;
  Cut cut;
  Position* positions = nullptr;  // (count, S)
  Totals* totals = nullptr;       // (count, tiles, splits), where there are several splits
  double* partial_sums = nullptr;  // (count, tiles, 3): of q, g and k
  char* state = nullptr;  // (count, 4, S, E) float32 or float64: delta, m2 of the samples, delta,
                          // weight of the components; for partners elsewhere see parts_finish.h
  bool wide_planes = false;  // that has float64, then
};

// A pass over rows that are samples of one mixture, components of one, or both; -1 = none.
struct Pass {
  Rows rows;
  int64_t as_samples = -1, as_components = -1;
  bool write_y = false, write_x = false, write_mu = false, write_stds = false;
};

struct MomentsBackward {
  MomentsInputs in;
  Cut cut;
  Position* positions = nullptr;  // (count, S)
  const char* state = nullptr;    // see MomentsForward; float64 for partners elsewhere
  const double* upstream = nullptr;  // (count, 3): gradients of the sums of q, g and k
  const Pass* passes = nullptr;
  int64_t pass_count = 0;
  View d_y, d_x, d_mu, d_stds;
  bool stream = false;  // write them past the caches: rows are aligned, and all of them are large
};

// Each function does the items [begin, end) of the dimension that its comment names.
struct MomentsKernels {
  void (*positions)(const MomentsInputs&, Position*, int64_t begin, int64_t end);  // S
  // tiles * splits; false, and nothing of worth, where variances are not regular, or the diagonal takes
  // the digits
  bool (*accumulate)(const MomentsForward&, int64_t begin, int64_t end);
  bool (*finish)(const MomentsForward&, int64_t begin, int64_t end);  // tiles, after splits > 1
};

struct MomentsBackwardKernels {
  // passes * tiles * splits; false where the diagonal takes the digits
  bool (*gradients)(const MomentsBackward&, int64_t begin, int64_t end);
};

FUSED_MI_KERNELS(MomentsKernels, moments_kernels)
FUSED_MI_KERNELS(MomentsBackwardKernels, moments_backward_kernels)

// Whether row k of a role's range contributes, given the partners' active rows and the mask of its
// own row in the partners' role.
FUSED_MI_INLINE bool contributes(
    const Mask& mask, const Mask& partners, int64_t row, int64_t own, int64_t s,
    int64_t active_partners, bool exclude_diagonal) {
  if (active_partners == 0 || !mask.at(row, s)) return false;
  return !exclude_diagonal || active_partners > 1 || !partners.at(own, s);
}

FUSED_MI_INLINE bool sample_contributes(
    const MomentsInputs& in, const Mixture& m, const Position& p, int64_t row, int64_t s) {
  return contributes(
      in.sample_mask, in.component_mask, row, row - m.samples.start + m.components.start, s,
      p.active_components, in.exclude_diagonal);
}

FUSED_MI_INLINE bool component_contributes(
    const MomentsInputs& in, const Mixture& m, const Position& p, int64_t row, int64_t s) {
  return contributes(
      in.component_mask, in.sample_mask, row, row - m.components.start + m.samples.start, s,
      p.active_samples, in.exclude_diagonal);
}

}  // namespace fused_mi
