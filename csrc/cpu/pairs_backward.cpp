// Backward: the differences once more, weighted by the upstream gradients and added up over the
// other role.
//
// An item is a block of features at a position, with all rows of both roles; features lie across
// the lanes, a few components stay in registers while the samples go by. Differences are direct,
// never those of two large products. Pairs whose upstream gradient is 0 have no part, whatever
// their distance.
#include "pairs.h"

#include "pairs_panels.h"

namespace fused_mi::FUSED_MI_PATH {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kM = 4;  // components in registers
#else
constexpr int kM = 2;
#endif

// Samples that meet one group of components.
struct Partners {
  int all = 0, some = 0;  // with all of the group, and with some of it
};

// What the pairs of one mixture weigh at a position; it stays while the rows that contribute do.
template <class A>
struct Weights {
  Lists lists;
  int64_t position = -1;  // to which `lists` belong
  bool ready = false;
  Partners* partners;  // (groups,)
  int32_t* rows;       // (groups, N) of `lists.samples`: those that meet all, then those that meet some
  A* of_q;             // (groups, N, kM)
  A* of_g;             // (M,) sums of upstream gradients over the samples
  A* of_k;             // (N,) and over the components
  double* sums;        // (M,)
};

// Gradients of one mixture for one item, by the rows of `lists`.
template <class A>
struct Results {
  V<A> *y, *centre, *stds;  // (vectors, rows)
};

template <class A>
struct Work {
  V<A> *samples, *root, *centre, *slope;  // (vectors, rows)
  Weights<A>* weights;                     // (count,)
  Results<A>* results;                     // (count,)
  Lists next;

