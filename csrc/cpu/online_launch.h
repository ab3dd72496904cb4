// From a call of the online log-sum-exp to items of work for threads, see launch.h.
#pragma once

#include "logsumexp_launch.h"
#include "online.h"
#include "pairs_launch.h"

#include <algorithm>
#include <vector>

namespace fused_mi {

// The numbers of a sample, of all splits, as its state; false where every density is 0.
inline bool join_splits(const OnlineForward& call, int64_t row, double* state) {
  constexpr int64_t kNumbers = OnlineForward::kNumbers;
  const int64_t N = call.pairs.cut.samples, rows = call.pairs.in.count * N;
  double most = -INFINITY, sums[4] = {}, of_own = 0;
  for (int64_t split = 0; split < call.splits; ++split) {
    most = std::max(most, call.parts[(split * rows + row) * kNumbers]);
  }
  if (!std::isfinite(most)) return false;
  for (int64_t split = 0; split < call.splits; ++split) {
    const double* part = call.parts + (split * rows + row) * kNumbers;
    const double factor = std::exp(part[0] - most);
    for (int j = 0; j < 4; ++j) sums[j] += factor == 0 ? 0 : factor * part[1 + j];
    of_own += part[5];  // 0 but in one of them
  }
  double* to = state + row / N * Logsumexp::kRows * N + row % N;
  to[0] = most + std::log(sums[0]);
  for (int j = 1; j < 4; ++j) to[j * N] = sums[j] / sums[0];
  to[4 * N] = of_own;
  return true;
}

// All pairs of `in`, in tiles of all features. Depends on sizes alone, see PairsCut.
inline PairsForward online_pairs(const MomentsInputs& in, Position* positions, int64_t columns) {
  PairsForward pairs;
  pairs.in = in;
  pairs.positions = positions;
  PairsCut& c = pairs.cut;
  c = PairsCut(
      in.mixtures[0].samples.count(), in.mixtures[0].components.count(), in.S, in.E, in.wide);
  c.tile_components = columns;
  c.tiles_m = ceil_div(c.components, columns);
  c.units_per_split = c.units, c.splits = 1;
  return pairs;
}

// Finds the logs of all rows, once for all tiles, in `memory` of `share` bytes. False where variances
// are not regular.
template <class Parallel>
bool find_logs(PairsForward& pairs, char* memory, Path path, Parallel&& parallel) {
  const MomentsInputs& in = pairs.in;
  const PairsCut& cut = pairs.cut;
  share(pairs, memory);
  parallel(0, in.count * in.S, grain(cut.components), [&](int64_t begin, int64_t end) {
    pairs_kernels(path).mark(pairs, begin, end);
  });
  return all_of(
      parallel, in.count * (cut.tiles_m + cut.tiles_n), grain(cut.tile_samples * in.S * in.E),
      [&](int64_t begin, int64_t end) { return online_kernels(path).logs(pairs, begin, end); });
}

// In the type of `in`; false where its range is not enough, or every density of a sample is 0.
template <class Parallel>
bool try_online(
    MomentsInputs in, const Labels& labels, double* state, Path path, Parallel&& parallel) {
  join_positions(in);
  const auto positions = found_positions(in, path, parallel);
  OnlineForward call;
  call.labels = labels;
  PairsForward& pairs = call.pairs;
  pairs = online_pairs(in, positions.get(), OnlineForward::kComponents);
  const PairsCut& cut = pairs.cut;
  const int64_t wanted = ceil_div(OnlineForward::kItems, in.count * cut.tiles_n);
  call.tiles_per_split = ceil_div(cut.tiles_m, wanted);
  call.splits = ceil_div(cut.tiles_m, call.tiles_per_split);
  const int64_t rows = in.count * cut.samples, shared = share(pairs, nullptr);
  Scratch<Use::call> memory(shared + call.splits * rows * OnlineForward::kNumbers * 8);
  call.parts = reinterpret_cast<double*>(memory.get() + shared);
  if (!find_logs(pairs, memory.get(), path, parallel)) return false;

  const OnlineKernels& kernels = online_kernels(path);
  const int64_t bytes = kernels.bytes(pairs);
  const int64_t pairs_of_item = cut.tile_samples * cut.tile_components;
  return all_of(
             parallel, in.count * cut.tiles_n * call.splits, grain(pairs_of_item * in.S * in.E),
             [&](int64_t begin, int64_t end) {
               return kernels.reduce(call, Scratch<Use::items>(bytes).get(), begin, end);
             }) &&
      all_of(parallel, rows, grain(64 * call.splits), [&](int64_t begin, int64_t end) {
           bool known = true;
           for (int64_t row = begin; row < end; ++row) known &= join_splits(call, row, state);
           return known;
         });
}

// Writes the rows (count, 5, N) of a state, see LogsumexpForward.
template <class Parallel>
bool launch_online(
    MomentsInputs in, const Labels& labels, double* state, Path path, Parallel&& parallel) {
  if (!in.wide && try_online(in, labels, state, path, parallel)) return true;
  in.wide = true;
  return try_online(in, labels, state, path, parallel);
}

// The gradients of a block of pairs, of a mixture of one position where every row contributes: what they
// weigh is found without their energies in memory.
template <class Parallel>
bool weigh_block(OnlineWeigh of, PairsBackward call, Path path, Parallel&& parallel) {
  call.N = of.block.samples.count(), call.M = of.block.components.count();
  const PairsBackwardKernels& gradients = pairs_backward_kernels(path);
  const int64_t weights = gradients.prepare(call, nullptr);
  Scratch<Use::call> memory(weights + of.tiles() * call.N * 8);
  call.weights = of.weights = memory.get();
  gradients.prepare(call, of.weights);
  of.of_k = reinterpret_cast<double*>(memory.get() + weights);
  const OnlineKernels& kernels = online_kernels(path);
  const int64_t bytes = kernels.bytes(of.pairs);
  const bool done = all_of(
      parallel, of.tiles(), grain(call.N * call.in.E), [&](int64_t begin, int64_t end) {
        return kernels.weigh(of, Scratch<Use::items>(bytes).get(), begin, end);
      });
  if (!done) return false;
  kernels.sum_weights(of);
  return find_gradients(call, path, parallel);
}

// Adds to the gradients that `call` names: zeros, in the type of `call.in`. Energies are found again for
// some pairs at a time. `state`: (count, 5, N) of the forward pass; `upstream`: see LogsumexpBackward.
// False, and nothing of worth, where the range of the type is not enough.
template <class Parallel>
bool try_online_gradients(
    PairsBackward call, const Labels& labels, const double* state, const OfTerms& upstream,
    Path path, Parallel&& parallel) {
  constexpr int64_t kRows = 2048;  // of a role, at a time
  join_positions(call.in, {&call.d_y, &call.d_x, &call.d_mu, &call.d_stds});
  const MomentsInputs in = call.in;
  const auto positions = found_positions(in, path, parallel);
  const int64_t N = in.mixtures[0].samples.count(), M = in.mixtures[0].components.count();
  bool full = in.S == 1;  // every row contributes
  for (int64_t d = 0; d < in.count; ++d) {
    full &= positions[d * in.S].samples == N && positions[d * in.S].components == M;
  }
  // What is kept of a pair takes 5 bytes, or 29 with its energies.
  const int64_t rows = std::min(N, kRows);
  const int64_t columns = std::min({M, kRows, (int64_t{1} << (full ? 19 : 17)) / rows});
  const std::unique_ptr<double[]> energies(full ? nullptr : new double[3 * rows * columns]);
  OnlineWeigh of;
  of.labels = labels;
  of.pairs = online_pairs(in, positions.get(), PairsBackward::kWeighed);
  of.partners = M - in.exclude_diagonal;
  const std::unique_ptr<double[]> logs(full ? new double[share(of.pairs, nullptr) / 8] : nullptr);
  char* memory = reinterpret_cast<char*>(logs.get());
  if (full && !find_logs(of.pairs, memory, path, parallel)) return false;
  call.add = true;
  for (int64_t i = 0; i < Logsumexp::kTerms * upstream.samples * in.count; ++i) {
    call.finite_upstream &= std::isfinite(upstream.data[i]);
  }
  for (int64_t block = 0; block < in.count * ceil_div(M, columns) * ceil_div(N, rows); ++block) {
    const int64_t first = block % ceil_div(N, rows) * rows, at = block / ceil_div(N, rows);
    const int64_t start = at % ceil_div(M, columns) * columns, d = at / ceil_div(M, columns);
    const Mixture& m = in.mixtures[d];
    const int64_t n = std::min(rows, N - first), count = std::min(columns, M - start);
    const Meeting meeting{
        {m.samples.start + first, m.samples.start + first + n},
        {m.components.start + start, m.components.start + start + count}};
    call.in.mixtures = &m, call.in.count = 1;
    call.meeting = &meeting;
    call.positions = positions.get() + d * in.S;

    const bool of_stds = call.d_stds.data != nullptr;
    const Pass passes[] = {
        {meeting.samples, 0, -1, call.d_y.data != nullptr, false, false, of_stds && in.own_stds},
        {meeting.components, -1, 0, false, call.d_x.data != nullptr, call.d_mu.data != nullptr, of_stds}};
    call.passes = passes, call.pass_count = 2;
    if (full) {
      of.d = d, of.block = meeting;
      of.state = state + d * Logsumexp::kRows * N, of.upstream = upstream.of(d, 0);
      if (!weigh_block(of, call, path, parallel)) return false;
      continue;
    }

    PairsForward pairs;
    pairs.in = call.in, pairs.meeting = call.meeting, pairs.positions = call.positions;
    pairs.cut = PairsCut(n, count, in.S, in.E, in.wide);
    pairs.energies = energies.get();
    if (!find_energies(pairs, path, parallel)) return false;

    LogsumexpBackward of_rows;
    of_rows.in.energies = of_rows.gradient = energies.get();
    of_rows.in.count = 1, of_rows.in.N = n, of_rows.in.M = count, of_rows.in.samples = N;
    of_rows.in.own = labels.own(in.exclude_diagonal);
    of_rows.state = state + d * Logsumexp::kRows * N + first, of_rows.upstream = upstream.of(d, first);
    std::vector<int64_t> origins;
    if (labels.origins != nullptr) {
      for (int64_t i = first; i < first + n; ++i) origins.push_back(labels.origins[i] - start);
      of_rows.in.own.origins = origins.data();
    } else if (in.exclude_diagonal) {
      of_rows.in.own.first = first - start;
    }
    if (labels.log_weights != nullptr) {
      put_weights(labels.log_weights + start, of_rows.in, energies.get());
    }
    launch_logsumexp_gradient(of_rows, path, parallel);
    if (labels.of_weights != nullptr) add_of_weights(of_rows, labels.of_weights + start);
    call.upstream = energies.get();
    if (!find_gradients(call, path, parallel)) return false;
  }
  return true;
}

}  // namespace fused_mi
