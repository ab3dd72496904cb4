// A tile of samples goes along the components; of each sample the sums stay, see logsumexp_rows.h.
#include "online.h"

#include "logsumexp_rows.h"
#include "pairs_energies.h"
#include "pairs_weights.h"

namespace fused_mi::FUSED_MI_PATH {
namespace {

constexpr int kColumns = OnlineForward::kComponents;

// Of a thread.
template <class A>
struct Room {
  Panel<A> panel;
  double* distances;  // (tile_samples, kColumns)
  Online* rows;       // (tile_samples,)
  bool *here, *before;  // (S,): where a sample contributes, and where the one before it did, whose g
                        // most often serves again

  Room(const PairsForward& call, Arena& arena)
      : panel(call.cut, arena),
        distances(arena.take<double>(call.cut.tile_samples * kColumns)),
        rows(arena.take<Online>(call.cut.tile_samples)),
        here(arena.take<bool>(call.in.S)),
        before(arena.take<bool>(call.in.S)) {}
};

// Includes the pairs of a tile in what its samples have so far. False: see `reduce`.
template <class A>
bool include_tile(const PairsForward& call, int64_t d, const Tile& tile, const Room<A>& room) {
  const MomentsInputs& in = call.in;
  const Mixture& mixture = in.mixtures[d];
  const Meeting rows = call.of(d);
  const int width = static_cast<int>(tile.components.count());
  const int64_t first = tile.components.start - rows.components.start;
  const double most = in.wide ? INFINITY : kLargestSum;
  bool *here = room.here, *before = room.before;
  Bits<double> known = all<double>(0) == 0.0;
  alignas(64) double g[kColumns] = {}, k[kColumns] = {};
  for (int64_t row = tile.samples.start; row < tile.samples.stop; ++row) {
    bool same = row != tile.samples.start;
    for (int64_t s = 0; s < in.S; ++s) {
      here[s] = sample_contributes(in, mixture, call.positions[d * in.S + s], row, s);
      same = same && here[s] == before[s];
    }
    const int64_t n = row - rows.samples.start;
    auto is_here = [&](int64_t s) { return here[s]; };
    auto half = [&](double* logs, double* of_g, double* of_k) {
      std::memset(logs, 0, kColumns * sizeof(double));
      logs_of_pairs(call, d, n, first, width, is_here, of_g, of_k);
      for (int j = 0; j < width; ++j) logs[j] /= 2;
    };
    if (!same) half(g, g, nullptr);
    if (in.own_stds) half(k, nullptr, k);
    double* q = tile.sums + (row - tile.samples.start) * tile.stride;
    over_vectors<double>(width, [&](int f, auto lanes) __attribute__((always_inline)) {
      const Doubles sum = load<double>(q + f, lanes);
      known &= sum <= most;
      store(q + f, sum / 2, lanes);
    });
    const int64_t own = in.exclude_diagonal ? n - first : Logsumexp::kNone;
    room.rows[row - tile.samples.start].include(Energies{q, g, k, own}, 0, width);
    bool* last = before;
    before = here, here = last;
  }
  return !any<double>(~known);
}

template <class A, class In>
bool reduce_item(const OnlineForward& call, Room<A>& room, int64_t item) {
  const PairsForward& pairs = call.pairs;
  const PairsCut& cut = pairs.cut;
  const int64_t split = item % call.splits, at = item / call.splits;
  const int64_t tile_n = at % cut.tiles_n, d = at / cut.tiles_n;
  const Meeting rows = pairs.of(d);
  const Rows samples = part(rows.samples, tile_n, cut.tile_samples);
  for (int64_t n = 0; n < samples.count(); ++n) room.rows[n] = Online();
  const int64_t begin = split * call.tiles_per_split;
  const int64_t end = smaller(begin + call.tiles_per_split, cut.tiles_m);
  for (int64_t tile_m = begin; tile_m < end; ++tile_m) {
    const Tile tile{
        pairs.in,
        pairs.in.mixtures[d],
        samples,
        part(rows.components, tile_m, kColumns),
        tile_n == 0,
        room.distances,
        kColumns};
    const auto go_on = [](Rows) { return true; };
    const Rows units{0, cut.units};
    if (!distances_of_tile<A, In>(pairs, room.panel, tile, Runs(pairs, d), units, go_on)) {
      return false;
    }
    if (!include_tile(pairs, d, tile, room)) return false;
  }
  double* to = call.parts +
      ((split * pairs.in.count + d) * cut.samples + samples.start - rows.samples.start) *
          OnlineForward::kNumbers;
  for (int64_t n = 0; n < samples.count(); ++n, to += OnlineForward::kNumbers) {
    const Sums& sums = room.rows[n].sums;
    to[0] = room.rows[n].most;
    to[1] = sum_of_lanes(sums.weights);
    to[2] = sum_of_lanes(sums.q), to[3] = sum_of_lanes(sums.g), to[4] = sum_of_lanes(sums.k);
  }
  return true;
}

template <class A>
bool reduce_of(const OnlineForward& call, char* scratch, int64_t begin, int64_t end) {
  Arena arena{scratch};
  Room<A> room(call.pairs, arena);
  const MomentsInputs& in = call.pairs.in;
  const View* inputs[] = {&in.y, &in.x, &in.mu, &in.stds};
  bool done = true;
  with_input<A>(inputs, 4, [&](auto type) {
    for (int64_t item = begin; item < end && done; ++item) {
      done = reduce_item<A, decltype(type)>(call, room, item);
    }
  });
  return done;
}

bool reduce(const OnlineForward& call, char* scratch, int64_t begin, int64_t end) {
  return call.pairs.in.wide ? reduce_of<double>(call, scratch, begin, end)
                            : reduce_of<float>(call, scratch, begin, end);
}

int64_t bytes(const OnlineForward& call) {
  Arena arena{nullptr};
  const PairsForward& pairs = call.pairs;
  pairs.in.wide ? void(Room<double>(pairs, arena)) : void(Room<float>(pairs, arena));
  return arena.used;
}

template <class A>
bool logs_of(const OnlineForward& call, int64_t begin, int64_t end) {
  const PairsForward& pairs = call.pairs;
  const PairsCut& cut = pairs.cut;
  const MomentsInputs& in = pairs.in;
  const View* stds[] = {&in.stds};
  bool regular = true;
  with_input<A>(stds, 1, [&](auto type) {
    using In = decltype(type);
    for (int64_t item = begin; item < end && regular; ++item) {
      const int64_t tiles = cut.tiles_m + cut.tiles_n, d = item / tiles, tile = item % tiles;
      const Runs run_of(pairs, d);
      const Rows units{0, cut.units};
      const Meeting rows = pairs.of(d);
      regular = tile < cut.tiles_m
          ? logs_of_components<A, In>(
                pairs, d, part(rows.components, tile, kColumns), units, run_of)
          : logs_of_samples<A, In>(
                pairs, d, part(rows.samples, tile - cut.tiles_m, cut.tile_samples), units, run_of);
    }
  });
  return regular;
}

bool logs(const OnlineForward& call, int64_t begin, int64_t end) {
  return call.pairs.in.wide ? logs_of<double>(call, begin, end) : logs_of<float>(call, begin, end);
}

// Of a thread, and of a sample and a tile.
template <class A>
struct WeighRoom {
  Panel<A> panel;
  double* distances;  // (tile_samples, kBlock)
  alignas(64) double g[kBlock], k[kBlock], of_g[kBlock];
  alignas(64) A of_q[kBlock];

