#include "samples_gradient.h"

#include "launch.h"
#include "pairs_launch.h"

namespace fused_mi {

namespace {

template <class F>
using SamplesTile = GradientTile<F, 8>;

}  // namespace

void plan_samples_gradient(Pairs& in, int multiprocessors) {
  using Tile = SamplesTile<Loose<float>>;
  constexpr int64_t least = 16 * Tile::DEPTH;  // fewer, and parts are as much traffic as what they spare
  const int64_t tiles = ceil_div(in.N, Tile::ROWS) * ceil_div(in.E, Tile::FEATURES) * in.S;
  const int64_t wanted = ceil_div(4 * multiprocessors, std::max<int64_t>(tiles, 1));
  const int64_t each = std::max(ceil_div(in.M, wanted), least);
  in.components_per_split = static_cast<int>(ceil_div(each, Tile::DEPTH) * Tile::DEPTH);
  in.gradient_splits = static_cast<int>(ceil_div(in.M, in.components_per_split));
}

const char* launch_samples_gradient(const Pairs& in, void* stream) {
  return with_format(
      {&in.y, &in.x, &in.mu, &in.stds}, in.E, in.wide,  // gradients lie side by side, see store_square
      [&](auto format) {
        using Tile = SamplesTile<decltype(format)>;
        const int64_t blocks =
            ceil_div(in.N, Tile::ROWS) * ceil_div(in.E, Tile::FEATURES) * in.S * in.gradient_splits;
        return launch(
            samples_gradient_kernel<Tile>, blocks, Tile::THREADS, sizeof(typename Tile::Shared), stream, in);
      });
}

}  // namespace fused_mi
