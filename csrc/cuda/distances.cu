#include "distances.h"

#include "launch.h"
#include "pairs_launch.h"

#include <type_traits>

namespace fused_mi {
namespace {

// 32 x 32 of one warp; where elements are read one by one, of two.
template <class F>
using Small = std::conditional_t<
    F::V == 4, PairsTile<F, 8, 4, 4, 8, 16, true>, PairsTile<F, 4, 4, 8, 8, 8>>;
template <class F>
using Middle = PairsTile<F, 8, 8, 8, 8, 8>;  // 64 x 64 of 64 threads
template <class F>
using Wide = PairsTile<F, 8, 8, 16, 16, 2>;  // 128 x 128 of 256 threads

// `call(tile)` with the least that has room for all rows, or the widest; those alone that are fast.
template <class Call>
const char* with_tile(const Pairs& in, const Call& call) {
  return with_format({&in.y, &in.x, &in.mu, &in.stds}, in.E, in.wide, [&](auto format) {
    using F = decltype(format);
    if constexpr (F::V == 4) {
      const int rows = std::max(in.N, in.M);
      if (rows > 64) return call(Wide<F>{});
      if (rows > 32) return call(Middle<F>{});
    }
    return call(Small<F>{});
  });
}

}  // namespace

void plan_pairs(Pairs& in, int multiprocessors) {
  constexpr int64_t most_chunks = 64;  // of a block, which adds them up in float64
  const int64_t chunks = in.S * ceil_div(in.E, kChunk);
  int64_t warps = 1;
  with_tile(in, [&](auto tile) {
    using Tile = decltype(tile);
    warps = ceil_div(in.N, Tile::N) * ceil_div(in.M, Tile::M) * Tile::THREADS / 32;
    return static_cast<const char*>(nullptr);
  });
  const int64_t fill = ceil_div(16 * multiprocessors, std::max<int64_t>(warps, 1));
  const int64_t wanted = std::clamp<int64_t>(std::max(fill, ceil_div(chunks, most_chunks)), 1, chunks);
  in.chunks = static_cast<int>(chunks);
  in.chunks_per_split = static_cast<int>(ceil_div(chunks, wanted));
  in.splits = static_cast<int>(ceil_div(chunks, in.chunks_per_split));
}

const char* launch_distances(const Pairs& in, void* stream) {
  return with_tile(in, [&](auto tile) {
    using Tile = decltype(tile);
    const int64_t tiles = ceil_div(in.N, Tile::N) * ceil_div(in.M, Tile::M);
    return launch(
        distances_kernel<Tile>, tiles * in.splits, Tile::THREADS, sizeof(typename Tile::Shared), stream, in);
  });
}

}  // namespace fused_mi
