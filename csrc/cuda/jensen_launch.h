// How the kernels of a Jensen loss are launched: grids, and memory that the caller provides.
#pragma once

#include "formats.h"
#include "gradient.h"
#include "jensen.h"

namespace fused_mi {

// The grids of a call, from its sizes, tensors and the multiprocessors of the device alone: nothing else
// decides about the order of a sum. Sizes of the memory that `in` needs follow from them.
void plan_least(Jensen& in, int multiprocessors);
void plan_jensen(Jensen& in, int multiprocessors);
void plan_gradient(Gradient& in, int multiprocessors);

inline int64_t bytes_of_number(const Jensen& in) { return in.wide ? 8 : 4; }

struct Bytes {
  int64_t least, parts, samples, sums, merged;

  explicit Bytes(const Jensen& in);
};

// Each returns nullptr, or what is wrong.
const char* launch_prepare(const Jensen& in, void* stream);     // least variances; counts, if any
const char* launch_stabilisers(const Jensen& in, void* stream); // eps of each role into the header
const char* launch_accumulate(const Jensen& in, void* stream);
const char* launch_accumulate_alone(const Jensen& in, void* stream);
const char* launch_finish(const Jensen& in, void* stream);
const char* launch_reduce(const Jensen& in, void* stream);
const char* launch_gradient(const Gradient& in, void* stream);
const char* launch_gradient_of_pairs(const Gradient& in, void* stream);

}  // namespace fused_mi
