#include "samples_gradient.h"

#include "launch.h"
#include "pairs_launch.h"

namespace fused_mi {

const char* launch_samples_gradient(const Pairs& in, void* stream) {
  return with_format(
      {&in.y, &in.x, &in.mu, &in.stds, &in.d_y, &in.d_x, &in.d_mu, &in.d_stds}, in.E, in.wide,
      [&](auto format) {
        using Tile = GradientTile<decltype(format), 8>;
        const int64_t blocks =
            ceil_div(in.N, Tile::ROWS) * ceil_div(in.E, Tile::FEATURES) * in.S;
        return launch(
            samples_gradient_kernel<Tile>, blocks, Tile::THREADS, sizeof(typename Tile::Shared), stream, in);
      });
}

}  // namespace fused_mi
