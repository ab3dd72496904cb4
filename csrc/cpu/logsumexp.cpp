#include "logsumexp_rows.h"

namespace fused_mi::FUSED_MI_PATH {
namespace {

// Where a row begins in (count, 3, N, M).
FUSED_MI_INLINE int64_t row_at(const Logsumexp& in, int64_t item) {
  return (item / in.N * 3 * in.N + item % in.N) * in.M;
}

FUSED_MI_INLINE Energies energies_of(const Logsumexp& in, int64_t item) {
  const double* q = in.energies + row_at(in, item);
  const int64_t matrix = in.N * in.M;
  const Own& own = in.own;
  return {q, q + matrix, q + 2 * matrix, own.of(item % in.N), own.left_out, own.origins != nullptr};
}

// Where a number of the row stands in (count, 5, samples), the others `all_samples()` apart.
FUSED_MI_INLINE int64_t state_at(const Logsumexp& in, int64_t item) {
  return item / in.N * in.kRows * in.all_samples() + item % in.N;
}

// Equal responsibilities, where every density is 0.
void equal_means(const Logsumexp& in, const Energies& row, double* state) {
  double q = 0, g = 0, k = 0, met = static_cast<double>(in.met());
  for (int64_t l = 0; l < in.M; ++l) {
    if (row.left_out && l == row.own) continue;
    q += row.q[l], g += row.g[l], k += row.k[l];
  }
  const int64_t N = in.all_samples();
  state[0] = -INFINITY;
  state[N] = q / met, state[2 * N] = g / met, state[3 * N] = k / met;
}

void state_of_rows(const LogsumexpForward& call, int64_t begin, int64_t end) {
  constexpr int64_t kBlock = 512;  // is read from memory once, then from the first cache
  const Logsumexp& in = call.in;
  const int64_t N = in.all_samples();
  for (int64_t item = begin; item < end; ++item) {
    const Energies row = energies_of(in, item);
    Online online;
    for (int64_t start = 0; start < in.M; start += kBlock) {
      const int64_t left = in.M - start;
      online.include(row, start, static_cast<int>(kBlock < left ? kBlock : left), kBlock);
    }
    const Sums& sums = online.sums;
    double* state = call.state + state_at(in, item);
    state[4 * N] = online.of_own;
    const double weights = sum_of_lanes(sums.weights);
    if (weights == 0) {
      equal_means(in, row, state);
      continue;
    }
    state[0] = online.shift() + std::log(weights);
    state[N] = sum_of_lanes(sums.q) / weights;
    state[2 * N] = sum_of_lanes(sums.g) / weights;
    state[3 * N] = sum_of_lanes(sums.k) / weights;
  }
}

void gradient_of_rows(const LogsumexpBackward& call, int64_t begin, int64_t end) {
  constexpr int kAhead = 512;  // of a matrix, is on its way
  const Logsumexp& in = call.in;
  const int64_t matrix = in.N * in.M;
  const int width = static_cast<int>(in.M);
  const double met = static_cast<double>(in.met());
  for (int64_t item = begin; item < end; ++item) {
    const Energies row = energies_of(in, item);
    const Pull pull(
        call.upstream.of(item / in.N, item % in.N), call.state + state_at(in, item), in.all_samples(),
        met);
    double* to = call.gradient + row_at(in, item);
    over_vectors<double>(width, [&](int l, auto lanes) __attribute__((always_inline)) {
      const Pairs pairs(row, l, lanes);
      row.prefetch(l + kAhead);
      Doubles found[3];
      pull(row, l, pairs, found);
      for (int j = 0; j < 3; ++j) store(to + j * matrix + l, found[j], lanes, call.stream);
    });
  }
  if (call.stream) finish_writes();
}

}  // namespace

extern const LogsumexpKernels logsumexp_kernels = {state_of_rows, gradient_of_rows};

}  // namespace fused_mi::FUSED_MI_PATH
