// Backward: every wanted gradient in one pass, elementwise given the moments of the other role.
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
        kept &= magnitude<A>(pull) >= r.least_share * magnitude<A>(own);
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

struct Item {
  const Pass& pass;
  int64_t s, e;
  int width;
  Rows rows;
};

void zero(char* to, int64_t bytes, bool stream) {
  if (!stream) {
    std::memset(to, 0, bytes);
    return;
  }
  for (int64_t i = 0; i < bytes; i += kBytes) write_past(to + i, V<float>{});
}

// A gradient: where its rows go, or zeros.
template <class Out>
struct Gradient {
  const View& view;
  const bool wanted, stream;
  alignas(64) Out buffer[sizeof(Out) > 2 ? kWidth : 1];

  Gradient(const View& view, bool wanted, bool stream)
      : view(view), wanted(wanted), stream(stream) {}

  FUSED_MI_INLINE bool direct() const {
    return view.type == TypeOf<Out>::value;
  }
  FUSED_MI_INLINE Out* begin(const Item& at, int64_t row, bool has) {
    if (!wanted) return nullptr;
    char* to = view.at(row, at.s, at.e);
    if (has) return direct() ? reinterpret_cast<Out*>(to) : buffer;
    zero(to, at.width * size_of(view.type), stream);
    return nullptr;
  }
  FUSED_MI_INLINE void end(const Item& at, int64_t row, bool has) {
    if constexpr (sizeof(Out) > 2) {
      if (wanted && has && !direct()) {
        convert_to(view.type, buffer, view.at(row, at.s, at.e), at.width);
      }
    }
  }
};

// A plane of the state of mixture d, as A.
template <class A>
const A* state_of(
    const MomentsBackward& call, const Item& at, int64_t d, int i, A (&buffer)[kWidth]) {
  const MomentsInputs& in = call.in;
  const int64_t here = ((d * 4 + i) * in.S + at.s) * in.E + at.e;
  if (in.wide_state() == (sizeof(A) == 8)) return reinterpret_cast<const A*>(call.state) + here;
  const double* from = reinterpret_cast<const double*>(call.state) + here;
  for (int f = 0; f < at.width; ++f) buffer[f] = static_cast<A>(from[f]);
  return buffer;
}

// Memory of what all rows of an item share, for what is not in place as A.
template <class A>
struct Shared {
  alignas(64) A shifts[2][kWidth], state[4][kWidth];
};

// A mean in float64 as its nearest A and the rest: however far its shift is, no digits of it are lost.
template <class A>
void split_mean(
    const View& view, int64_t first, const Item& at, const double* state, A (&shift)[kWidth],
    A (&delta)[kWidth]) {
  alignas(64) double buffer[kWidth];
  const double* from = read(view, first, at.s, at.e, at.width, buffer);
  for (int f = 0; f < at.width; ++f) {
    const double mean = from[f] + state[f];
    shift[f] = static_cast<A>(mean);
    delta[f] = static_cast<A>((from[f] - static_cast<double>(shift[f])) + state[f]);
  }
}

// What all rows of an item share.
template <class A, class In>
Row<A, In> shared_row(const MomentsBackward& call, const Item& at, Shared<A>& buffers) {
  const MomentsInputs& in = call.in;
  const int64_t as_samples = at.pass.as_samples, as_components = at.pass.as_components;
  Row<A, In> r{};
  r.least_share = static_cast<A>(in.least_share(sizeof(A) == 8));
  const bool split = sizeof(A) == 4 && in.wide_state();
  const auto exact = [&](int64_t d, int i) {
    return reinterpret_cast<const double*>(call.state) + ((d * 4 + i) * in.S + at.s) * in.E + at.e;
  };
  if (as_samples >= 0) {
    const Position& position = call.positions[as_samples * in.S + at.s];
    r.delta_c = state_of(call, at, as_samples, 2, buffers.state[0]);
    r.weight = state_of(call, at, as_samples, 3, buffers.state[1]);
    r.sample_eps = static_cast<A>(in.mixtures[as_samples].sample_eps);
    r.upstream_y = static_cast<A>(call.upstream[as_samples * 3]);
    if (position.components > 0 && split) {
      split_mean(
          in.x, position.first_component, at, exact(as_samples, 2), buffers.shifts[0],
          buffers.state[0]);
      r.x_shift = buffers.shifts[0];
    } else if (position.components > 0) {
      r.x_shift =
          read(in.x, position.first_component, at.s, at.e, at.width, buffers.shifts[0]);
    }
  }
  if (as_components >= 0) {
    const Position& position = call.positions[as_components * in.S + at.s];
    r.delta_y = state_of(call, at, as_components, 0, buffers.state[2]);
    r.m2_y = state_of(call, at, as_components, 1, buffers.state[3]);
    r.component_eps = static_cast<A>(in.mixtures[as_components].component_eps);
    r.upstream_c = static_cast<A>(call.upstream[as_components * 3]);
    r.samples = static_cast<A>(position.samples);
    if (position.samples > 0 && split) {
      split_mean(
          in.y, position.first_sample, at, exact(as_components, 0), buffers.shifts[1],
          buffers.state[2]);
      r.y_shift = buffers.shifts[1];
    } else if (position.samples > 0) {
      r.y_shift = read(in.y, position.first_sample, at.s, at.e, at.width, buffers.shifts[1]);
    }
  }
  return r;
}

