#include "pairs_rows.h"

#include "launch.h"
#include "pairs_launch.h"

namespace fused_mi {

const char* launch_shift(const Pairs& in, void* stream) {
  return with_format({&in.x, &in.stds}, in.E, in.wide, [&](auto format) {
    using F = decltype(format);
    return launch(shift_kernel<F>, ceil_div(ceil_div(in.E, F::V) * in.S, kRows), kRows, 0, stream, in);
  });
}

const char* launch_log_determinants(const LogDeterminants& in, bool wide, void* stream) {
  return with_format({&in.stds}, in.E, wide, [&](auto format) {
    return launch(
        log_determinants_kernel<decltype(format)>, ceil_div(in.rows * in.S, kRows / 32), kRows, 0,
        stream, in);
  });
}

const char* launch_pair_logs(const PairLogs& in, void* stream) {
  const int64_t size = static_cast<int64_t>(in.of.N) * in.of.M;
  return launch(pair_logs_kernel, ceil_div(size, kRows), kRows, 0, stream, in);
}

const char* launch_add_splits(const Pairs& in, void* stream) {
  const int64_t size = static_cast<int64_t>(in.N) * in.M;
  return launch(add_splits_kernel, ceil_div(size, kRows), kRows, 0, stream, in);
}

}  // namespace fused_mi
