#include "logsumexp.h"

#include "launch.h"
#include "formats.h"

namespace fused_mi {

const char* launch_logsumexp(const Logsumexp& in, void* stream) {
  const int64_t samples = static_cast<int64_t>(in.D) * in.N;
  return launch(logsumexp_kernel, samples, kLogsumexp, kLogsumexp / 32 * sizeof(double), stream, in);
}

const char* launch_logsumexp_gradient(const Logsumexp& in, void* stream) {
  const int64_t samples = static_cast<int64_t>(in.D) * in.N;
  return launch(
      logsumexp_gradient_kernel, samples * ceil_div(in.M, kLogsumexp), kLogsumexp, 0, stream, in);
}

}  // namespace fused_mi
