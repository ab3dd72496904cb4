// Forward: a tile of samples times a tile of components, packed for a block of features at a time.
//
// The features lie across the lanes, and a few pairs at a time stay in registers: two fused
// multiply-adds for each pair and feature. Sums of at most `kDepth` features meet in float64.
#include "pairs.h"

#include "pairs_panels.h"

namespace fused_mi::FUSED_MI_PATH {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kN = 4, kM = 4;  // pairs in registers
#else
constexpr int kN = 4, kM = 2;
#endif

template <class A>
constexpr int kDepth = PairsCut::kDepth / (sizeof(A) / 4) / kLanes<A>;  // in vectors

// Of a tile: rows in groups that a run over the features reads in order.
template <class A>
struct Panels {
  V<A>* samples;     // (groups, kDepth, kN)
  V<A>* components;  // (groups, kDepth, kM, 2): r, and -c r
  Lists now, next;
  int depth = 0;  // in vectors

  Panels(const PairsCut& cut, Arena& arena) {
    int64_t rows = ceil_div(cut.tile_samples, kN) * kN;
    int64_t columns = ceil_div(cut.tile_components, kM) * kM;
    samples = arena.take<V<A>>(rows * kDepth<A>);
    components = arena.take<V<A>>(columns * kDepth<A> * 2);
    now = Lists(arena, cut.tile_samples, cut.tile_components);
    next = Lists(arena, cut.tile_samples, cut.tile_components);
  }

