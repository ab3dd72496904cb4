// A tile of samples goes along the components; of each sample the sums stay, see logsumexp_rows.h.
#include "online.h"

#include "logsumexp_rows.h"
#include "pairs_energies.h"
#include "pairs_weights.h"

namespace fused_mi::FUSED_MI_PATH {
namespace {

constexpr int kColumns = OnlineForward::kComponents;

// Of a thread: squared distances of a tile, and the energies of its samples one after the other.
template <class A>
struct Room {
  const PairsForward& call;
  const Labels labels;
  const Own own;
  Panel<A> panel;
  double* distances;  // (tile_samples, kColumns)
  bool *here, *before;  // (S,): where a sample contributes, and where the one before it did, whose g
                        // most often serves again
  Bits<double> known = all<double>(0) == 0.0;  // where all sums are, see `reduce`
  alignas(64) double g[kColumns], k[kColumns] = {};

  Room(const PairsForward& call, const Labels& labels, Arena& arena)
      : call(call),
        labels(labels),
        own(labels.own(call.in.exclude_diagonal)),
        panel(call.cut, arena),
        distances(arena.take<double>(call.cut.tile_samples * kColumns)),
        here(arena.take<bool>(call.in.S)),
        before(arena.take<bool>(call.in.S)) {}

  // The samples and components that a tile has of mixture d.
  FUSED_MI_INLINE Tile tile(int64_t d, Rows samples, Rows components, bool sized) const {
    return {call.in, call.in.mixtures[d], samples, components, sized, distances, kColumns};
  }

  template <class In>
  FUSED_MI_INLINE bool find_distances(int64_t d, const Tile& tile) {
    const auto go_on = [](Rows) { return true; };
    const Rows units{0, call.cut.units};
    return distances_of_tile<A, In>(call, panel, tile, Runs(call, d), units, go_on);
  }

