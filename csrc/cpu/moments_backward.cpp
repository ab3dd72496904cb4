// Backward: every wanted gradient in one pass, elementwise given the moments of the other role.
#include "moments_pull.h"

namespace fused_mi::FUSED_MI_PATH {
namespace {

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

// A mean, plane i of the state of mixture d, and the row that it is relative to. In float64 it becomes
// the nearest A and the rest: however far the row is, no digits of it are lost.
template <class A>
void share_mean(
    const MomentsBackward& call, const Item& at, const View& view, int64_t row, int64_t d, int i,
    A (&shifts)[kWidth], A (&rests)[kWidth], const A*& shift, const A*& delta) {
  shift = read(view, row, at.s, at.e, at.width, shifts);
  if (sizeof(A) == 8 || !call.in.wide_state()) {
    delta = state_of(call, at, d, i, rests);
    return;
  }
  alignas(64) double unused[kWidth];
  const double* state = state_of(call, at, d, i, unused);
  for (int f = 0; f < at.width; ++f) {
    const double from = shift[f], mean = from + state[f];
    shifts[f] = static_cast<A>(mean);
    rests[f] = static_cast<A>((from - static_cast<double>(shifts[f])) + state[f]);
  }
  shift = shifts, delta = rests;
}

// Plane i of what partners elsewhere have told, as A; false where A has no room for it, or for a mean.
template <class A>
bool told_plane(
    const MomentsBackward& call, const Item& at, int64_t d, int i, A (&buffer)[kWidth],
    const A*& plane) {
  const MomentsInputs& in = call.in;
  const double* from = reinterpret_cast<const double*>(call.state) +
      ((d * 6 + i) * in.S + at.s) * in.E + at.e;
  const bool split = i % 3 == 0;  // a mean: its rest is of no use beside another number
  double lost = 0;
  for (int f = 0; f < at.width; ++f) {
    buffer[f] = static_cast<A>(from[f]);
    const double back = buffer[f];
    lost += (split ? back == from[f] : std::isfinite(back)) ? 0.0 : 1.0;
  }
  plane = buffer;
  return lost == 0;
}

// What all rows of an item share, of partners elsewhere.
template <class A, class In>
bool told_row(const MomentsBackward& call, const Item& at, Shared<A>& buffers, Row<A, In>& r) {
  const MomentsInputs& in = call.in;
  const int64_t as_samples = at.pass.as_samples, as_components = at.pass.as_components;
  bool kept = true;
  if (as_samples >= 0) {
    kept &= told_plane(call, at, as_samples, 3, buffers.shifts[0], r.x_shift);
    kept &= told_plane(call, at, as_samples, 4, buffers.state[0], r.delta_c);
    kept &= told_plane(call, at, as_samples, 5, buffers.state[1], r.weight);
    r.sample_eps = static_cast<A>(in.mixtures[as_samples].sample_eps);
    r.upstream_y = static_cast<A>(call.upstream[as_samples * 3]);
  }
  if (as_components >= 0) {
    kept &= told_plane(call, at, as_components, 0, buffers.shifts[1], r.y_shift);
    kept &= told_plane(call, at, as_components, 1, buffers.state[2], r.delta_y);
    kept &= told_plane(call, at, as_components, 2, buffers.state[3], r.m2_y);
    r.component_eps = static_cast<A>(in.mixtures[as_components].component_eps);
    r.upstream_c = static_cast<A>(call.upstream[as_components * 3]);
    r.samples = static_cast<A>(in.met_by_components(as_components, at.s));
  }
  return kept;
}

// What all rows of an item share.
template <class A, class In>
Row<A, In> shared_row(const MomentsBackward& call, const Item& at, Shared<A>& buffers) {
  const MomentsInputs& in = call.in;
  const int64_t as_samples = at.pass.as_samples, as_components = at.pass.as_components;
  Row<A, In> r{};
  r.least_share = static_cast<A>(in.least_share(sizeof(A) == 8));
  if (as_samples >= 0) {
    const Position& position = call.positions[as_samples * in.S + at.s];
    r.weight = state_of(call, at, as_samples, 3, buffers.state[1]);
    r.sample_eps = static_cast<A>(in.mixtures[as_samples].sample_eps);
    r.upstream_y = static_cast<A>(call.upstream[as_samples * 3]);
    if (position.components > 0) {
      share_mean(
          call, at, in.x, position.first_component, as_samples, 2, buffers.shifts[0],
          buffers.state[0], r.x_shift, r.delta_c);
    }
  }
  if (as_components >= 0) {
    const Position& position = call.positions[as_components * in.S + at.s];
    r.m2_y = state_of(call, at, as_components, 1, buffers.state[3]);
    r.component_eps = static_cast<A>(in.mixtures[as_components].component_eps);
    r.upstream_c = static_cast<A>(call.upstream[as_components * 3]);
    r.samples = static_cast<A>(position.samples);
    if (position.samples > 0) {
      share_mean(
          call, at, in.y, position.first_sample, as_components, 0, buffers.shifts[1],
          buffers.state[2], r.y_shift, r.delta_y);
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
  Row<A, In> r{};
  if (in.partners == nullptr) {
    r = shared_row<A, In>(call, at, shared);
  } else if (!told_row(call, at, shared, r)) {
    return false;
  }
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
      const int64_t partners = in.partners != nullptr
          ? in.met_by_components(pass.as_components, at.s)
          : component_position->samples - diagonal;
      exact.upstream_g = call.upstream[pass.as_components * 3 + 1] * static_cast<double>(partners);
      r.upstream_g = static_cast<A>(exact.upstream_g);
    }
    if (own) {
      const int64_t partners = in.partners != nullptr
          ? in.met_by_samples(pass.as_samples, at.s)
          : sample_position->components - diagonal;
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