  Work(const PairsBackward& call, Arena& arena) {
    const int64_t N = call.N, M = call.M, vectors = ceil_div(call.width, kLanes<A>);
    const int64_t groups = ceil_div(M, kM), count = call.in.count;
    samples = arena.take<V<A>>(N * vectors);
    root = arena.take<V<A>>(M * vectors);
    centre = arena.take<V<A>>(M * vectors);
    slope = arena.take<V<A>>(M * vectors);
    weights = arena.take<Weights<A>>(count);
    results = arena.take<Results<A>>(count);
    next = Lists(arena, N, M);
    for (int64_t d = 0; d < count; ++d) {
      Weights<A> w;
      w.lists = Lists(arena, N, M);
      w.partners = arena.take<Partners>(groups);
      w.rows = arena.take<int32_t>(groups * N);
      w.of_q = arena.take<A>(groups * N * kM);
      w.of_g = arena.take<A>(M);
      w.of_k = arena.take<A>(N);
      w.sums = arena.take<double>(M);
      Results<A> r;
      r.y = arena.take<V<A>>(N * vectors);
      r.centre = arena.take<V<A>>(M * vectors);
      r.stds = arena.take<V<A>>(M * vectors);
      if (arena.memory == nullptr) continue;
      weights[d] = w;
      results[d] = r;
    }
  }
};

// Which gradients of a mixture are to be written.
struct Wanted {
  bool samples = false, components = false;
};

Wanted wanted_of(const PairsBackward& call, int64_t d) {
  Wanted wanted;
  for (int64_t p = 0; p < call.pass_count; ++p) {
    const Pass& pass = call.passes[p];
    if (pass.as_samples == d) wanted.samples |= pass.write_y;
    if (pass.as_components != d) continue;
    wanted.components |= pass.write_x || pass.write_mu || pass.write_stds;
  }
  return wanted;
}

template <class A>
void weigh(const PairsBackward& call, int64_t d, Weights<A>& w) {
  const int64_t N = call.N, M = call.M;
  const double *of_q = call.upstream + d * 3 * N * M, *of_g = of_q + N * M, *of_k = of_g + N * M;
  const Lists& lists = w.lists;
  for (int m = 0; m < lists.component_count; m += kM) {
    const int columns = lists.component_count - m < kM ? lists.component_count - m : kM;
    int32_t* rows = w.rows + m / kM * N;
    A* weights = w.of_q + m / kM * N * kM;
    Partners partners;
    int count = 0;
    for (int pass = 0; pass < 2; ++pass) {
      const bool all = pass == 0;
      for (int n = 0; n < lists.sample_count; ++n) {
        const double* from = of_q + lists.samples[n] * M;
        A* to = weights + count * kM;
        int zeros = 0;
        for (int j = 0; j < columns; ++j) {
          to[j] = static_cast<A>(from[lists.components[m + j]]);
          zeros += to[j] == 0;
        }
        if (zeros == columns || (zeros == 0) != all) continue;
        rows[count++] = n;
      }
      if (all) partners.all = count;
    }
    partners.some = count - partners.all;
    w.partners[m / kM] = partners;
  }
  for (int l = 0; l < lists.component_count; ++l) w.sums[l] = 0;
  for (int n = 0; n < lists.sample_count; ++n) {
    const double* from_g = of_g + lists.samples[n] * M;
    const double* from_k = of_k + lists.samples[n] * M;
    double sum = 0;
    for (int l = 0; l < lists.component_count; ++l) {
      w.sums[l] += from_g[lists.components[l]];
      sum += from_k[lists.components[l]];
    }
    w.of_k[n] = static_cast<A>(sum);
  }
  for (int l = 0; l < lists.component_count; ++l) w.of_g[l] = static_cast<A>(w.sums[l]);
}

// Adds up `count` samples over M components. SELECT: leave out pairs that weigh 0.
template <bool SAMPLES, bool COMPONENTS, bool SELECT, int M, class A>
FUSED_MI_INLINE void pull_group(
    const V<A>* y, V<A>* d_y, const int32_t* rows, const A* weights, int count,
    const V<A> (&root)[M], const V<A> (&centre)[M], V<A> (&of_centre)[M], V<A> (&of_squares)[M]) {
  for (int k = 0; k < count; ++k) {
    const int32_t row = rows[k];
    V<A> sample = y[row], pull{};
    if constexpr (SAMPLES) pull = d_y[row];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      A weight = weights[k * kM + m];
      V<A> z = multiply_add(sample, root[m], centre[m]);
      if constexpr (SELECT) z = all<A>(weight) == A(0) ? V<A>{} : z;
      V<A> term = weight * z;
      if constexpr (COMPONENTS) {
        of_centre[m] += term;
        of_squares[m] = multiply_add(term, z, of_squares[m]);
      }
      if constexpr (SAMPLES) pull = multiply_add(term, root[m], pull);
    }
    if constexpr (SAMPLES) d_y[row] = pull;
  }
}

// One vector of features of M components from `l`, which belong to one group.
template <bool SAMPLES, bool COMPONENTS, int M, class A>
FUSED_MI_INLINE void pull_components(
    const Work<A>& work, const Weights<A>& w, const Results<A>& r, int64_t N, int v, int l,
    A scale) {
  const int samples = w.lists.sample_count, at = v * w.lists.component_count + l;
  V<A> root[M], centre[M], of_centre[M] = {}, of_squares[M] = {};
  for (int m = 0; m < M; ++m) {
    root[m] = work.root[at + m];
    centre[m] = work.centre[at + m];
  }
  const int64_t group = l / kM;
  const int32_t* rows = w.rows + group * N;
  const A* weights = w.of_q + group * N * kM + l % kM;
  const Partners partners = w.partners[group];
  const V<A>* y = work.samples + v * samples;
  V<A>* d_y = r.y + v * samples;
  pull_group<SAMPLES, COMPONENTS, false, M, A>(
      y, d_y, rows, weights, partners.all, root, centre, of_centre, of_squares);
  if (partners.some > 0) {
    pull_group<SAMPLES, COMPONENTS, true, M, A>(
        y, d_y, rows + partners.all, weights + partners.all * kM, partners.some, root, centre,
        of_centre, of_squares);
  }
  if constexpr (COMPONENTS) {
    for (int m = 0; m < M; ++m) {
      r.centre[at + m] = -(root[m] * of_centre[m]) / scale;
      r.stds[at + m] = work.slope[at + m] * (w.of_g[l + m] - of_squares[m] / scale);
    }
  }
}