  // Of a sample of the tile, q in place of its sums; the samples in their order.
  FUSED_MI_INLINE Energies energies(int64_t d, const Tile& tile, int64_t row) {
    const MomentsInputs& in = call.in;
    const Meeting rows = call.of(d);
    const int width = static_cast<int>(tile.components.count());
    const int64_t n = row - rows.samples.start, first = tile.components.start - rows.components.start;
    const double most = in.wide ? INFINITY : kLargestSum;
    bool same = row != tile.samples.start;
    for (int64_t s = 0; s < in.S; ++s) {
      here[s] = sample_contributes(in, tile.mixture, call.positions[d * in.S + s], row, s);
      same = same && here[s] == before[s];
    }
    auto is_here = [&](int64_t s) { return here[s]; };
    auto half = [&](double* logs, double* of_g, double* of_k) {
      std::memset(logs, 0, kColumns * sizeof(double));
      logs_of_pairs(call, d, n, first, width, is_here, of_g, of_k);
      for (int j = 0; j < width; ++j) logs[j] /= 2;
    };
    if (!same) half(g, g, nullptr);
    if (in.own_stds) half(k, nullptr, k);
    bool* last = before;
    before = here, here = last;
    double* q = tile.sums + (row - tile.samples.start) * tile.stride;
    over_vectors<double>(width, [&](int f, auto lanes) __attribute__((always_inline)) {
      const Doubles sum = load<double>(q + f, lanes);
      known &= sum <= most;
      store(q + f, sum / 2, lanes);
    });
    const double* of_k = labels.log_weights != nullptr ? labels.log_weights + first : k;
    return {q, g, of_k, own.of(n) - first, own.left_out, own.origins != nullptr};
  }
};

template <class A, class In>
bool reduce_item(const OnlineForward& call, Room<A>& room, Online* online, int64_t item) {
  const PairsForward& pairs = call.pairs;
  const PairsCut& cut = pairs.cut;
  const int64_t split = item % call.splits, at = item / call.splits;
  const int64_t tile_n = at % cut.tiles_n, d = at / cut.tiles_n;
  const Meeting rows = pairs.of(d);
  const Rows samples = part(rows.samples, tile_n, cut.tile_samples);
  for (int64_t n = 0; n < samples.count(); ++n) online[n] = Online();
  const int64_t begin = split * call.tiles_per_split;
  const int64_t end = smaller(begin + call.tiles_per_split, cut.tiles_m);
  for (int64_t tile_m = begin; tile_m < end; ++tile_m) {
    const Rows components = part(rows.components, tile_m, cut.tile_components);
    const Tile tile = room.tile(d, samples, components, tile_n == 0);
    if (!room.template find_distances<In>(d, tile)) return false;
    for (int64_t row = samples.start; row < samples.stop; ++row) {
      const Energies energies = room.energies(d, tile, row);
      online[row - samples.start].include(energies, 0, static_cast<int>(components.count()));
    }
  }
  double* to = call.parts +
      ((split * pairs.in.count + d) * cut.samples + samples.start - rows.samples.start) *
          OnlineForward::kNumbers;
  for (int64_t n = 0; n < samples.count(); ++n, to += OnlineForward::kNumbers) {
    const Sums& sums = online[n].sums;
    to[0] = online[n].most;
    to[1] = sum_of_lanes(sums.weights);
    to[2] = sum_of_lanes(sums.q), to[3] = sum_of_lanes(sums.g), to[4] = sum_of_lanes(sums.k);
    to[5] = online[n].of_own;
  }
  return !any<double>(~room.known);
}

template <class A>
bool reduce_of(const OnlineForward& call, char* scratch, int64_t begin, int64_t end) {
  Arena arena{scratch};
  Room<A> room(call.pairs, call.labels, arena);
  Online* online = arena.take<Online>(call.pairs.cut.tile_samples);
  const MomentsInputs& in = call.pairs.in;
  const View* inputs[] = {&in.y, &in.x, &in.mu, &in.stds};
  bool done = true;
  with_input<A>(inputs, 4, [&](auto type) {
    for (int64_t item = begin; item < end && done; ++item) {
      done = reduce_item<A, decltype(type)>(call, room, online, item);
    }
  });
  return done;
}

bool reduce(const OnlineForward& call, char* scratch, int64_t begin, int64_t end) {
  return call.pairs.in.wide ? reduce_of<double>(call, scratch, begin, end)
                            : reduce_of<float>(call, scratch, begin, end);
}

int64_t bytes(const PairsForward& call) {
  Arena arena{nullptr};
  call.in.wide ? void(Room<double>(call, {}, arena)) : void(Room<float>(call, {}, arena));
  arena.take<Online>(call.cut.tile_samples);
  return arena.used;
}

template <class A>
bool logs_of(const PairsForward& call, int64_t begin, int64_t end) {
  const PairsCut& cut = call.cut;
  const View* stds[] = {&call.in.stds};
  bool regular = true;
  with_input<A>(stds, 1, [&](auto type) {
    using In = decltype(type);
    for (int64_t item = begin; item < end && regular; ++item) {
      const int64_t tiles = cut.tiles_m + cut.tiles_n, d = item / tiles, tile = item % tiles;
      const Runs run_of(call, d);
      const Rows units{0, cut.units};
      const Meeting rows = call.of(d);
      regular = tile < cut.tiles_m
          ? logs_of_components<A, In>(
                call, d, part(rows.components, tile, cut.tile_components), units, run_of)
          : logs_of_samples<A, In>(
                call, d, part(rows.samples, tile - cut.tiles_m, cut.tile_samples), units, run_of);
    }
  });
  return regular;
}

bool logs(const PairsForward& call, int64_t begin, int64_t end) {
  return call.in.wide ? logs_of<double>(call, begin, end) : logs_of<float>(call, begin, end);
}

// All samples of the block and one tile of its components.
template <class A, class In>
bool weigh_tile(const OnlineWeigh& call, Room<A>& room, int64_t tile_m) {
  const PairsForward& pairs = call.pairs;
  const PairsCut& cut = pairs.cut;
  const Meeting& block = call.block;
  const Weights<A>& w = *reinterpret_cast<const Weights<A>*>(call.weights);
  const int64_t N = block.samples.count();
  const Rows components = part(block.components, tile_m, kBlock);
  const int width = static_cast<int>(components.count());
  const int64_t first = components.start - block.components.start;
  const int64_t mixture = pairs.of(call.d).samples.start;
  alignas(64) double of_g[kBlock] = {}, of_weights[kBlock] = {};
  alignas(64) A of_q[kBlock] = {};
  for (int m = 0; m < width; m += kM) w.partners[(first + m) / kM] = Partners();
  for (int64_t start = block.samples.start; start < block.samples.stop; start += cut.tile_samples) {
    const Rows samples{start, smaller(start + cut.tile_samples, block.samples.stop)};
    const Tile tile = room.tile(call.d, samples, components, start == block.samples.start);
    if (!room.template find_distances<In>(call.d, tile)) return false;
    for (int64_t row = samples.start; row < samples.stop; ++row) {
      const Energies energies = room.energies(call.d, tile, row);
      const Pull pull(
          call.upstream.of(0, row - mixture), call.state + row - mixture, cut.samples,
          static_cast<double>(call.partners));
      Doubles of_k{};
      over_vectors<double>(width, [&](int f, auto lanes) __attribute__((always_inline)) {
        const Pairs met(energies, f, lanes);
        Doubles found[3]{};
        // Most pairs weigh nothing.
        const bool some = any<double>(~(met.density - pull.log_sum < kNothing));
        if (some || (energies.matters && energies.has_own(f))) pull(energies, f, met, found);
        for (int j = 0; j < kLanes<double>; ++j) of_q[f + j] = static_cast<A>(found[0][j]);
        store(of_g + f, load<double>(of_g + f, lanes) + found[1], lanes);
        const Doubles more = inside<double>(found[2], Doubles{}, lanes);
        of_k += more;
        if (call.labels.of_weights == nullptr) return;
        store(of_weights + f, load<double>(of_weights + f, lanes) + more, lanes);
      });
      const int n = static_cast<int>(row - block.samples.start);
      append(w, N, n, first, width, of_q);
      call.of_k[tile_m * N + n] = sum_of_lanes(of_k);
    }
  }
  for (int l = 0; l < width; ++l) w.of_g[first + l] = static_cast<A>(of_g[l]);
  for (int l = 0; call.labels.of_weights != nullptr && l < width; ++l) {
    call.labels.of_weights[components.start - pairs.of(call.d).components.start + l] += of_weights[l];
  }
  return !any<double>(~room.known);
}

template <class A>
bool weigh_of(const OnlineWeigh& call, char* scratch, int64_t begin, int64_t end) {
  Arena arena{scratch};
  Room<A> room(call.pairs, call.labels, arena);
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

template <class A>
void sum_weights_of(const OnlineWeigh& call) {
  const Weights<A>& w = *reinterpret_cast<const Weights<A>*>(call.weights);
  const int64_t N = call.block.samples.count();
  for (int64_t n = 0; n < N; ++n) {
    double sum = 0;
    for (int64_t tile = 0; tile < call.tiles(); ++tile) sum += call.of_k[tile * N + n];
    w.of_k[n] = static_cast<A>(sum);
  }
}

void sum_weights(const OnlineWeigh& call) {
  call.pairs.in.wide ? sum_weights_of<double>(call) : sum_weights_of<float>(call);
}

}  // namespace

extern const OnlineKernels online_kernels = {bytes, logs, reduce, weigh, sum_weights};

}  // namespace fused_mi::FUSED_MI_PATH