  WeighRoom(const PairsForward& call, Arena& arena)
      : panel(call.cut, arena), distances(arena.take<double>(call.cut.tile_samples * kBlock)) {}
};

// Appends sample n to the groups of components that it weighs in.
template <class A>
FUSED_MI_INLINE void append(
    const Weights<A>& w, int64_t N, int64_t n, int64_t first, int width, const A* of_q) {
  for (int m = 0; m < width; m += kM) {
    int zeros = 0;
    for (int j = 0; j < kM; ++j) zeros += of_q[m + j] == 0;
    if (zeros == kM) continue;
    const int64_t group = (first + m) / kM;
    Partners& partners = w.partners[group];
    const int64_t place = group * N + (zeros == 0 ? partners.all++ : N - ++partners.some);
    w.rows[place] = static_cast<int32_t>(n);
    std::memcpy(w.of_q + place * kM, of_q + m, kM * sizeof(A));
  }
}

// All samples and one tile of components.
template <class A, class In>
bool weigh_tile(const OnlineWeigh& call, WeighRoom<A>& room, int64_t tile_m) {
  const PairsForward& pairs = call.pairs;
  const PairsCut& cut = pairs.cut;
  const MomentsInputs& in = pairs.in;
  const Meeting rows = pairs.of(0);
  const Weights<A>& w = *reinterpret_cast<const Weights<A>*>(call.weights);
  const Rows components = part(rows.components, tile_m, kBlock);
  const int width = static_cast<int>(components.count());
  const int64_t first = components.start - rows.components.start;
  const double most = in.wide ? INFINITY : kLargestSum;
  const Runs run_of(pairs, 0);
  const Rows units{0, cut.units};
  auto half = [&](int64_t n, double* logs, double* of_g, double* of_k) {
    std::memset(logs, 0, sizeof room.g);
    logs_of_pairs(pairs, 0, n, first, width, [](int64_t) { return true; }, of_g, of_k);
    for (int j = 0; j < width; ++j) logs[j] /= 2;
  };
  if (!logs_of_components<A, In>(pairs, 0, components, units, run_of)) return false;
  half(0, room.g, room.g, nullptr);
  std::memset(room.k, 0, sizeof room.k), std::memset(room.of_g, 0, sizeof room.of_g);
  for (int m = 0; m < width; m += kM) w.partners[(first + m) / kM] = Partners();
  Bits<double> known = all<double>(0) == 0.0;
  for (int64_t tile_n = 0; tile_n < cut.tiles_n; ++tile_n) {
    const Tile tile{
        in,          in.mixtures[0],  part(rows.samples, tile_n, cut.tile_samples),
        components,  tile_n == 0,     room.distances,
        kBlock};
    const auto go_on = [](Rows) { return true; };
    if (!distances_of_tile<A, In>(pairs, room.panel, tile, run_of, units, go_on)) return false;
    for (int64_t row = tile.samples.start; row < tile.samples.stop; ++row) {
      const int64_t n = row - rows.samples.start;
      if (in.own_stds) half(n, room.k, nullptr, room.k);
      double* q = tile.sums + (row - tile.samples.start) * kBlock;
      const int64_t own = row - in.mixtures[0].samples.start + in.mixtures[0].components.start;
      const Energies energies{
          q, room.g, room.k, in.exclude_diagonal ? own - components.start : Logsumexp::kNone};
      const Pull pull(
          call.upstream, call.state + n, call.samples, static_cast<double>(call.partners));
      Doubles of_k{};
      over_vectors<double>(width, [&](int f, auto lanes) __attribute__((always_inline)) {
        const Doubles sum = load<double>(q + f, lanes);
        known &= sum <= most;
        store(q + f, sum / 2, lanes);
        const Pairs met(energies, f, lanes);
        Doubles found[3]{};
        // Most pairs weigh nothing.
        if (any<double>(~(met.density - pull.log_sum < kNothing))) pull(energies, f, met, found);
        for (int j = 0; j < kLanes<double>; ++j) room.of_q[f + j] = static_cast<A>(found[0][j]);
        store(room.of_g + f, load<double>(room.of_g + f, lanes) + found[1], lanes);
        of_k += inside<double>(found[2], Doubles{}, lanes);
      });
      for (int j = width; j % kM != 0; ++j) room.of_q[j] = 0;
      append(w, cut.samples, n, first, width, room.of_q);
      call.of_k[tile_m * cut.samples + n] = sum_of_lanes(of_k);
    }
  }
  for (int l = 0; l < width; ++l) w.of_g[first + l] = static_cast<A>(room.of_g[l]);
  return !any<double>(~known);
}

template <class A>
bool weigh_of(const OnlineWeigh& call, char* scratch, int64_t begin, int64_t end) {
  Arena arena{scratch};
  WeighRoom<A> room(call.pairs, arena);
  const FlushToZero flush;
  const MomentsInputs& in = call.pairs.in;
  const View* inputs[] = {&in.y, &in.x, &in.mu, &in.stds};
  bool done = true;
  with_input<A>(inputs, 4, [&](auto type) {
    for (int64_t item = begin; item < end && done; ++item) {
      done = weigh_tile<A, decltype(type)>(call, room, item);
    }
  });
  return done;
}

bool weigh(const OnlineWeigh& call, char* scratch, int64_t begin, int64_t end) {
  return call.pairs.in.wide ? weigh_of<double>(call, scratch, begin, end)
                            : weigh_of<float>(call, scratch, begin, end);
}

int64_t weigh_bytes(const OnlineWeigh& call) {
  Arena arena{nullptr};
  call.pairs.in.wide ? void(WeighRoom<double>(call.pairs, arena))
                     : void(WeighRoom<float>(call.pairs, arena));
  return arena.used;
}

bool sample_logs(const OnlineWeigh& call) {
  const PairsForward& pairs = call.pairs;
  const View* stds[] = {&pairs.in.stds};
  bool regular = true;
  auto found = [&](auto a) {
    using A = decltype(a);
    with_input<A>(stds, 1, [&](auto type) {
      regular = logs_of_samples<A, decltype(type)>(
          pairs, 0, pairs.of(0).samples, {0, pairs.cut.units}, Runs(pairs, 0));
    });
  };
  pairs.in.wide ? found(double{}) : found(float{});
  return regular;
}

template <class A>
void sum_weights_of(const OnlineWeigh& call) {
  const Weights<A>& w = *reinterpret_cast<const Weights<A>*>(call.weights);
  const PairsCut& cut = call.pairs.cut;
  for (int64_t n = 0; n < cut.samples; ++n) {
    double sum = 0;
    for (int64_t tile = 0; tile < cut.tiles_m; ++tile) sum += call.of_k[tile * cut.samples + n];
    w.of_k[n] = static_cast<A>(sum);
  }
}

void sum_weights(const OnlineWeigh& call) {
  call.pairs.in.wide ? sum_weights_of<double>(call) : sum_weights_of<float>(call);
}

}  // namespace

extern const OnlineKernels online_kernels = {
    bytes, logs, reduce, sample_logs, weigh_bytes, weigh, sum_weights};

}  // namespace fused_mi::FUSED_MI_PATH
