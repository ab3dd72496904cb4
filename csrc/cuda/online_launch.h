// How the kernels of the online log-sum-exp are launched.
#pragma once

#include "device.h"
#include "formats.h"
#include "online.h"

#include <algorithm>

namespace fused_mi {

// Blocks that share the items of a launch: where each has memory for a tile, no more than are resident.
inline int64_t blocks_of(const Online& in, int64_t items) {
  return in.pairs.chunks > 1 ? std::min<int64_t>(items, 4 * multiprocessors()) : items;
}

// How many blocks share the components of a tile of samples, and the memory that the pairs of a call need.
struct OnlinePlan {
  int64_t sums = 0, parts = 0;  // bytes
};
OnlinePlan plan_online(Online& in);       // forward
OnlinePlan plan_weigh(Online& in);

// Each returns nullptr, or what is wrong.
const char* launch_online(const Online& in, void* stream);
const char* launch_careful_online(const Online& in, void* stream);
const char* launch_online_finish(const Online& in, void* stream);
const char* launch_weigh(const Online& in, void* stream);
const char* launch_careful_weigh(const Online& in, void* stream);

}  // namespace fused_mi