template <class A, class In>
bool pull_item(const MomentsBackward& call, const Item& at) {
  const MomentsInputs& in = call.in;
  const Pass& pass = at.pass;
  const Mixture* as_sample = pass.as_samples < 0 ? nullptr : in.mixtures + pass.as_samples;
  const Mixture* as_component = pass.as_components < 0 ? nullptr : in.mixtures + pass.as_components;
  const Position* sample_position =
      as_sample ? call.positions + pass.as_samples * in.S + at.s : nullptr;
  const Position* component_position =
      as_component ? call.positions + pass.as_components * in.S + at.s : nullptr;
  alignas(64) In buffers[4][sizeof(In) > 2 ? kWidth : 1];
  Shared<A> shared;
  Row<A, In> r = shared_row<A, In>(call, at, shared);
  r.stream = call.stream;
  Shared<double> shared_exact;
  Row<double, double> exact{};
  if (in.exclude_diagonal) exact = shared_row<double, double>(call, at, shared_exact);
  Lost lost;

  Gradient<In> d_y(call.d_y, pass.write_y, r.stream), d_x(call.d_x, pass.write_x, r.stream);
  Gradient<In> d_mu(call.d_mu, pass.write_mu, r.stream);
  Gradient<In> d_stds(call.d_stds, pass.write_stds, r.stream);
  for (int64_t row = at.rows.start; row < at.rows.stop; ++row) {
    bool sample = as_sample && sample_contributes(in, *as_sample, *sample_position, row, at.s);
    bool component =
        as_component && component_contributes(in, *as_component, *component_position, row, at.s);
    bool own = sample && in.own_stds && d_stds.wanted;
    bool diagonal = in.exclude_diagonal && sample && component;
    r.d_y = d_y.begin(at, row, sample);
    r.d_x = d_x.begin(at, row, component);
    r.d_mu = d_mu.begin(at, row, component);
    r.d_stds = d_stds.begin(at, row, own || component);
    if (!r.d_y && !r.d_x && !r.d_mu && !r.d_stds) continue;
    if (sample && (r.d_y || diagonal)) r.y = read(in.y, row, at.s, at.e, at.width, buffers[0]);
    if (own || component) r.stds = read(in.stds, row, at.s, at.e, at.width, buffers[1]);
    if (component) {
      r.x = read(in.x, row, at.s, at.e, at.width, buffers[2]);
      r.mu = read(in.mu, row, at.s, at.e, at.width, buffers[3]);
      int64_t partners = component_position->samples - diagonal;
      exact.upstream_g = call.upstream[pass.as_components * 3 + 1] * static_cast<double>(partners);
      r.upstream_g = static_cast<A>(exact.upstream_g);
    }
    if (own) {
      int64_t partners = sample_position->components - diagonal;
      exact.upstream_k = call.upstream[pass.as_samples * 3 + 2] * static_cast<double>(partners);
      r.upstream_k = static_cast<A>(exact.upstream_k);
    }
    if (!pull_row(r, at.width, own, component, diagonal, lost)) return false;
    if constexpr (sizeof(A) == 4) {
      if (lost.count > 0 && !pull_again(r, exact, lost, own)) return false;
    }
    d_y.end(at, row, sample);
    d_x.end(at, row, component);
    d_mu.end(at, row, component);
    d_stds.end(at, row, own || component);
  }
  return true;
}

template <class A>
bool pull_items(const MomentsBackward& call, int64_t begin, int64_t end) {
  const Cut& cut = call.cut;
  const View* inputs[] = {&call.in.y, &call.in.x, &call.in.mu, &call.in.stds};
  bool exact = true;
  for (int64_t item = begin; item < end && exact; ++item) {
    int64_t split = item % cut.splits, tile = item / cut.splits % cut.tiles();
    const Pass& pass = call.passes[item / cut.splits / cut.tiles()];
    int64_t s = tile / cut.blocks, e = tile % cut.blocks * cut.width;
    Item at{pass, s, e, cut.width_at(e), cut.part(pass.rows, split)};
    with_input<A>(inputs, 4, [&](auto type) { exact = pull_item<A, decltype(type)>(call, at); });
  }
  if (call.stream) finish_writes();
  return exact;
}

bool gradients(const MomentsBackward& call, int64_t begin, int64_t end) {
  return call.in.wide ? pull_items<double>(call, begin, end) : pull_items<float>(call, begin, end);
}

}  // namespace

extern const MomentsBackwardKernels moments_backward_kernels = {gradients};

}  // namespace fused_mi::FUSED_MI_PATH
