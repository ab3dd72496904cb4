// The gradients of one row, elementwise given the moments of the other role.
#pragma once

#include "moments.h"
#include "variance_terms.h"

namespace fused_mi::FUSED_MI_PATH {
namespace {

constexpr int kWidth = Cut::kWidth;

// One row of an item: inputs, what does not depend on the row, and where gradients go.
template <class A, class In>
struct Row {
  const In *y, *x, *mu, *stds;
  const A *x_shift, *delta_c, *weight;  // of the components that the sample meets
  const A *y_shift, *delta_y, *m2_y;    // of the samples that the component meets
  A upstream_y, upstream_c;             // of q
  A upstream_g, upstream_k;             // times the number of partners
  A samples;                            // that the component meets
  A sample_eps, component_eps;
  A least_share;  // see MomentsInputs
  In *d_y, *d_x, *d_mu, *d_stds;  // nullptr: not wanted
  bool stream;                    // write them past the caches
};

// Features of a row of which the diagonal takes the digits of float32.
struct Lost {
  int count;
  int features[kWidth];

  FUSED_MI_INLINE void add(int f, unsigned lanes) {
    for (; lanes != 0; lanes &= lanes - 1) features[count++] = f + __builtin_ctz(lanes);
  }
};

template <class A>
FUSED_MI_INLINE V<A> magnitude(V<A> value) {
  return value < 0 ? -value : value;
}

// The gradients of a row. OWN: that of a sample's own variance; COMPONENT: those of a component;
// DIAGONAL: the row is a sample as well, and does not meet itself. That of y wherever it is wanted.
// What the diagonal takes the digits of is `again` to be computed, from float32; from float64: false.
template <bool OWN, bool COMPONENT, bool DIAGONAL, class A, class In>
bool pull_row(const Row<A, In>& r, int width, Lost& again) {
  Bits<A> lost{};
  over_vectors<A>(width, [&](int f, auto part) __attribute__((always_inline)) {
    V<A> sigma{}, x{}, mu{}, own_distance{}, pull_stds{};
    Terms<A> component{};
    if constexpr (OWN || COMPONENT) sigma = load<A>(r.stds + f, part);
    if constexpr (COMPONENT) {
      component = variance_terms<A>(sigma, r.component_eps);
      x = load<A>(r.x + f, part);
      mu = load<A>(r.mu + f, part);
    }
    if constexpr (DIAGONAL) own_distance = (load<A>(r.y + f, part) - x) - mu;
    Bits<A> kept = ~Bits<A>{};  // not where a sum is NaN

    if (DIAGONAL || r.d_y) {
      V<A> from_mean =
          (load<A>(r.y + f, part) - load<A>(r.x_shift + f, part)) - load<A>(r.delta_c + f, part);
      V<A> weight = load<A>(r.weight + f, part), pull = weight * from_mean;
      if constexpr (DIAGONAL) {
        V<A> own = component.precision * own_distance;
        pull -= own;
        V<A> others = inside<A>(weight - component.precision, component.precision, part);
        lost |= others < r.least_share * component.precision;
        kept &= others >= r.least_share * component.precision;
        // Signed terms: they are mostly larger than their sum.
        kept &= magnitude<A>(pull) >= A(0.5) * r.least_share * magnitude<A>(own);
      }
      if (r.d_y) store(r.d_y + f, packed(r.upstream_y * pull, In{}), part, r.stream);
    }
    if constexpr (OWN) {
      pull_stds = r.upstream_k * variance_terms<A>(sigma, r.sample_eps).slope;
    }
    if constexpr (COMPONENT) {
      V<A> from_mean = ((x - load<A>(r.y_shift + f, part)) + mu) - load<A>(r.delta_y + f, part);
      if (r.d_x || r.d_mu) {
        V<A> pull = r.samples * from_mean;
        if constexpr (DIAGONAL) pull += own_distance;
        auto both = packed(r.upstream_c * (component.precision * pull), In{});
        if (r.d_x) store(r.d_x + f, both, part, r.stream);
        if (r.d_mu) store(r.d_mu + f, both, part, r.stream);
      }
      if (DIAGONAL || r.d_stds) {
        // Each square times the precision: alone it may overflow.
        V<A> squares = load<A>(r.m2_y + f, part) * component.precision +
            (r.samples * from_mean * component.precision) * from_mean;
        if constexpr (DIAGONAL) {
          V<A> own = (own_distance * component.precision) * own_distance;
          squares -= own;
          lost |= squares < r.least_share * own;
          kept &= squares >= r.least_share * own;
        }
        pull_stds += component.slope * (r.upstream_g - r.upstream_c * squares);
      }
    }
    if constexpr (OWN || COMPONENT) {
      if (r.d_stds) store(r.d_stds + f, packed(pull_stds, In{}), part, r.stream);
    }
    if constexpr (DIAGONAL && sizeof(A) == 4) again.add(f, lanes_of(~kept, part));
  });
  return sizeof(A) == 4 || !any<A>(lost);
}

template <class A, class In>
bool pull_row(
    const Row<A, In>& r, int width, bool own, bool component, bool diagonal, Lost& again) {
  again.count = 0;
  if (diagonal) {
    return own ? pull_row<true, true, true>(r, width, again)
               : pull_row<false, true, true>(r, width, again);
  }
  if (component) {
    return own ? pull_row<true, true, false>(r, width, again)
               : pull_row<false, true, false>(r, width, again);
  }
  return own ? pull_row<true, false, false>(r, width, again)
             : pull_row<false, false, false>(r, width, again);
}

// What float32 lost, in float64: `exact` has the state, and what is the same for all features.
template <class In>
bool pull_again(
    const Row<float, In>& r, Row<double, double> exact, const Lost& lost, bool own) {
  constexpr int kSome = 64;
  alignas(64) double inputs[10][kSome], gradients[3][kSome];
  const Row<double, double> from = exact;
  const double** const to[] = {&exact.y,       &exact.x,      &exact.mu,      &exact.stds,    &exact.x_shift,
                               &exact.y_shift, &exact.delta_c, &exact.weight, &exact.delta_y, &exact.m2_y};
  for (int i = 0; i < 10; ++i) *to[i] = inputs[i];
  exact.d_y = r.d_y ? gradients[0] : nullptr;
  exact.d_x = r.d_x || r.d_mu ? gradients[1] : nullptr;
  exact.d_stds = r.d_stds ? gradients[2] : nullptr;
  Lost none;
  for (int begin = 0; begin < lost.count; begin += kSome) {
    const int* which = lost.features + begin;
    const int count = lost.count - begin < kSome ? lost.count - begin : kSome;
    for (int i = 0; i < count; ++i) {
      const int f = which[i];
      inputs[0][i] = widen(r.y[f]), inputs[1][i] = widen(r.x[f]);
      inputs[2][i] = widen(r.mu[f]), inputs[3][i] = widen(r.stds[f]);
      inputs[4][i] = from.x_shift[f], inputs[5][i] = from.y_shift[f];
      inputs[6][i] = from.delta_c[f], inputs[7][i] = from.weight[f];
      inputs[8][i] = from.delta_y[f], inputs[9][i] = from.m2_y[f];
    }
    if (!pull_row(exact, count, own, true, true, none)) return false;
    for (int i = 0; i < count; ++i) {
      const int f = which[i];
      if (r.d_y) narrow(static_cast<float>(gradients[0][i]), r.d_y[f]);
      if (r.d_x) narrow(static_cast<float>(gradients[1][i]), r.d_x[f]);
      if (r.d_mu) narrow(static_cast<float>(gradients[1][i]), r.d_mu[f]);
      if (r.d_stds) narrow(static_cast<float>(gradients[2][i]), r.d_stds[f]);
    }
  }
  return true;
}

}  // namespace
}  // namespace fused_mi::FUSED_MI_PATH
