#include "components_gradient.h"

#include "launch.h"
#include "pairs_launch.h"

namespace fused_mi {

const char* launch_components_gradient(const Pairs& in, void* stream) {
  return with_format(
      {&in.y, &in.x, &in.mu, &in.stds}, in.E, in.wide,  // gradients lie side by side, see store_square
      [&](auto format) {
        using Tile = GradientTile<decltype(format), 4>;
        const int64_t blocks =
            ceil_div(in.M, Tile::ROWS) * ceil_div(in.E, Tile::FEATURES) * in.S;
        return launch(
            components_gradient_kernel<Tile>, blocks, Tile::THREADS, sizeof(typename Tile::Shared), stream, in);
      });
}

}  // namespace fused_mi
