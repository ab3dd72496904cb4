#include "online_forward.h"

#include "launch.h"
#include "online_tiles.h"

namespace fused_mi {

OnlinePlan plan_online(Online& in) {
  OnlinePlan plan;
  const Pairs& of = in.pairs;
  with_online_tile(of, [&](auto tile) {
    using Tile = decltype(tile);
    const int64_t tiles_n = ceil_div(of.N, Tile::N), tiles_m = ceil_div(of.M, Tile::M);
    const int64_t fill = ceil_div(4 * multiprocessors(), std::max<int64_t>(tiles_n, 1));
    const int64_t wanted = std::clamp<int64_t>(fill, 1, std::max<int64_t>(tiles_m, 1));
    in.tiles_per_split = static_cast<int>(ceil_div(tiles_m, wanted));
    in.splits = static_cast<int>(ceil_div(tiles_m, std::max(in.tiles_per_split, 1)));
    in.slots = in.splits * Tile::COLUMNS / 8;
    plan = {bytes_of_sums<Tile>(in, tiles_n * in.splits), in.slots * kNumbers * int64_t{8} * of.N};
    return static_cast<const char*>(nullptr);
  });
  return plan;
}

const char* launch_online(const Online& in, void* stream) {
  return with_online_tile(in.pairs, [&](auto tile) {
    using Tile = decltype(tile);
    const int64_t blocks = blocks_of(in, ceil_div(in.pairs.N, Tile::N) * in.splits);
    return launch(online_kernel<Tile>, blocks, Tile::THREADS, sizeof(typename Tile::Shared), stream, in);
  });
}

const char* launch_careful_online(const Online& in, void* stream) {
  const int64_t blocks = std::min<int64_t>(in.pairs.N, 4 * multiprocessors());
  return launch(careful_online_kernel, blocks, kRows, kRows / 32 * sizeof(double), stream, in);
}

const char* launch_online_finish(const Online& in, void* stream) {
  return launch(online_finish_kernel, ceil_div(in.pairs.N, kRows), kRows, 0, stream, in);
}

}  // namespace fused_mi
