// Short positions that lie side by side become one long position, wherever a row is active at all of
// them or at none: kernels work on long runs of features.
#pragma once

#include "moments.h"
#include "variance.h"

#include <initializer_list>

namespace fused_mi {

// From here on a position is as long as a run of features that an item takes anyway.
constexpr int64_t kLongPosition = Cut::kWidth / 2;

inline bool side_by_side(const View& view, int64_t E) {
  return view.data == nullptr || view.position == E * size_of(view.type);
}

inline bool same_everywhere(const Mask& mask, Rows rows, int64_t S) {
  if (mask.position == 0) return true;
  for (int64_t row = rows.start; row < rows.stop; ++row) {
    for (int64_t s = 1; s < S; ++s) {
      if (mask.at(row, s) != mask.at(row, 0)) return false;
    }
  }
  return true;
}

inline bool can_join(int64_t S, int64_t E, std::initializer_list<const View*> views) {
  if (S <= 1 || E >= kLongPosition) return false;
  for (const View* view : views) {
    if (!side_by_side(*view, E)) return false;
  }
  return true;
}

inline void join_positions(VarianceInputs& in) {
  if (!can_join(in.S, in.E, {&in.stds}) || !same_everywhere(in.mask, in.rows, in.S)) return;
  in.E *= in.S;
  in.S = 1;
}

// `gradients`: what will be written, if anything; absent ones do not matter.
inline void join_positions(MomentsInputs& in, std::initializer_list<const View*> gradients = {}) {
  if (!can_join(in.S, in.E, {&in.y, &in.x, &in.mu, &in.stds})) return;
  if (!can_join(in.S, in.E, gradients)) return;
  for (int64_t d = 0; d < in.count; ++d) {
    const Mixture& m = in.mixtures[d];
    if (!same_everywhere(in.sample_mask, m.samples, in.S)) return;
    if (!same_everywhere(in.component_mask, m.components, in.S)) return;
    for (int64_t s = 1; in.partners != nullptr && s < in.S; ++s) {
      if (in.met_by_samples(d, s) != in.met_by_samples(d, 0)) return;
      if (in.met_by_components(d, s) != in.met_by_components(d, 0)) return;
    }
  }
  in.E *= in.S;
  in.S = 1;
}

}  // namespace fused_mi
