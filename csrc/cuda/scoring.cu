#include "scoring.h"

#include "contributing.h"
#include "device.h"
#include "formats.h"
#include "launch.h"
#include "sum_weights.h"

#include <algorithm>

namespace fused_mi {

const char* launch_contributing(const Contributing& in, void* stream) {
  const Jensen& of = in.of;
  const int64_t items = of.mixtures * (static_cast<int64_t>(of.N) + of.M) * of.S;
  const int64_t blocks = std::min<int64_t>(ceil_div(items, kContributing), 8 * multiprocessors());
  return launch(contributing_kernel, blocks, kContributing, 0, stream, in);
}

const char* launch_terms(const Scores& in, void* stream) {
  const int64_t blocks = in.each ? ceil_div(static_cast<int64_t>(in.D) * in.N, kScores) : 1;
  return launch(terms_kernel, blocks, kScores, kScores / 32 * sizeof(double), stream, in);
}

const char* launch_upstream(const Scores& in, void* stream) {
  const int64_t columns = in.each ? static_cast<int64_t>(in.D) * in.N : in.D;
  return launch(upstream_kernel, ceil_div(columns, kScores), kScores, 0, stream, in);
}

const char* launch_sum_weights(const SumWeights& in, void* stream) {
  const int64_t tiles = in.over_rows ? ceil_div(in.columns, 32) : ceil_div(in.rows, kStreamsOf);
  const int64_t blocks = tiles * ceil_div(in.S, kAtOnce);
  return launch(sum_weights_kernel, blocks, kSums, kSums * sizeof(double), stream, in);
}

const char* launch_add_gradients(const AddGradients& in, void* stream) {
  return launch(add_gradients_kernel, ceil_div(in.size, kSums), kSums, 0, stream, in);
}

}  // namespace fused_mi
