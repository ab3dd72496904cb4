#include "gradient_of_pairs.h"

#include "jensen_launch.h"
#include "launch.h"

namespace fused_mi {

const char* launch_gradient(const Gradient& in, void* stream) {
  const Jensen& of = in.of;
  const int64_t blocks = in.pass[0].blocks + in.pass[1].blocks;
  return with_format(
      {&of.y, &of.x, &of.mu, &of.stds, &in.d_y, &in.d_x, &in.d_mu, &in.d_stds}, of.E, of.wide,
      [&](auto format) {
        return launch(gradient_kernel<decltype(format)>, blocks, kGradient, 0, stream, in);
      });
}

const char* launch_gradient_of_pairs(const Gradient& in, void* stream) {
  const int64_t passes = (in.pass[0].rows > 0) + (in.pass[1].rows > 0);
  return launch(
      gradient_of_pairs_kernel, passes * in.of.S * in.looks, kFinish, sizeof(Lost), stream, in);
}

}  // namespace fused_mi
