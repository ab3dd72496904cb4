#include "online_backward.h"

#include "launch.h"
#include "online_tiles.h"

namespace fused_mi {

OnlinePlan plan_weigh(Online& in) {
  OnlinePlan plan;
  const Pairs& of = in.pairs;
  with_online_tile(of, [&](auto tile) {
    using Tile = decltype(tile);
    plan.sums = bytes_of_sums<Tile>(in, ceil_div(of.N, Tile::N) * ceil_div(of.M, Tile::M));
    return static_cast<const char*>(nullptr);
  });
  return plan;
}

const char* launch_weigh(const Online& in, void* stream) {
  return with_online_tile(in.pairs, [&](auto tile) {
    using Tile = decltype(tile);
    const int64_t blocks = blocks_of(in, ceil_div(in.pairs.N, Tile::N) * ceil_div(in.pairs.M, Tile::M));
    return launch(weigh_kernel<Tile>, blocks, Tile::THREADS, sizeof(typename Tile::Shared), stream, in);
  });
}

const char* launch_careful_weigh(const Online& in, void* stream) {
  const int64_t pairs = static_cast<int64_t>(in.pairs.N) * in.pairs.M;
  const int64_t blocks = std::min<int64_t>(ceil_div(pairs, kRows), 4 * multiprocessors());
  return launch(careful_weigh_kernel, blocks, kRows, 0, stream, in);
}

}  // namespace fused_mi
