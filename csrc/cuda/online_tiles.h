// Which tile serves the online log-sum-exp of a call; for launches, not for kernels.
#pragma once

#include "online_launch.h"

#include <type_traits>

namespace fused_mi {

template <class F>
using OnlineWide = PairsTile<F, 8, 8, 16, 16, 2>;  // 128 x 128 of 256 threads
template <class F>
using OnlineMiddle = PairsTile<F, 8, 8, 8, 8, 8>;  // 64 x 64 of 64 threads, where samples are few
template <class F>
using OnlineSmall = PairsTile<F, 4, 4, 8, 8, 8>;  // 32 x 32, where elements are read one by one

template <class Call>
const char* with_online_tile(const Pairs& in, const Call& call) {
  return with_format({&in.y, &in.x, &in.mu, &in.stds}, in.E, false, [&](auto format) -> const char* {
    using F = decltype(format);
    if constexpr (std::is_same_v<typename F::Number, float>) {
      if constexpr (F::V == 4) {
        if (in.N > 64) return call(OnlineWide<F>{});
        return call(OnlineMiddle<F>{});
      } else {
        return call(OnlineSmall<F>{});
      }
    }
    return "float64";
  });
}

template <class Tile>
int64_t bytes_of_sums(const Online& in, int64_t items) {
  return in.pairs.chunks > 1 ? blocks_of(in, items) * Tile::N * Tile::M * 8 : 0;
}

}  // namespace fused_mi
