#include "prepare.h"

#include "jensen_launch.h"
#include "launch.h"

namespace fused_mi {

const char* launch_prepare(const Jensen& in, void* stream) {
  const int64_t counting = in.counts ? in.mixtures * ceil_div(in.S, kPositions) : 0;
  const int64_t blocks = in.roles * in.least_parts + counting;
  return with_format({&in.stds}, in.E, in.wide, [&](auto format) {
    using F = decltype(format);
    return launch(prepare_kernel<F>, blocks, kPrepare, sizeof(Met), stream, in);
  });
}

const char* launch_stabilisers(const Jensen& in, void* stream) {
  const size_t shared = kPrepare / 32 * sizeof(double);
  return in.wide ? launch(stabiliser_kernel<double>, 1, kPrepare, shared, stream, in)
                 : launch(stabiliser_kernel<float>, 1, kPrepare, shared, stream, in);
}

}  // namespace fused_mi
