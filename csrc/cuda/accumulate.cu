#include "accumulate.h"

#include "jensen_launch.h"
#include "launch.h"

namespace fused_mi {

const char* launch_accumulate(const Jensen& in, void* stream) {
  return with_format({&in.y, &in.x, &in.mu, &in.stds}, in.E, in.wide, [&](auto format) {
    using F = decltype(format);
    const size_t shared = sizeof(AccumulateShared<F>);
    return launch(
        accumulate_kernel<F>, in.mixtures * in.accumulated, kAccumulate, shared, stream, in);
  });
}

}  // namespace fused_mi
