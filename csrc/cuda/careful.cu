#include "careful.h"

#include "launch.h"
#include "pairs_launch.h"

namespace fused_mi {
namespace {

// As a rule they look at a flag alone: blocks that end at once take time too.
int64_t blocks_of(int64_t items) {
  return std::min<int64_t>(ceil_div(items, kRows), 4 * multiprocessors());
}

}  // namespace

const char* launch_careful_energies(const Pairs& in, void* stream) {
  const int64_t blocks = blocks_of(static_cast<int64_t>(in.N) * in.M);
  return launch(careful_energies_kernel, blocks, kRows, 0, stream, in);
}

const char* launch_careful_samples(const Pairs& in, void* stream) {
  return launch(careful_samples_kernel, blocks_of(in.N * in.S * in.E), kRows, 0, stream, in);
}

const char* launch_careful_components(const Pairs& in, void* stream) {
  return launch(careful_components_kernel, blocks_of(in.M * in.S * in.E), kRows, 0, stream, in);
}

}  // namespace fused_mi
