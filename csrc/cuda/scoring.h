// From numbers of each sample to the terms of a loss, and from gradients of the terms back to theirs.
#pragma once

#include "scoring_launch.h"

namespace fused_mi {

constexpr int kScores = 256;  // threads

// Of a sample the total, its parts in q and in g, the assignment, and minus the part in k.
GPU_DEVICE void score_of(const Scores& in, int d, int64_t n, double (&to)[kRowsOfState]) {
  const double* rows = in.rows + static_cast<int64_t>(d) * kRowsOfState * in.N + n;
  const int64_t N = in.N;
  const double log_sum = rows[0], q = rows[N], g = rows[2 * N], k = rows[3 * N], own = rows[4 * N];
  const bool hopeless = log_sum == -gpu::infinity<double>();
  // Where nothing is near, and the own component is not either, nothing is known.
  const bool unknown = hopeless && own == gpu::infinity<double>();
  to[0] = unknown ? 0 : in.log_partners - log_sum - own;
  to[1] = q, to[2] = g;
  to[3] = hopeless ? 0 : in.log_partners + (k - q - g - log_sum);
  to[4] = -k;
}

GPU_DEVICE void set_terms(const Scores& in, const double (&score)[kRowsOfState], int64_t at, int64_t step) {
  const double of_q = in.factor * score[1], of_g = in.factor * score[2], of_k = in.factor * score[4];
  const double assignment = in.factor * (in.weighted ? score[3] + score[4] : score[3]);
  const double terms[kTerms] = {in.factor * score[0], of_q, of_g, assignment, of_q + of_g + assignment, of_k};
  in.total.set(at, terms[0]);
  for (int j = 0; j < kTerms; ++j) in.terms.set(at + j * step, terms[j]);
}

// Of each sample, or their means by one block.
GPU_KERNEL(kScores, 1)
terms_kernel(const Scores in) {
  const int64_t all = static_cast<int64_t>(in.D) * in.N;
  double score[kRowsOfState] = {};
  if (in.each) {
    const int64_t i = blockIdx.x * static_cast<int64_t>(kScores) + threadIdx.x;
    if (i >= all) return;
    score_of(in, static_cast<int>(i / in.N), i % in.N, score);
    set_terms(in, score, i, all);
    return;
  }
  double sums[kRowsOfState] = {};
  for (int64_t i = threadIdx.x; i < all; i += kScores) {
    score_of(in, static_cast<int>(i / in.N), i % in.N, score);
    for (int j = 0; j < kRowsOfState; ++j) sums[j] += score[j];
  }
  for (double& sum : sums) {
    sum = sum_over_block<kScores>(sum, &gpu::shared<double>()) / static_cast<double>(all);
  }
  if (threadIdx.x == 0) set_terms(in, sums, 0, 1);
}

// Gradients of `score_of`.
GPU_KERNEL(kScores, 4)
upstream_kernel(const Scores in) {
  const int64_t columns = in.each ? static_cast<int64_t>(in.D) * in.N : 1;
  const int64_t i = blockIdx.x * static_cast<int64_t>(kScores) + threadIdx.x;
  if (i >= (in.each ? columns : in.D)) return;
  const int64_t at = in.each ? i : 0, width = in.each ? in.N : 1;
  double terms[kTerms] = {};
  for (int j = 0; j < kTerms && in.of_terms.data; ++j) terms[j] = in.of_terms.get(j * columns + at);
  if (in.of_total.data) terms[0] += in.of_total.get(at);
  const double assignment = terms[3] + terms[4];
  const double found[kRowsOfState] = {
      terms[0], terms[1] + terms[4], terms[2] + terms[4], assignment,
      in.weighted ? terms[5] + assignment : terms[5]};
  double* to = in.upstream + i / width * kRowsOfState * width + i % width;
  for (int j = 0; j < kRowsOfState; ++j) to[j * width] = in.factor * found[j];
}

}  // namespace fused_mi
