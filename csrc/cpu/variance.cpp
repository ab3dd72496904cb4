#include "variance.h"

#include "rows.h"

#include <cmath>

namespace fused_mi::FUSED_MI_PATH {
namespace {

constexpr int kChains = 4;  // minima that do not wait for each other

template <class A>
FUSED_MI_INLINE void include(V<A> sigma, V<A>& found) {
  V<A> v = sigma * sigma;
  // NaN, and squares that overflow or vanish, compare false; so do lanes that a part lacks, at 0.
  found = (v > A(0)) & (v < found) ? v : found;
}

template <class A, class In>
double least(const VarianceInputs& in, int64_t begin, int64_t end) {
  constexpr int kWidth = Cut::kWidth, kStep = kChains * kLanes<A>;
  alignas(64) In buffer[sizeof(In) > 2 ? kWidth : 1];
  V<A> found[kChains];
  for (V<A>& chain : found) chain = all<A>(static_cast<A>(INFINITY));
  for (int64_t item = begin; item < end; ++item) {
    int64_t row = in.rows.start + item / in.S, s = item % in.S;
    if (!in.mask.at(row, s)) continue;
    for (int64_t e = 0; e < in.E; e += kWidth) {
      int width = static_cast<int>(kWidth < in.E - e ? kWidth : in.E - e), f = 0;
      const In* sigma = read(in.stds, row, s, e, width, buffer);
      for (; f + kStep <= width; f += kStep) {
        for (int i = 0; i < kChains; ++i) {
          include<A>(load<A>(sigma + f + i * kLanes<A>, Whole{}), found[i]);
        }
      }
      over_vectors<A>(width - f, [&](int rest, auto part) __attribute__((always_inline)) {
        include<A>(load<A>(sigma + f + rest, part), found[0]);
      });
    }
  }
  double smallest = INFINITY;
  for (V<A> chain : found) {
    for (int i = 0; i < kLanes<A>; ++i) smallest = chain[i] < smallest ? chain[i] : smallest;
  }
  return smallest;
}

template <class A>
double least_of(const VarianceInputs& in, int64_t begin, int64_t end) {
  const View* stds = &in.stds;
  double found = 0;
  with_input<A>(&stds, 1, [&](auto type) { found = least<A, decltype(type)>(in, begin, end); });
  return found;
}

double least_variance(const VarianceInputs& in, int64_t begin, int64_t end) {
  return in.wide ? least_of<double>(in, begin, end) : least_of<float>(in, begin, end);
}

}  // namespace

extern const VarianceKernels variance_kernels = {least_variance};

}  // namespace fused_mi::FUSED_MI_PATH
