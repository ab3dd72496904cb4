// How the kernels of the pairs are launched.
#pragma once

#include "device.h"
#include "formats.h"
#include "pairs.h"

#include <algorithm>

namespace fused_mi {

// Chunks, and how many blocks share those of a tile: sizes of the memory that a call needs.
void plan_pairs(Pairs& in, int multiprocessors);
// The same of blocks that share the components of a tile of the samples' gradient, where they may.
void plan_samples_gradient(Pairs& in, int multiprocessors);

// Each returns nullptr, or what is wrong.
const char* launch_shift(const Pairs& in, void* stream);
const char* launch_log_determinants(const LogDeterminants& in, bool wide, void* stream);
const char* launch_pair_logs(const PairLogs& in, void* stream);
const char* launch_distances(const Pairs& in, void* stream);
const char* launch_add_splits(const Pairs& in, void* stream);
const char* launch_samples_gradient(const Pairs& in, void* stream);
const char* launch_components_gradient(const Pairs& in, void* stream);
// Where something was out of range, the same anew.
const char* launch_careful_energies(const Pairs& in, void* stream);
const char* launch_careful_samples(const Pairs& in, void* stream);
const char* launch_careful_components(const Pairs& in, void* stream);

}  // namespace fused_mi