  FUSED_MI_INLINE V<A>* sample(int j, int v) const {
    return samples + (j / kN * kDepth<A> + v) * kN + j % kN;
  }
  FUSED_MI_INLINE V<A>* component(int j, int v) const {
    return components + ((j / kM * kDepth<A> + v) * kM + j % kM) * 2;
  }
};

template <class A>
FUSED_MI_INLINE A sum_of_lanes(V<A> value) {
  A lanes[kLanes<A>];
  std::memcpy(lanes, &value, kBytes);
  for (int half = kLanes<A> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// The sums of squares of kN samples times kM components.
template <class A>
FUSED_MI_INLINE void pair_group(const V<A>* y, const V<A>* c, int depth, A (&sums)[kN][kM]) {
  V<A> total[kN][kM] = {};
  for (int v = 0; v < depth; ++v, y += kN, c += 2 * kM) {
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) {
#pragma GCC unroll 4
      for (int m = 0; m < kM; ++m) {
        V<A> z = multiply_add(y[n], c[2 * m], c[2 * m + 1]);
        total[n][m] = multiply_add(z, z, total[n][m]);
      }
    }
  }
#pragma GCC unroll 4
  for (int n = 0; n < kN; ++n) {
#pragma GCC unroll 4
    for (int m = 0; m < kM; ++m) sums[n][m] = sum_of_lanes<A>(total[n][m]);
  }
}

// Adds what is packed to the sums of the tile, whose rows are `stride` apart.
template <class A>
void flush(Panels<A>& panels, double* tile, int64_t stride) {
  const Lists& lists = panels.now;
  if (panels.depth == 0) return;
  for (int j = lists.sample_count; j % kN != 0; ++j) {
    for (int v = 0; v < panels.depth; ++v) *panels.sample(j, v) = V<A>{};
  }
  for (int j = lists.component_count; j % kM != 0; ++j) {
    for (int v = 0; v < panels.depth; ++v) {
      panels.component(j, v)[0] = panels.component(j, v)[1] = V<A>{};
    }
  }
  for (int m = 0; m < lists.component_count; m += kM) {
    const int columns = lists.component_count - m < kM ? lists.component_count - m : kM;
    for (int n = 0; n < lists.sample_count; n += kN) {
      const int rows = lists.sample_count - n < kN ? lists.sample_count - n : kN;
      A sums[kN][kM];
      pair_group<A>(panels.sample(n, 0), panels.component(m, 0), panels.depth, sums);
      for (int i = 0; i < rows; ++i) {
        double* to = tile + lists.samples[n + i] * stride;
        for (int j = 0; j < columns; ++j) to[lists.components[m + j]] += sums[i][j];
      }
    }
  }
  panels.depth = 0;
}

template <class A, class In>
void pack(
    const MomentsInputs& in, const Mixture& m, const Position& p, Rows samples, Rows components,
    int64_t s, int64_t e, int width, Panels<A>& panels) {
  Packer<A, In> packer(in, m, p, s, e, width);
  const int depth = panels.depth;
  const Lists& lists = panels.now;
  packer.samples(
      lists.samples, lists.sample_count, samples.start,
      [&](int j, int v) __attribute__((always_inline)) { return panels.sample(j, depth + v); });
  packer.components(
      lists.components, lists.component_count, components.start,
      [&](int j, int v) __attribute__((always_inline)) {
        V<A>* to = panels.component(j, depth + v);
        return Centre<A>{to, to + 1};
      });
}

Rows part(Rows rows, int64_t tile, int64_t size) {
  int64_t start = rows.start + tile * size, stop = start + size;
  return {start, stop < rows.stop ? stop : rows.stop};
}

template <class A>
void distances_of_item(const PairsForward& call, Panels<A>& panels, int64_t item) {
  const PairsCut& cut = call.cut;
  const MomentsInputs& in = call.in;
  const int64_t split = item % cut.splits, tile = item / cut.splits;
  const int64_t tile_m = tile % cut.tiles_m, tile_n = tile / cut.tiles_m % cut.tiles_n;
  const int64_t d = tile / cut.tiles_m / cut.tiles_n, N = cut.samples, M = cut.components;
  const Mixture& m = in.mixtures[d];
  const Rows samples = part(m.samples, tile_n, cut.tile_samples);
  const Rows components = part(m.components, tile_m, cut.tile_components);
  double* sums = call.parts + ((split * in.count + d) * N + tile_n * cut.tile_samples) * M +
      tile_m * cut.tile_components;
  for (int64_t n = 0; n < samples.count(); ++n) {
    std::memset(sums + n * M, 0, components.count() * sizeof(double));
  }

  const View* inputs[] = {&in.y, &in.x, &in.mu, &in.stds};
  const int64_t begin = split * cut.units_per_split, end = begin + cut.units_per_split;
  int64_t last = -1;  // position of `next`
  panels.depth = 0;
  for (int64_t unit = begin; unit < end && unit < cut.units; ++unit) {
    const int64_t s = unit / cut.blocks, e = unit % cut.blocks * cut.width;
    const Position& p = call.positions[d * in.S + s];
    if (s != last) panels.next.choose(in, m, p, s, samples, components);
    last = s;
    if (!panels.next) continue;
    const int width = cut.width_at(e), vectors = static_cast<int>(ceil_div(width, kLanes<A>));
    bool fits = panels.depth + vectors <= kDepth<A>;
    if (panels.depth == 0 || !fits || !(panels.now == panels.next)) {
      flush(panels, sums, M);
      panels.now.copy(panels.next);
    }
    with_input<A>(inputs, 4, [&](auto type) {
      pack<A, decltype(type)>(in, m, p, samples, components, s, e, width, panels);
    });
    panels.depth += vectors;
  }
  flush(panels, sums, M);
}

template <class A>
void distances_of(const PairsForward& call, char* scratch, int64_t begin, int64_t end) {
  Arena arena{scratch};
  Panels<A> panels(call.cut, arena);
  for (int64_t item = begin; item < end; ++item) distances_of_item<A>(call, panels, item);
}

void distances(const PairsForward& call, char* scratch, int64_t begin, int64_t end) {
  call.in.wide ? distances_of<double>(call, scratch, begin, end)
               : distances_of<float>(call, scratch, begin, end);
}

int64_t bytes(const PairsForward& call) {
  Arena arena{nullptr};
  call.in.wide ? void(Panels<double>(call.cut, arena)) : void(Panels<float>(call.cut, arena));
  return arena.used;
}

template <bool CAREFUL, class A, class In>
bool add_logs(const In* sigma, int width, Stabiliser<A> stabiliser, Logs<A>& logs) {
  Ordinary<A> ordinary;
  over_vectors<A>(width, [&](int f, auto part) __attribute__((always_inline)) {
    Terms<A> t = variance_terms<CAREFUL, A>(load<A>(sigma + f, part), stabiliser);
    V<A> v = inside<A>(t.v, all<A>(1), part);
    if constexpr (CAREFUL) {
      logs.include(v, only<A>(t.large, part));
    } else {
      ordinary.include(v);
      logs.multiply(v);
      if (f / kLanes<A> % 4 == 3) logs.split();
    }
  });
  if (!CAREFUL) logs.split();
  return CAREFUL || ordinary;
}

template <class A, class In>
double logs_of_row(const View& stds, int64_t row, int64_t s, int64_t e, int width, double eps) {
  alignas(64) In buffer[sizeof(In) > 2 ? PairsCut::kDepth : 1];
  const In* sigma = read(stds, row, s, e, width, buffer);
  Logs<A> logs;
  if (!add_logs<false, A>(sigma, width, Stabiliser<A>(eps), logs)) {
    logs = Logs<A>();
    add_logs<true, A>(sigma, width, Stabiliser<A>(eps), logs);
  }
  return logs.value() + 1.8378770664093454836 * width;
}

template <class A>
void logs_of(const PairsForward& call, int64_t begin, int64_t end) {
  const PairsCut& cut = call.cut;
  const MomentsInputs& in = call.in;
  const int64_t N = cut.samples, M = cut.components;
  const View* stds = &in.stds;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t unit = item % cut.units, index = item / cut.units % (N + M);
    const int64_t d = item / cut.units / (N + M), s = unit / cut.blocks;
    const int64_t e = unit % cut.blocks * cut.width;
    const Mixture& m = in.mixtures[d];
    const Position& p = call.positions[d * in.S + s];
    const bool own = index >= M;
    if (own && !in.own_stds) continue;
    const int64_t row = own ? m.samples.start + index - M : m.components.start + index;
    double* to = own ? call.sample_logs + (d * cut.units + unit) * N + index - M
                     : call.component_logs + (d * cut.units + unit) * M + index;
    *to = 0;
    if (own ? !sample_contributes(in, m, p, row, s) : !component_contributes(in, m, p, row, s)) {
      continue;
    }
    with_input<A>(&stds, 1, [&](auto type) {
      *to = logs_of_row<A, decltype(type)>(
          in.stds, row, s, e, cut.width_at(e), own ? m.sample_eps : m.component_eps);
    });
  }
}

void logs(const PairsForward& call, int64_t begin, int64_t end) {
  call.in.wide ? logs_of<double>(call, begin, end) : logs_of<float>(call, begin, end);
}

// `to[j * stride] = 1/2 sum of logs[unit, j]` over the units where `has(s)`.
template <class Has>
FUSED_MI_INLINE void add_up(
    const PairsCut& cut, const double* logs, int64_t count, double* to, int64_t stride, Has&& has) {
  constexpr int kWidth = 256;
  double sums[kWidth];
  for (int64_t begin = 0; begin < count; begin += kWidth) {
    const int width = static_cast<int>(count - begin < kWidth ? count - begin : kWidth);
    for (int j = 0; j < width; ++j) sums[j] = 0;
    for (int64_t unit = 0; unit < cut.units; ++unit) {
      if (!has(unit / cut.blocks)) continue;
      const double* from = logs + unit * count + begin;
      for (int j = 0; j < width; ++j) sums[j] += from[j];
    }
    for (int j = 0; j < width; ++j) to[(begin + j) * stride] = sums[j] / 2;
  }
}

// A row of q and g, or a column of k.
void finish(const PairsForward& call, int64_t begin, int64_t end) {
  const PairsCut& cut = call.cut;
  const MomentsInputs& in = call.in;
  const int64_t N = cut.samples, M = cut.components;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t index = item % (N + M), d = item / (N + M);
    const Mixture& m = in.mixtures[d];
    const Position* positions = call.positions + d * in.S;
    double *q = call.energies + d * 3 * N * M, *g = q + N * M, *k = g + N * M;
    if (index < N) {
      const double scale = in.wide ? 1 : Stabiliser<float>(m.component_eps).scale;
      double* to = q + index * M;
      for (int64_t l = 0; l < M; ++l) to[l] = 0;
      for (int64_t split = 0; split < cut.splits; ++split) {
        const double* from = call.parts + ((split * in.count + d) * N + index) * M;
        for (int64_t l = 0; l < M; ++l) to[l] += from[l];
      }
      for (int64_t l = 0; l < M; ++l) to[l] = to[l] / scale / 2;
      add_up(cut, call.component_logs + d * cut.units * M, M, g + index * M, 1, [&](int64_t s) {
        return sample_contributes(in, m, positions[s], m.samples.start + index, s);
      });
    } else if (in.own_stds) {
      const int64_t l = index - N;
      add_up(cut, call.sample_logs + d * cut.units * N, N, k + l, M, [&](int64_t s) {
        return component_contributes(in, m, positions[s], m.components.start + l, s);
      });
    } else {
      for (int64_t n = 0; n < N; ++n) k[n * M + index - N] = 0;
    }
  }
}

}  // namespace

extern const PairsKernels pairs_kernels = {bytes, distances, logs, finish};

}  // namespace fused_mi::FUSED_MI_PATH
