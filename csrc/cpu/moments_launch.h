// From a call of the moments to items of work for threads, see launch.h.
#pragma once

#include "merge.h"
#include "pairs_launch.h"

namespace fused_mi {

constexpr int64_t kFewRows = 8;  // from there on float32 has the digits of nearly all columns
constexpr int64_t kMostEnergies = 1 << 27;  // that are worth their memory

inline int64_t state_size(const MomentsInputs& in) {
  return in.count * 4 * in.S * in.E;
}

constexpr int64_t kPlanesOfParts = 6;  // see parts_finish.h

// Without the diagonal a row of few is most of what it is taken from, time and again.
inline bool needs_float64(const MomentsInputs& in) {
  return in.exclude_diagonal && most_rows(in) < kFewRows;
}

// Writes `state` and `sums`, in the type of `in`.
template <class Parallel>
bool try_moments(
    MomentsInputs in, char* state, double* sums, Path path, Parallel&& parallel,
    bool wide_planes = false) {
  join_positions(in);
  const int64_t rows = most_rows(in);
  MomentsForward call;
  call.in = in;
  call.wide_planes = wide_planes;
  call.cut = Cut(in.S, in.E, rows, in.wide);
  call.state = state;
  const int64_t tiles = call.cut.tiles(), splits = call.cut.splits;
  auto positions = positions_of(in);
  call.positions = positions.get();
  std::unique_ptr<double[]> partial_sums(new double[in.count * tiles * 3]);
  call.partial_sums = partial_sums.get();
  std::unique_ptr<Totals[]> totals;
  if (splits > 1) totals.reset(new Totals[in.count * tiles * splits]);
  call.totals = totals.get();

  const MomentsKernels& kernels = moments_kernels(path);
  parallel(0, in.S, grain(rows), [&](int64_t begin, int64_t end) {
    kernels.positions(in, call.positions, begin, end);
  });
  int64_t elements = call.cut.rows_per_split * call.cut.width;
  bool regular = all_of(
      parallel, tiles * splits, grain(elements),
      [&](int64_t begin, int64_t end) { return kernels.accumulate(call, begin, end); });
  if (!regular) return false;
  if (splits > 1) {
    const bool exact = all_of(
        parallel, tiles, grain(splits * call.cut.width),
        [&](int64_t begin, int64_t end) { return kernels.finish(call, begin, end); });
    if (!exact) return false;
  }
  const double most = in.wide ? kLargestWideSum : kLargestSum;
  bool known = true;
  for (int64_t d = 0; d < in.count; ++d) {
    for (int64_t j = 0; j < 3; ++j) {
      double sum = 0;
      for (int64_t tile = 0; tile < tiles; ++tile) sum += partial_sums[(d * tiles + tile) * 3 + j];
      sums[d * 3 + j] = sum;
      known &= std::fabs(sum) <= most;
    }
  }
  return known;
}

// The sums from the energies of all pairs, where moments would lose the digits.
template <class Parallel>
bool sums_of_pairs(const MomentsInputs& in, double* sums, Path path, Parallel&& parallel) {
  const int64_t N = in.mixtures[0].samples.count(), M = in.mixtures[0].components.count();
  if (in.count * 3 * N * M > kMostEnergies) return false;
  std::unique_ptr<double[]> energies(new double[in.count * 3 * N * M]);
  if (!launch_pairs(in, energies.get(), path, parallel)) return false;
  bool known = true;
  for (int64_t j = 0; j < in.count * 3; ++j) {
    const double* of_pairs = energies.get() + j * N * M;
    sums[j] = 0;
    for (int64_t pair = 0; pair < N * M; ++pair) {
      if (!in.exclude_diagonal || pair / M != pair % M) sums[j] += of_pairs[pair];
    }
    known &= std::fabs(sums[j]) <= kLargestWideSum;
  }
  return known;
}

// Writes `sums` (count, 3): of q, g and k, and `state`, see `wide_state`. A state that is
// NaN says that the gradients compute the moments anew, in float64, or by pairs; one of plain torch may
// be infinite.
template <class Parallel>
bool launch_moments(
    MomentsInputs in, char* state, double* sums, Path path, Parallel&& parallel) {
  in.wide |= needs_float64(in);
  if (try_moments(in, state, sums, path, parallel)) return true;
  std::memset(state, 0xff, state_size(in) * (in.wide_state() ? 8 : 4));
  MomentsInputs wide = in;
  wide.wide = true;
  if (!in.wide) {
    std::unique_ptr<double[]> unread(new double[state_size(in)]);
    char* moments = reinterpret_cast<char*>(unread.get());
    if (try_moments(wide, moments, sums, path, parallel)) return true;
  }
  return sums_of_pairs(in.exclude_diagonal ? wide : in, sums, path, parallel);
}

// Of rows whose partners are elsewhere: `planes`, in float32 or float64, and `sums` of what these rows
// have to say. False where float64 has no room for it.
template <class Parallel>
bool launch_parts(
    MomentsInputs in, char* planes, bool wide_planes, double* sums, Path path,
    Parallel&& parallel) {
  if (try_moments(in, planes, sums, path, parallel, wide_planes)) return true;
  if (in.wide) return false;
  in.wide = true;
  return try_moments(in, planes, sums, path, parallel, wide_planes);
}

// Writes `merged`, and `sums` (count,); false where the type has no room for it.
template <class Parallel>
bool launch_merge(Merge in, double* sums, Path path, Parallel&& parallel) {
  const int64_t items = in.items();
  std::unique_ptr<double[]> of_items(new double[in.count * items]);
  in.sums = of_items.get();
  const bool room = all_of(
      parallel, in.count * items, grain(in.sets * in.results() * Merge::kWidth),
      [&](int64_t begin, int64_t end) { return merge_kernels(path).merge(in, begin, end); });
  for (int64_t d = 0; d < in.count; ++d) {
    sums[d] = 0;
    for (int64_t item = 0; item < items; ++item) sums[d] += of_items[d * items + item];
  }
  return room;
}

inline bool has_moments(const char* state, bool wide) {
  return wide ? std::isfinite(*reinterpret_cast<const double*>(state))
              : std::isfinite(*reinterpret_cast<const float*>(state));
}

// Its cut and positions are filled in here.
template <class Parallel>
bool try_gradients(MomentsBackward call, Path path, Parallel&& parallel) {
  join_positions(call.in, {&call.d_y, &call.d_x, &call.d_mu, &call.d_stds});
  int64_t rows = 0, all_rows = 0;
  for (int64_t p = 0; p < call.pass_count; ++p) {
    int64_t count = call.passes[p].rows.count();
    rows = count > rows ? count : rows;
    all_rows += count;
  }
  const MomentsInputs& in = call.in;
  call.cut = Cut(in.S, in.E, rows, in.wide);
  const View* gradients[] = {&call.d_y, &call.d_x, &call.d_mu, &call.d_stds};
  call.stream = streams(in, gradients, in.wide, call.cut.width, all_rows);
  auto positions = positions_of(in);
  call.positions = positions.get();
  parallel(0, in.S, grain(rows), [&](int64_t begin, int64_t end) {
    moments_kernels(path).positions(in, call.positions, begin, end);
  });
  int64_t items = call.pass_count * call.cut.tiles() * call.cut.splits;
  int64_t elements = call.cut.rows_per_split * call.cut.width;
  return all_of(parallel, items, grain(elements), [&](int64_t begin, int64_t end) {
    return moments_backward_kernels(path).gradients(call, begin, end);
  });
}

// As `sums_of_pairs`.
template <class Parallel>
bool gradients_of_pairs(const MomentsBackward& call, Path path, Parallel&& parallel) {
  const MomentsInputs& in = call.in;
  const int64_t N = in.mixtures[0].samples.count(), M = in.mixtures[0].components.count();
  if (in.count * 3 * N * M > kMostEnergies) return false;
  std::unique_ptr<double[]> upstream(new double[in.count * 3 * N * M]);
  for (int64_t i = 0; i < in.count * 3 * N * M; ++i) {
    const int64_t pair = i % (N * M);
    const bool out = in.exclude_diagonal && pair / M == pair % M;
    upstream[i] = out ? 0 : call.upstream[i / (N * M)];
  }
  PairsBackward pairs;
  pairs.in = in;
  pairs.upstream = upstream.get();
  pairs.passes = call.passes;
  pairs.pass_count = call.pass_count;
  pairs.d_y = call.d_y, pairs.d_x = call.d_x, pairs.d_mu = call.d_mu, pairs.d_stds = call.d_stds;
  return launch_pairs_gradients(pairs, path, parallel);
}

// Of rows whose partners are elsewhere. False where float64 has no room for them.
template <class Parallel>
bool launch_pull(MomentsBackward call, Path path, Parallel&& parallel) {
  if (try_gradients(call, path, parallel)) return true;
  if (call.in.wide) return false;
  call.in.wide = true;
  return try_gradients(call, path, parallel);
}

// Writes the gradients that `call` names.
template <class Parallel>
bool launch_gradients(MomentsBackward call, Path path, Parallel&& parallel) {
  MomentsInputs& in = call.in;
  in.wide |= needs_float64(in);
  if (has_moments(call.state, in.wide_state()) && try_gradients(call, path, parallel)) return true;
  MomentsBackward wide = call;
  wide.in.wide = true;
  if (!in.wide) {
    std::unique_ptr<double[]> anew(new double[state_size(in) + in.count * 3]);
    char* state = reinterpret_cast<char*>(anew.get());
    wide.state = state;
    if (try_moments(wide.in, state, anew.get() + state_size(in), path, parallel) &&
        try_gradients(wide, path, parallel)) {
      return true;
    }
  }
  return gradients_of_pairs(in.exclude_diagonal ? wide : call, path, parallel);
}

}  // namespace fused_mi
