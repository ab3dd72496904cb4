// From the moments of a column, one feature of one position, to what the backward pass needs and to q.
#pragma once

#include "jensen.h"
#include "moments.h"

namespace fused_mi {

// Of the parts; the last four where rows are left out.
enum Plane { MEAN_Y, M2_Y, WEIGHT, MEAN_C, M2_C, kHalvesPlanes, Q = kHalvesPlanes, HEAVIEST, LOWEST, HIGHEST, kAlonePlanes };

template <class T>
struct ColumnShifts {
  T y = 0, x = 0, mu = 0;
};

// Of a thread's columns, what rows are measured from: the first one that contributes. Where rows are left
// out y is x + mu of the first component, rounded, of which x and mu are two parts.
template <class F>
struct Shifts {
  using T = typename F::Number;
  T y[F::V] = {}, x[F::V] = {}, mu[F::V] = {};

  template <class Place>
  GPU_DEVICE Shifts(
      const Jensen& in, const Mixture& of, const Counts& counts, const Place& place, bool some) {
    if (!some || !place.inside) return;
    const int64_t row_l = of.component_start + counts.first_l;
    const auto raw_x = F::load(in.x, in.x.at(row_l, place.s, place.e));
    const auto raw_mu = F::load(in.mu, in.mu.at(row_l, place.s, place.e));
    const auto raw_y = F::load(in.y, in.y.at(of.sample_start + counts.first_i, place.s, place.e));
    GPU_UNROLL
    for (int j = 0; j < F::V; ++j) {
      const T of_x = F::get(raw_x, j), of_mu = F::get(raw_mu, j), both = of_x + of_mu;
      // Both without the larger part is exact.
      const bool larger = gpu::size(of_x) >= gpu::size(of_mu);
      y[j] = in.alone ? both : F::get(raw_y, j);
      x[j] = !in.alone || larger ? of_x : both - of_mu;
      mu[j] = !in.alone || !larger ? of_mu : both - of_x;
    }
  }

  GPU_DEVICE ColumnShifts<T> column(int j) const { return {y[j], x[j], mu[j]}; }
};

// A column of all rows that were joined.
template <class T>
struct Whole {
  Moments<T> samples, components;
  T q = 0, heaviest = 0, lowest = gpu::infinity<T>(), highest = -gpu::infinity<T>();

  // Of `count` disjoint sets of rows, from their planes.
  template <class At, class Number>
  static GPU_DEVICE Whole halves(int count, const At& at, const Number& number) {
    Whole all;
    all.samples = union_of<T>(count, [&](int i) {
      return Moments<T>{number(i), at(MEAN_Y, i), at(M2_Y, i)};
    });
    all.components = union_of<T>(count, [&](int i) {
      return Moments<T>{at(WEIGHT, i), at(MEAN_C, i), at(M2_C, i)};
    });
    return all;
  }

  // The same where no row meets itself: pairs within the sets, and between each and those before it.
  template <class At, class Number>
  static GPU_DEVICE Whole alone(int count, const At& at, const Number& number) {
    Whole all = halves(count, at, number);
    Moments<T> samples, components;
    for (int i = 0; i < count; ++i) {
      const Moments<T> more_i{number(i), at(MEAN_Y, i), at(M2_Y, i)};
      const Moments<T> more_l{at(WEIGHT, i), at(MEAN_C, i), at(M2_C, i)};
      all.q += at(Q, i) + (between(samples, more_l) + between(more_i, components));
      merge(samples, more_i, more_i.weight / gpu::most(samples.weight + more_i.weight, T(1)));
      merge(components, more_l);
      all.heaviest = gpu::most(all.heaviest, at(HEAVIEST, i));
      all.lowest = gpu::least(all.lowest, at(LOWEST, i));
      all.highest = gpu::most(all.highest, at(HIGHEST, i));
    }
    return all;
  }

  // (4, S, E) of a mixture: the samples' mean from y of the first row and their m2, the components' mean
  // from x + mu, rounded, of the first row and their weight; where rows are left out both means are from
  // that, and the weight is negative where some row is too large a part of all. NaN where the column is
  // lost: pairs will be summed one by one. Returns q, times 2, or 0 where it is lost.
  GPU_DEVICE double settle(
      const Jensen& in, int d, const Counts& counts, int64_t column, const ColumnShifts<T>& shift,
      bool some) const {
    T sum = q, weight = components.weight, mean_c = components.mean, rest = 0;
    bool lost;
    if (in.alone) {
      const T step = samples.mean - mean_c;
      lost = far(samples.weight, samples.mean, shift.y + samples.mean,
                 gpu::fma(samples.weight * step, step, samples.m2)) ||
             far(weight, mean_c, shift.y + mean_c, components.m2 + counts.m) ||
             !(gpu::size(mean_c) + gpu::size(samples.mean) < gpu::infinity<T>());
      const T own = gpu::most(highest - samples.mean, samples.mean - lowest);
      const bool most = 2 * own * own * samples.weight > (samples.weight - 1) * samples.m2 ||
                        2 * heaviest > weight;
      if (most) weight = -weight;
    } else {
      const T c_shift = two_sum(shift.x, shift.mu, rest);
      mean_c += rest;
      sum = between(samples, components, (shift.y - c_shift) + (samples.mean - mean_c));
      // A sample is about sqrt v away from its component: the weights times that are their number.
      lost = far(samples.weight, samples.mean, shift.y + samples.mean, samples.m2) ||
             far(weight, mean_c, c_shift + mean_c, components.m2 + counts.m);
    }
    lost = some && (lost || !(sum < Limits<T>::SUM));
    const double nan = __builtin_nan("");
    const int64_t plane = in.S * in.E, to = 4 * d * plane + column;
    in.state.set(to, lost ? nan : static_cast<double>(samples.mean));
    in.state.set(to + plane, lost ? nan : static_cast<double>(samples.m2));
    in.state.set(to + 2 * plane, lost ? nan : static_cast<double>(mean_c));
    in.state.set(to + 3 * plane, lost ? nan : static_cast<double>(weight));
    return some && !lost ? static_cast<double>(sum) : 0.0;
  }

  // What a block of `accumulate` leaves of a column: its state, or a part.
  template <class Place>
  GPU_DEVICE double leave(
      const Jensen& in, int d, int split, const Counts& counts, const Place& place, int j,
      const ColumnShifts<T>& shift, bool some) const {
    if (in.splits == 1) return settle(in, d, counts, place.column + j, shift, some);
    const int64_t plane = in.S * in.E, part = static_cast<int64_t>(d) * in.splits + split;
    const int planes = in.alone ? kAlonePlanes : kHalvesPlanes;
    T* to = static_cast<T*>(in.parts) + part * planes * plane + place.column + j;
    to[MEAN_Y * plane] = samples.mean, to[M2_Y * plane] = samples.m2;
    to[WEIGHT * plane] = components.weight, to[MEAN_C * plane] = components.mean;
    to[M2_C * plane] = components.m2;
    if (in.alone) {
      to[Q * plane] = q, to[HEAVIEST * plane] = heaviest;
      to[LOWEST * plane] = lowest, to[HIGHEST * plane] = highest;
    }
    // The same number of every column.
    if (place.e + j == 0) static_cast<T*>(in.samples)[part * in.S + place.s] = samples.weight;
    return 0;
  }
};

}  // namespace fused_mi
