// Weighted means and squares of sets merge as those of rows do (Chan, Golub & LeVeque 1979).
#include "merge.h"

#include <cmath>
#include <memory>

namespace fused_mi::FUSED_MI_PATH {
namespace {

constexpr int kWidth = Merge::kWidth;

// Of the union of some sets: the mean is `pivot + delta`, `between` the squares of the sets' own means.
struct Union {
  double weight[kWidth], pivot[kWidth], delta[kWidth], between[kWidth];
};

// One item: `width` columns from `column` on, of mixture d.
template <class T>
struct Columns {
  const Merge& in;
  const T* planes;        // of set 0
  const int64_t* counts;  // of set 0
  int64_t column;
  int width;
  double* number;  // (sets, kWidth): samples of each set, of each column

  FUSED_MI_INLINE const T* plane(int64_t set, int i) const {
    return planes + (set * 6 + i) * in.n + column;
  }
  FUSED_MI_INLINE const double* of_set(int64_t set) const {
    return number + set * kWidth;
  }
};

// The union of all sets but `without`; `first`: the plane of the means, samples' (0) or components' (3).
template <class T>
void unite(const Columns<T>& at, int first, int64_t without, Union& to) {
  const int width = at.width;
  auto weight = [&](int64_t set, int f) __attribute__((always_inline)) {
    return first == 0 ? at.of_set(set)[f] : static_cast<double>(at.plane(set, 5)[f]);
  };
  for (int f = 0; f < width; ++f) to.weight[f] = to.pivot[f] = to.delta[f] = to.between[f] = 0;
  for (int64_t set = 0; set < at.in.sets; ++set) {
    if (set == without) continue;
    const T* mean = at.plane(set, first);
    for (int f = 0; f < width; ++f) {
      const double more = weight(set, f);
      to.pivot[f] = to.weight[f] == 0 && more > 0 ? static_cast<double>(mean[f]) : to.pivot[f];
      to.weight[f] += more;
    }
  }
  for (int64_t set = 0; set < at.in.sets; ++set) {
    if (set == without) continue;
    const T *mean = at.plane(set, first), *rest = at.plane(set, first + 1);
    for (int f = 0; f < width; ++f) {
      const double more = weight(set, f), from = (mean[f] - to.pivot[f]) + rest[f];
      to.delta[f] += more > 0 ? more / to.weight[f] * from : 0;
    }
  }
  for (int64_t set = 0; set < at.in.sets; ++set) {
    if (set == without) continue;
    const T *mean = at.plane(set, first), *rest = at.plane(set, first + 1);
    for (int f = 0; f < width; ++f) {
      const double more = weight(set, f);
      const double from = ((mean[f] - to.pivot[f]) + rest[f]) - to.delta[f];
      to.between[f] += more > 0 ? more * from * from : 0;
    }
  }
}

template <class T>
bool write(T* to, int64_t n, const Union& u, const double* last, int width) {
  double lost = 0;
  for (int f = 0; f < width; ++f) {
    const T mean = static_cast<T>(u.pivot[f] + u.delta[f]);
    const T rest = static_cast<T>((u.pivot[f] - static_cast<double>(mean)) + u.delta[f]);
    const T other = static_cast<T>(last[f]);
    to[f] = mean, to[n + f] = rest, to[2 * n + f] = other;
    // An input that has no room is NaN or infinite, and so is what becomes of it.
    lost += std::isfinite(mean) && std::isfinite(rest) && std::isfinite(other) ? 0.0 : 1.0;
  }
  return lost == 0;
}

// The sum of q between samples, their means and squares as given, and the components of a union.
template <class Mean, class Rest, class Squares>
double cross(
    const double* number, const Union& components, int width, Mean&& mean, Rest&& rest,
    Squares&& squares) {
  double total = 0;
  for (int f = 0; f < width; ++f) {
    const double n = number[f], weight = components.weight[f];
    const double distance = (mean(f) - components.pivot[f]) + (rest(f) - components.delta[f]);
    const double q =
        squares(f) * weight + n * weight * distance * distance + n * components.between[f];
    total += n > 0 && weight > 0 ? q : 0;
  }
  return total / 2;
}

template <class T>
bool merge_item(const Columns<T>& at, T* merged, double* sum) {
  const Merge& in = at.in;
  Union samples, components;
  alignas(64) double squares[kWidth];
  bool room = true;
  *sum = 0;
  for (int64_t k = 0; k < in.results(); ++k) {
    const int64_t without = in.apart ? k : -1;
    unite(at, 0, without, samples);
    unite(at, 3, without, components);
    for (int f = 0; f < at.width; ++f) squares[f] = samples.between[f];
    for (int64_t set = 0; set < in.sets; ++set) {
      if (set == without) continue;
      const T* m2 = at.plane(set, 2);
      for (int f = 0; f < at.width; ++f) squares[f] += m2[f];
    }
    T* to = merged + k * 6 * in.n;
    room &= write(to, in.n, samples, squares, at.width);
    room &= write(to + 3 * in.n, in.n, components, components.weight, at.width);
    if (in.apart) {
      const T *mean = at.plane(k, 0), *rest = at.plane(k, 1), *m2 = at.plane(k, 2);
      *sum += cross(
          at.of_set(k), components, at.width, [&](int f) { return static_cast<double>(mean[f]); },
          [&](int f) { return static_cast<double>(rest[f]); },
          [&](int f) { return static_cast<double>(m2[f]); });
    } else {
      *sum += cross(
          samples.weight, components, at.width, [&](int f) { return samples.pivot[f]; },
          [&](int f) { return samples.delta[f]; }, [&](int f) { return squares[f]; });
    }
  }
  return room;
}

template <class T>
bool merge_items(const Merge& in, int64_t begin, int64_t end) {
  const std::unique_ptr<double[]> number(new double[in.sets * kWidth]);
  bool room = true;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t d = item / in.items(), column = item % in.items() * kWidth;
    const int width = static_cast<int>(kWidth < in.n - column ? kWidth : in.n - column);
    const Columns<T> at{
        in, static_cast<const T*>(in.planes) + d * in.sets * 6 * in.n,
        in.counts + d * in.sets * in.positions, column, width, number.get()};
    for (int64_t set = 0; set < in.sets; ++set) {
      for (int f = 0; f < width; ++f) {
        const int64_t position = (in.first + column + f) / in.features - in.first / in.features;
        number[set * kWidth + f] = static_cast<double>(at.counts[set * in.positions + position]);
      }
    }
    T* merged = static_cast<T*>(in.merged) + d * in.results() * 6 * in.n + column;
    room &= merge_item(at, merged, in.sums + item);
  }
  return room;
}

bool merge(const Merge& in, int64_t begin, int64_t end) {
  return in.wide ? merge_items<double>(in, begin, end) : merge_items<float>(in, begin, end);
}

}  // namespace

extern const MergeKernels merge_kernels = {merge};

}  // namespace fused_mi::FUSED_MI_PATH