template <bool SAMPLES, bool COMPONENTS, class A>
void pull(
    const Work<A>& work, const Weights<A>& w, const Results<A>& r, int64_t N, int vectors,
    A scale) {
  const int samples = w.lists.sample_count, components = w.lists.component_count;
  for (int v = 0; v < vectors; ++v) {
    V<A>* d_y = r.y + v * samples;
    if (SAMPLES) std::memset(static_cast<void*>(d_y), 0, samples * sizeof(V<A>));
    int l = 0;
    for (; l + kM <= components; l += kM) {
      pull_components<SAMPLES, COMPONENTS, kM>(work, w, r, N, v, l, scale);
    }
    for (; l < components; ++l) {
      pull_components<SAMPLES, COMPONENTS, 1>(work, w, r, N, v, l, scale);
    }
    if (SAMPLES) {
      for (int n = 0; n < samples; ++n) d_y[n] /= scale;
    }
  }
}

struct Item {
  int64_t s, e;
  int width;
};

// The gradients of one mixture into its `results`.
template <class A, class In>
void pull_mixture(const PairsBackward& call, const Item& at, int64_t d, Work<A>& work) {
  const MomentsInputs& in = call.in;
  const Mixture& m = in.mixtures[d];
  const Position& p = call.positions[d * in.S + at.s];
  Weights<A>& w = work.weights[d];
  if (w.position != at.s) {
    work.next.choose(in, m, p, at.s, m.samples, m.components);
    if (!w.ready || !(work.next == w.lists)) {
      w.lists.copy(work.next);
      weigh(call, d, w);
      w.ready = true;
    }
    w.position = at.s;
  }
  const Wanted wanted = wanted_of(call, d);
  const int samples = w.lists.sample_count, components = w.lists.component_count;
  if (!w.lists || (!wanted.samples && !wanted.components)) return;
  PairReader<A, In> reader(in, m, p, at.s, at.e, at.width);
  for (int n = 0; n < samples; ++n) {
    int64_t row = m.samples.start + w.lists.samples[n];
    int64_t next = m.samples.start + Lists::next(w.lists.samples, samples, n);
    reader.sample(row, next, [&](int v) __attribute__((always_inline)) {
      return work.samples + v * samples + n;
    });
  }
  for (int l = 0; l < components; ++l) {
    int64_t row = m.components.start + w.lists.components[l];
    int64_t next = m.components.start + Lists::next(w.lists.components, components, l);
    reader.component(row, next, [&](int v) __attribute__((always_inline)) {
      const int to = v * components + l;
      return Centre<A>{work.root + to, work.centre + to, work.slope + to};
    });
  }
  const Results<A>& r = work.results[d];
  const int vectors = static_cast<int>(ceil_div(at.width, kLanes<A>));
  const A scale = reader.stabiliser.scale;
  wanted.samples && wanted.components ? pull<true, true>(work, w, r, call.N, vectors, scale)
      : wanted.samples                ? pull<true, false>(work, w, r, call.N, vectors, scale)
                                      : pull<false, true>(work, w, r, call.N, vectors, scale);
}

// One row of a gradient; `value(v)` is its vector v.
template <class A, class In, class Value>
FUSED_MI_INLINE void write(const View& view, int64_t row, const Item& at, Value&& value) {
  char* to = view.at(row, at.s, at.e);
  alignas(64) In buffer[sizeof(In) > 2 ? 512 : 1];
  In* out = view.type == TypeOf<In>::value ? reinterpret_cast<In*>(to) : buffer;
  over_vectors<A>(at.width, [&](int f, auto part) __attribute__((always_inline)) {
    store(out + f, packed(value(f / kLanes<A>), In{}), part);
  });
  if constexpr (sizeof(In) > 2) {
    if (out == buffer) convert_to(view.type, buffer, to, at.width);
  }
}

void write_zeros(const View& view, int64_t row, const Item& at) {
  std::memset(view.at(row, at.s, at.e), 0, at.width * size_of(view.type));
}

