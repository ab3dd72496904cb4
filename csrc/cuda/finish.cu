#include "finish.h"

#include "jensen_launch.h"
#include "launch.h"

namespace fused_mi {

const char* launch_finish(const Jensen& in, void* stream) {
  const int64_t blocks = in.mixtures * in.finished;
  const size_t shared = sizeof(FinishShared);
  return in.wide ? launch(finish_kernel<double>, blocks, kFinish, shared, stream, in)
                 : launch(finish_kernel<float>, blocks, kFinish, shared, stream, in);
}

const char* launch_reduce(const Jensen& in, void* stream) {
  const size_t shared = kReduce / 32 * sizeof(double);
  return in.wide ? launch(reduce_kernel<double>, 1, kReduce, shared, stream, in)
                 : launch(reduce_kernel<float>, 1, kReduce, shared, stream, in);
}

}  // namespace fused_mi
