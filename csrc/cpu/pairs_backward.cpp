// Backward: the differences once more, weighted by the upstream gradients and added up over the
// other role.
//
// An item is a block of features at a position, with all rows of both roles: each gradient is
// written once, zeros included where rows lack a role.
#include "pairs_pull.h"

namespace fused_mi::FUSED_MI_PATH {
namespace {

struct Item {
  int64_t s, e;
  int width;
};

// The gradients of one mixture into its `results`; false: see `gradients`.
template <class A, class In>
bool pull_mixture(const PairsBackward& call, const Item& at, int64_t d, Work<A>& work) {
  const MomentsInputs& in = call.in;
  const Mixture& m = in.mixtures[d];
  const Meeting rows = call.of(d);
  const Position& p = call.positions[d * in.S + at.s];
  Weights<A>& w = work.weights[d];
  if (w.position != at.s) {  // never where the weights are those of the call
    work.next.choose(in, m, p, at.s, rows.samples, rows.components);
    if (!w.ready || !(work.next == w.lists)) {
      w.lists.copy(work.next);
      for (int64_t i = 0; i < call.weigh_items(); ++i) weigh_item(call, d, w, i);
      w.ready = true;
    }
    w.position = at.s;
  }
  const Wanted wanted = wanted_of(call, d);
  const int samples = w.lists.sample_count, components = w.lists.component_count;
  if (!w.lists || (!wanted.samples && !wanted.components)) return true;
  Packer<A, In> packer(in, m, p, at.s, at.e, at.width);
  packer.samples(
      w.lists.samples, samples, rows.samples.start, [&](int n) __attribute__((always_inline)) {
        return Column<A>{work.samples + n, samples};
      });
  work.sizes.clear(static_cast<int>(ceil_div(at.width, kLanes<A>)));
  packer.components(
      w.lists.components, components, rows.components.start, work.sizes,
      [&](int l) __attribute__((always_inline)) {
        return Centre<A>{
            {work.root + l, components},
            {work.centre + l, components},
            {work.slope + l, components}};
      });
  const Results<A>& r = work.results[d];
  const int vectors = static_cast<int>(ceil_div(at.width, kLanes<A>));
  const FlushToZero flush;
  const bool finite = wanted.samples && wanted.components
      ? pull<true, true>(work, w, r, call.N, vectors)
      : wanted.samples ? pull<true, false>(work, w, r, call.N, vectors)
                       : pull<false, true>(work, w, r, call.N, vectors);
  return packer.range.regular() && !packer.far(work.sizes) &&
      (finite || in.wide || !call.finite_upstream);
}

// One row of a gradient; `value(v)` is its vector v.
template <class A, class In, class Value>
FUSED_MI_INLINE void write(
    const PairsBackward& call, const View& view, int64_t row, const Item& at, Value&& value) {
  char* to = view.at(row, at.s, at.e);
  const bool stream = call.stream;
  if (call.add) {
    A* sums = reinterpret_cast<A*>(to);
    over_vectors<A>(at.width, [&](int f, auto part) __attribute__((always_inline)) {
      store(sums + f, load<A>(sums + f, part) + value(f / kLanes<A>), part);
    });
    return;
  }
  alignas(64) In buffer[sizeof(In) > 2 ? 512 : 1];
  In* out = view.type == TypeOf<In>::value ? reinterpret_cast<In*>(to) : buffer;
  over_vectors<A>(at.width, [&](int f, auto part) __attribute__((always_inline)) {
    store(out + f, packed(value(f / kLanes<A>), In{}), part, stream);
  });
  if constexpr (sizeof(In) > 2) {
    if (out == buffer) convert_to(view.type, buffer, to, at.width);
  }
}

void write_zeros(const PairsBackward& call, const View& view, int64_t row, const Item& at) {
  if (call.add) return;
  char* to = view.at(row, at.s, at.e);
  const int64_t bytes = at.width * size_of(view.type);
  if (!call.stream) {
    std::memset(to, 0, bytes);
    return;
  }
  for (int64_t i = 0; i < bytes; i += kBytes) write_past(to + i, V<float>{});
}

// sigma / v of a row; false, and nothing of worth, where the variances are not regular.
template <class A, class In>
bool slopes(const In* sigma, int width, A eps, V<A>* slope) {
  Range<A> range;
  over_vectors<A>(width, [&](int f, auto part) __attribute__((always_inline)) {
    Terms<A> t = variance_terms<A>(load<A>(sigma + f, part), eps);
    range.include(inside<A>(t.v, all<A>(1), part));
    slope[f / kLanes<A>] = t.slope;
  });
  return range.regular();
}

// The place of row `index` in an ascending list, or -1; `next` goes along with the rows.
FUSED_MI_INLINE int find(const int32_t* list, int count, int64_t index, int& next) {
  return next < count && list[next] == index ? next++ : -1;
}

template <class A, class In>
bool write_pass(const PairsBackward& call, const Item& at, const Pass& pass, Work<A>& work) {
  const MomentsInputs& in = call.in;
  const int64_t i = pass.as_samples, j = pass.as_components;
  int next_sample = 0, next_component = 0;
  alignas(64) In buffer[sizeof(In) > 2 ? 512 : 1];
  V<A> own[512 / kLanes<A>];
  for (int64_t row = pass.rows.start; row < pass.rows.stop; ++row) {
    const int64_t index = row - pass.rows.start;
    int n = -1, l = -1, samples = 0, components = 0;
    if (i >= 0 && work.weights[i].lists) {
      const Lists& lists = work.weights[i].lists;
      samples = lists.sample_count;
      n = find(lists.samples, samples, index, next_sample);
    }
    if (j >= 0 && work.weights[j].lists) {
      const Lists& lists = work.weights[j].lists;
      components = lists.component_count;
      l = find(lists.components, components, index, next_component);
    }
    if (pass.write_y && n < 0) write_zeros(call, call.d_y, row, at);
    if (pass.write_y && n >= 0) {
      const V<A>* from = work.results[i].y + n;
      write<A, In>(call, call.d_y, row, at, [&](int v) __attribute__((always_inline)) {
        return from[v * samples];
      });
    }
    for (int which = 0; which < 2; ++which) {
      if (!(which == 0 ? pass.write_x : pass.write_mu)) continue;
      const View& to = which == 0 ? call.d_x : call.d_mu;
      if (l < 0) {
        write_zeros(call, to, row, at);
        continue;
      }
      const V<A>* from = work.results[j].centre + l;
      write<A, In>(call, to, row, at, [&](int v) __attribute__((always_inline)) {
        return from[v * components];
      });
    }
    if (!pass.write_stds) continue;
    const bool has_own = n >= 0 && in.own_stds;
    if (!has_own && l < 0) {
      write_zeros(call, call.d_stds, row, at);
      continue;
    }
    A of_k = 0;
    if (has_own) {
      const In* sigma = read(in.stds, row, at.s, at.e, at.width, buffer);
      if (!slopes(sigma, at.width, static_cast<A>(in.mixtures[i].sample_eps), own)) return false;
      of_k = work.weights[i].of_k[n];
    }
    const V<A>* from = l < 0 ? nullptr : work.results[j].stds + l;
    write<A, In>(call, call.d_stds, row, at, [&](int v) __attribute__((always_inline)) {
      V<A> value{};
      if (from) value = from[v * components];
      if (has_own) value += of_k * own[v];
      return value;
    });
  }
  return true;
}

template <class A>
bool gradients_of(const PairsBackward& call, char* scratch, int64_t begin, int64_t end) {
  Arena arena{scratch};
  Work<A> work(call, arena);
  const MomentsInputs& in = call.in;
  const View* inputs[] = {&in.y, &in.x, &in.mu, &in.stds};
  bool done = true;
  for (int64_t item = begin; item < end && done; ++item) {
    const int64_t e = item % call.blocks * call.width;
    const int width = static_cast<int>(call.width < in.E - e ? call.width : in.E - e);
    const Item at{item / call.blocks, e, width};
    with_input<A>(inputs, 4, [&](auto type) {
      using In = decltype(type);
      for (int64_t d = 0; d < in.count && done; ++d) done = pull_mixture<A, In>(call, at, d, work);
      for (int64_t p = 0; p < call.pass_count && done; ++p) {
        done = write_pass<A, In>(call, at, call.passes[p], work);
      }
    });
  }
  if (call.stream) finish_writes();
  return done;
}

bool gradients(const PairsBackward& call, char* scratch, int64_t begin, int64_t end) {
  return call.in.wide ? gradients_of<double>(call, scratch, begin, end)
                      : gradients_of<float>(call, scratch, begin, end);
}

int64_t bytes(const PairsBackward& call) {
  Arena arena{nullptr};
  call.in.wide ? void(Work<double>(call, arena)) : void(Work<float>(call, arena));
  return arena.used;
}

template <class A>
int64_t prepare_for(const PairsBackward& call, char* memory) {
  const MomentsInputs& in = call.in;
  Arena arena{memory};
  Weights<A>* weights = arena.take<Weights<A>>(in.count);
  for (int64_t d = 0; d < in.count; ++d) {
    Weights<A> w(arena, call.N, call.M);
    const Mixture& m = in.mixtures[d];
    const Meeting rows = call.of(d);
    if (memory) w.lists.choose(in, m, call.positions[d * in.S], 0, rows.samples, rows.components);
    w.position = 0;
    set(arena, weights + d, w);
  }
  return arena.used;
}

int64_t prepare(const PairsBackward& call, char* memory) {
  return call.in.wide ? prepare_for<double>(call, memory) : prepare_for<float>(call, memory);
}

template <class A>
void weigh_for(const PairsBackward& call, int64_t begin, int64_t end) {
  Weights<A>* weights = reinterpret_cast<Weights<A>*>(call.weights);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t d = i / call.weigh_items();
    weigh_item(call, d, weights[d], i % call.weigh_items());
  }
}

void weigh(const PairsBackward& call, int64_t begin, int64_t end) {
  call.in.wide ? weigh_for<double>(call, begin, end) : weigh_for<float>(call, begin, end);
}

}  // namespace

extern const PairsBackwardKernels pairs_backward_kernels = {prepare, weigh, bytes, gradients};

}  // namespace fused_mi::FUSED_MI_PATH