// sigma / v of a row; false, and nothing of worth, where the variances are not ordinary.
template <bool CAREFUL, class A, class In>
bool slopes(const In* sigma, int width, Stabiliser<A> stabiliser, V<A>* slope) {
  Ordinary<A> ordinary;
  over_vectors<A>(width, [&](int f, auto part) __attribute__((always_inline)) {
    Terms<A> t = variance_terms<CAREFUL, A>(load<A>(sigma + f, part), stabiliser);
    if (!CAREFUL) ordinary.include(inside<A>(t.v, all<A>(1), part));
    slope[f / kLanes<A>] = t.slope;
  });
  return CAREFUL || ordinary;
}

// The place of row `index` in an ascending list, or -1; `next` goes along with the rows.
FUSED_MI_INLINE int find(const int32_t* list, int count, int64_t index, int& next) {
  return next < count && list[next] == index ? next++ : -1;
}

template <class A, class In>
void write_pass(const PairsBackward& call, const Item& at, const Pass& pass, Work<A>& work) {
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
    if (pass.write_y && n < 0) write_zeros(call.d_y, row, at);
    if (pass.write_y && n >= 0) {
      const V<A>* from = work.results[i].y + n;
      write<A, In>(call.d_y, row, at, [&](int v) __attribute__((always_inline)) {
        return from[v * samples];
      });
    }
    for (int which = 0; which < 2; ++which) {
      if (!(which == 0 ? pass.write_x : pass.write_mu)) continue;
      const View& to = which == 0 ? call.d_x : call.d_mu;
      if (l < 0) {
        write_zeros(to, row, at);
        continue;
      }
      const V<A>* from = work.results[j].centre + l;
      write<A, In>(to, row, at, [&](int v) __attribute__((always_inline)) {
        return from[v * components];
      });
    }
    if (!pass.write_stds) continue;
    const bool has_own = n >= 0 && in.own_stds;
    if (!has_own && l < 0) {
      write_zeros(call.d_stds, row, at);
      continue;
    }
    A of_k = 0;
    if (has_own) {
      const In* sigma = read(in.stds, row, at.s, at.e, at.width, buffer);
      Stabiliser<A> stabiliser(in.mixtures[i].sample_eps);
      if (!slopes<false, A>(sigma, at.width, stabiliser, own)) {
        slopes<true, A>(sigma, at.width, stabiliser, own);
      }
      of_k = work.weights[i].of_k[n];
    }
    const V<A>* from = l < 0 ? nullptr : work.results[j].stds + l;
    write<A, In>(call.d_stds, row, at, [&](int v) __attribute__((always_inline)) {
      V<A> value{};
      if (from) value = from[v * components];
      if (has_own) value += of_k * own[v];
      return value;
    });
  }
}

template <class A>
void gradients_of(const PairsBackward& call, char* scratch, int64_t begin, int64_t end) {
  Arena arena{scratch};
  Work<A> work(call, arena);
  const MomentsInputs& in = call.in;
  const View* inputs[] = {&in.y, &in.x, &in.mu, &in.stds};
  for (int64_t item = begin; item < end; ++item) {
    const int64_t e = item % call.blocks * call.width;
    const int width = static_cast<int>(call.width < in.E - e ? call.width : in.E - e);
    const Item at{item / call.blocks, e, width};
    with_input<A>(inputs, 4, [&](auto type) {
      using In = decltype(type);
      for (int64_t d = 0; d < in.count; ++d) pull_mixture<A, In>(call, at, d, work);
      for (int64_t p = 0; p < call.pass_count; ++p) {
        write_pass<A, In>(call, at, call.passes[p], work);
      }
    });
  }
}

void gradients(const PairsBackward& call, char* scratch, int64_t begin, int64_t end) {
  call.in.wide ? gradients_of<double>(call, scratch, begin, end)
               : gradients_of<float>(call, scratch, begin, end);
}

int64_t bytes(const PairsBackward& call) {
  Arena arena{nullptr};
  call.in.wide ? void(Work<double>(call, arena)) : void(Work<float>(call, arena));
  return arena.used;
}

}  // namespace

extern const PairsBackwardKernels pairs_backward_kernels = {bytes, gradients};

}  // namespace fused_mi::FUSED_MI_PATH
