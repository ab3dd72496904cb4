// Weighted moments of rows, of two sets of them as of their union (Chan, Golub & LeVeque 1979), and of the
// pairs between two sets.
#pragma once

#include "gpu.h"

namespace fused_mi {

constexpr double kLn2 = 0.6931471805599453, kLog2Pi = 1.8378770664093453;

template <class T>
struct Limits;  // of regular numbers: see docs/kernels.md
template <>
struct Limits<float> {
  static constexpr float LEAST = 0x1p-100f;    // of a weight that is divided by
  static constexpr float VARIANCE = 0x1p62f;   // and its inverse
  static constexpr float SUM = 0x1p100f;
};
template <>
struct Limits<double> {
  static constexpr double LEAST = 0x1p-1000;
  static constexpr double VARIANCE = 0x1p505;
  static constexpr double SUM = 0x1p1000;
};

template <class T>
struct Moments {
  T weight = 0, mean = 0, m2 = 0;
};

// 1 / weight, of 0 something finite.
template <class T>
GPU_DEVICE T inverse(T weight) {
  return gpu::reciprocal(gpu::most(weight, Limits<T>::LEAST));
}

// `share` is more.weight / (to.weight + more.weight).
template <class T>
GPU_DEVICE void merge(Moments<T>& to, const Moments<T>& more, T share) {
  const T step = more.mean - to.mean;
  to.m2 = gpu::fma(to.weight * share * step, step, to.m2 + more.m2);
  to.mean = gpu::fma(share, step, to.mean);
  to.weight += more.weight;
}
template <class T>
GPU_DEVICE void merge(Moments<T>& to, const Moments<T>& more) {
  merge(to, more, more.weight * inverse(to.weight + more.weight));
}

// Of `count` disjoint sets, `of(i)` each: in two passes, for the mean is not to depend on their order.
template <class T, class Of>
GPU_DEVICE Moments<T> union_of(int count, const Of& of) {
  Moments<T> all;
  T sum = 0, rest = 0;
  for (int i = 0; i < count; ++i) {
    const Moments<T> m = of(i);
    all.weight += m.weight;
    sum = gpu::fma(m.weight, m.mean, sum);
  }
  const T over = inverse(all.weight);
  all.mean = sum * over;
  for (int i = 0; i < count; ++i) {
    const Moments<T> m = of(i);
    const T deviation = m.mean - all.mean, moment = m.weight * deviation;
    rest += moment;
    all.m2 += gpu::fma(moment, deviation, m.m2);
  }
  all.mean = gpu::fma(rest, over, all.mean);  // what it lacks by rounding counts beside a large weight
  return all;
}

// Samples against components, times 2.
template <class T>
GPU_DEVICE T between(const Moments<T>& samples, const Moments<T>& components, T distance) {
  const T of_means = samples.weight * components.weight * distance;
  return gpu::fma(
      samples.m2, components.weight, gpu::fma(of_means, distance, samples.weight * components.m2));
}
template <class T>
GPU_DEVICE T between(const Moments<T>& samples, const Moments<T>& components) {
  return between(samples, components, samples.mean - components.mean);
}

// Of four rows, `use(i)` says which count, `weight` their number: their mean first.
template <class T, class Use>
GPU_DEVICE Moments<T> of_samples(const T (&y)[4], T weight, T over, const Use& use) {
  Moments<T> found;
  found.weight = weight;
  found.mean = ((y[0] + y[1]) + (y[2] + y[3])) * over;
  GPU_UNROLL
  for (int i = 0; i < 4; ++i) {
    const T d = use(i) ? y[i] - found.mean : T(0);
    found.m2 = gpu::fma(d, d, found.m2);
  }
  return found;
}

// REFINED: also what the mean lacks by rounding, which counts where one row has most of the weight.
template <bool REFINED, class T>
GPU_DEVICE Moments<T> of_components(const T (&c)[4], const T (&p)[4]) {
  Moments<T> found;
  found.weight = (p[0] + p[1]) + (p[2] + p[3]);
  const T over = inverse(found.weight);
  T sum = 0;
  GPU_UNROLL
  for (int i = 0; i < 4; ++i) sum = gpu::fma(p[i], c[i], sum);
  found.mean = sum * over;
  T rest = 0;
  GPU_UNROLL
  for (int i = 0; i < 4; ++i) {
    const T d = c[i] - found.mean, moment = p[i] * d;
    if (REFINED) rest += moment;
    found.m2 = gpu::fma(moment, d, found.m2);
  }
  if (REFINED) found.mean = gpu::fma(rest, over, found.mean);
  return found;
}

// Sums of log2 v, and the ends of v.
template <class T>
struct Logs {
  T sum = 0, least = 1, largest = 1;

  GPU_DEVICE void look(T v) {
    least = gpu::least(least, v);
    largest = gpu::most(largest, v);
  }
  GPU_DEVICE bool odd() const {
    return largest > Limits<T>::VARIANCE || least < 1 / Limits<T>::VARIANCE;
  }
};

// sqrt(sigma^2 + eps) > 0 where no square may leave the range.
GPU_DEVICE double root_of(double sigma, double eps) {
  const double a = gpu::size(sigma), b = ::sqrt(eps);
  const double large = a > b || a != a ? a : b, small = a > b ? b : a;
  const double ratio = large > 0 ? small / large : 0;
  const double root = large * ::sqrt(gpu::fma(ratio, ratio, 1.0));
  return root == 0 ? 0x1p-1074 : root;
}

// a + b, and its rounding error (Knuth, The Art of Computer Programming, 4.2.2).
template <class T>
GPU_DEVICE T two_sum(T a, T b, T& rest) {
  const T total = a + b, of_b = total - a;
  rest = (a - (total - of_b)) + (b - of_b);
  return total;
}

// Whether a shift is further from a mean than 8 root mean squares of the rows; `m2` is their spread, and
// what else a difference from them is made of.
template <class T>
GPU_DEVICE bool far(T weight, T delta, T mean, T m2) {
  const T over = gpu::reciprocal(delta);  // of 0 infinite, and what follows infinite or NaN: not less
  const T of_mean = mean * over;
  return of_mean * of_mean * weight + m2 * over * over < weight / 64;
}

// Their product; an upstream gradient of 0 does not meet what is infinite.
template <class T>
GPU_DEVICE T weighted(T upstream, T pull) { return upstream == 0 ? T(0) : upstream * pull; }

}  // namespace fused_mi
