#include "variance.h"

#include "rows.h"

#include <cmath>

namespace fused_mi::FUSED_MI_PATH {
namespace {

template <class A, class In>
double least(const VarianceInputs& in, int64_t begin, int64_t end) {
  constexpr int kWidth = Cut::kWidth;
  alignas(64) In buffer[sizeof(In) > 2 ? kWidth : 1];
  V<A> found = all<A>(static_cast<A>(INFINITY));
  for (int64_t item = begin; item < end; ++item) {
    int64_t row = in.rows.start + item / in.S, s = item % in.S;
    if (!in.mask.at(row, s)) continue;
    for (int64_t e = 0; e < in.E; e += kWidth) {
      int width = static_cast<int>(kWidth < in.E - e ? kWidth : in.E - e);
      const In* sigma = read(in.stds, row, s, e, width, buffer);
      over_vectors<A>(width, [&](int f, auto part) __attribute__((always_inline)) {
        V<A> v = load<A>(sigma + f, part);  // 0 where there is none: does not count
        v *= v;
        // NaN, and squares that overflow or vanish, compare false.
        found = (v > A(0)) & (v < found) ? v : found;
      });
    }
  }
  double smallest = INFINITY;
  for (int i = 0; i < kLanes<A>; ++i) smallest = found[i] < smallest ? found[i] : smallest;
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
