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

// The gradients of a row. OWN: that of a sample's own variance; COMPONENT: those of a component;
// DIAGONAL: the row is a sample as well, and does not meet itself. That of y wherever it is wanted.
// False where the diagonal takes the digits.
template <bool OWN, bool COMPONENT, bool DIAGONAL, class A, class In>
bool pull_row(const Row<A, In>& r, int width) {
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

    if (r.d_y) {
      V<A> from_mean =
          (load<A>(r.y + f, part) - load<A>(r.x_shift + f, part)) - load<A>(r.delta_c + f, part);
      V<A> weight = load<A>(r.weight + f, part), pull = weight * from_mean;
      if constexpr (DIAGONAL) {
        pull -= component.precision * own_distance;
        V<A> others = inside<A>(weight - component.precision, component.precision, part);
        lost |= others < r.least_share * component.precision;
      }
      store(r.d_y + f, packed(r.upstream_y * pull, In{}), part, r.stream);
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
        }
        pull_stds += component.slope * (r.upstream_g - r.upstream_c * squares);
      }
    }
    if constexpr (OWN || COMPONENT) {
      if (r.d_stds) store(r.d_stds + f, packed(pull_stds, In{}), part, r.stream);
    }
  });
  return !any<A>(lost);
}

template <class A, class In>
bool pull_row(const Row<A, In>& r, int width, bool own, bool component, bool diagonal) {
  if constexpr (sizeof(A) == 8) {  // without the diagonal always
    if (diagonal && own) return pull_row<true, true, true>(r, width);
    if (diagonal) return pull_row<false, true, true>(r, width);
  }
  if (component) {
    return own ? pull_row<true, true, false>(r, width) : pull_row<false, true, false>(r, width);
  }
  return own ? pull_row<true, false, false>(r, width) : pull_row<false, false, false>(r, width);
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

template <class A, class In>
bool pull_item(const MomentsBackward& call, const Item& at) {
  const MomentsInputs& in = call.in;
  const Pass& pass = at.pass;
  const Mixture* as_sample = pass.as_samples < 0 ? nullptr : in.mixtures + pass.as_samples;
  const Mixture* as_component = pass.as_components < 0 ? nullptr : in.mixtures + pass.as_components;
  const Position *sample_position = nullptr, *component_position = nullptr;
  const int64_t plane = in.S * in.E, here = at.s * in.E + at.e;
  alignas(64) A shifts[2][kWidth];
  alignas(64) In buffers[4][sizeof(In) > 2 ? kWidth : 1];
  Row<A, In> r{};
  r.stream = call.stream;
  r.least_share = static_cast<A>(in.least_share());
  if (as_sample) {
    sample_position = call.positions + pass.as_samples * in.S + at.s;
    const A* state = reinterpret_cast<const A*>(call.state) + pass.as_samples * 4 * plane + here;
    const double* upstream = call.upstream + pass.as_samples * 3;
    r.delta_c = state + 2 * plane;
    r.weight = state + 3 * plane;
    r.sample_eps = static_cast<A>(as_sample->sample_eps);
    r.upstream_y = static_cast<A>(upstream[0]);
    if (sample_position->components > 0) {
      r.x_shift = read(in.x, sample_position->first_component, at.s, at.e, at.width, shifts[0]);
    }
  }
  if (as_component) {
    component_position = call.positions + pass.as_components * in.S + at.s;
    const A* state = reinterpret_cast<const A*>(call.state) + pass.as_components * 4 * plane + here;
    const double* upstream = call.upstream + pass.as_components * 3;
    r.delta_y = state;
    r.m2_y = state + plane;
    r.component_eps = static_cast<A>(as_component->component_eps);
    r.upstream_c = static_cast<A>(upstream[0]);
    r.samples = static_cast<A>(component_position->samples);
    if (component_position->samples > 0) {
      r.y_shift = read(in.y, component_position->first_sample, at.s, at.e, at.width, shifts[1]);
    }
  }

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
      r.upstream_g = static_cast<A>(call.upstream[pass.as_components * 3 + 1] * static_cast<double>(partners));
    }
    if (own) {
      int64_t partners = sample_position->components - diagonal;
      r.upstream_k = static_cast<A>(call.upstream[pass.as_samples * 3 + 2] * static_cast<double>(partners));
    }
    if (!pull_row(r, at.width, own, component, diagonal)) return false;
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
