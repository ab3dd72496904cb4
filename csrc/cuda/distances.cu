#include "distances.h"

#include "launch.h"
#include "pairs_launch.h"

namespace fused_mi {
namespace {

template <class F>
using Small = PairsTile<F, 4, 4, 8, 8, 8>;  // 32 x 32 of 64 threads
template <class F>
using Wide = PairsTile<F, 8, 8, 16, 16, 2>;  // 128 x 128 of 256 threads

constexpr int64_t kSmall = 64;  // most rows of both roles that small tiles serve

bool small(const Pairs& in) { return std::max(in.N, in.M) <= kSmall; }

// Of wide tiles those alone that are fast: vectors, in float32.
template <class F>
constexpr bool has_wide = F::V == 4;

template <class Tile>
const char* launch_tile(const Pairs& in, void* stream) {
  const int64_t tiles = ceil_div(in.N, Tile::N) * ceil_div(in.M, Tile::M);
  return launch(
      distances_kernel<Tile>, tiles * static_cast<int64_t>(in.splits), Tile::THREADS, sizeof(typename Tile::Shared), stream, in);
}

template <class F>
int64_t tiles_of(const Pairs& in) {
  const bool wide = has_wide<F> && !small(in);
  const int64_t size = wide ? 128 : 32;
  return ceil_div(in.N, size) * ceil_div(in.M, size) * (wide ? 4 : 1);
}

}  // namespace

void plan_pairs(Pairs& in, int multiprocessors) {
  constexpr int64_t most_chunks = 64;  // of a block, which adds them up in float64
  const int64_t chunks = in.S * ceil_div(in.E, kChunk);
  int64_t tiles = 1;
  with_format({&in.y, &in.x, &in.mu, &in.stds}, in.E, in.wide, [&](auto format) {
    tiles = tiles_of<decltype(format)>(in);
    return static_cast<const char*>(nullptr);
  });
  const int64_t fill = ceil_div(8 * multiprocessors, std::max<int64_t>(tiles, 1));
  const int64_t wanted = std::clamp<int64_t>(std::max(fill, ceil_div(chunks, most_chunks)), 1, chunks);
  in.chunks = static_cast<int>(chunks);
  in.chunks_per_split = static_cast<int>(ceil_div(chunks, wanted));
  in.splits = static_cast<int>(ceil_div(chunks, in.chunks_per_split));
}

const char* launch_distances(const Pairs& in, void* stream) {
  return with_format({&in.y, &in.x, &in.mu, &in.stds}, in.E, in.wide, [&](auto format) {
    using F = decltype(format);
    if constexpr (has_wide<F>) {
      if (!small(in)) return launch_tile<Wide<F>>(in, stream);
    }
    return launch_tile<Small<F>>(in, stream);
  });
}

}  // namespace fused_mi
