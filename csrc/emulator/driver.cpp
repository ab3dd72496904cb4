// Runs the kernels in the emulator, without torch:
//
//   driver [seed] [name]       the cases whose names begin so, else all; each seed is an order of threads
//   driver sites               the barriers and waits that were met, one a line
//   driver without SITE [name] with one of them left out, in four orders
//   driver plant index|align   with an output that is too short, with vectors that are not aligned
#include "jensen_case.h"
#include "model.h"
#include "online_case.h"
#include "pairs_case.h"

#include "../cuda/launch.h"
#include "../cuda/prepare.h"

#include <cstring>

namespace {

using cases::Type;

std::string chosen;

template <class Call, class... Arguments>
void run(const Call& call, const char* name, const Arguments&... arguments) {
  if (!std::string(name).rfind(chosen, 0)) call(name, arguments...);
}

void every_case() {
  // More than one tile of features, more than one split of the rows, short features, masks, lost columns.
  run(cases::jensen<float>, "halves, two tiles", 20, 1, 260, Type::float32, false, 1., 3e-6, false);
  run(cases::jensen<float>, "halves, splits", 300, 2, 4, Type::float32, false, 0.7, 3e-6, false);
  run(cases::jensen<gpu::bfloat16>, "halves, 16 bits", 12, 2, 36, Type::bfloat16, false, 0.8, 3e-6, false);
  run(cases::jensen<double>, "halves, float64", 9, 3, 5, Type::float64, false, 0.6, 1e-12, false);
  run(cases::jensen<float>, "halves, lost", 8, 1, 140, Type::float32, false, 0.9, 3e-6, true);
  run(cases::jensen<float>, "alone, two tiles", 19, 1, 132, Type::float32, true, 1., 3e-6, false);
  run(cases::jensen<float>, "alone, splits", 140, 2, 6, Type::float32, true, 0.8, 3e-6, false);
  run(cases::jensen<double>, "alone, few", 3, 2, 3, Type::float64, true, 0.6, 1e-12, false);
  // More than one tile of either role, more than one stage, an odd number of slabs, two chunks.
  run(cases::pairs<float>, "pairs, small tile", 30, 27, 2, 44, Type::float32, 0.8, 3e-6);
  run(cases::pairs<float>, "pairs, two chunks", 3, 5, 1, 1032, Type::float32, 1., 3e-6);
  run(cases::pairs<float>, "pairs, positions", 3, 5, 20, 12, Type::float32, 0.8, 3e-6);
  run(cases::pairs<float>, "pairs, middle tile", 33, 5, 1, 24, Type::float32, 0.9, 3e-6);
  run(cases::pairs<float>, "pairs, wide tile", 66, 5, 1, 40, Type::float32, 1., 3e-6);
  run(cases::pairs<gpu::bfloat16>, "pairs, 16 bits", 7, 9, 2, 72, Type::bfloat16, 0.8, 3e-6);
  run(cases::pairs<double>, "pairs, float64", 6, 5, 2, 9, Type::float64, 0.7, 1e-12);
  run(cases::pairs<float>, "pairs, one by one", 4, 3, 2, 3, Type::float32, 0.7, 3e-6);
  // More than one tile of either role, shares of the components, chunks that wait in memory, splits of a gradient.
  run(cases::online<float>, "online, few samples", 34, 140, 1, 20, Type::float32, 0.9, 3e-5);
  run(cases::online<gpu::bfloat16>, "online, wide tile", 66, 130, 1, 12, Type::bfloat16, 1., 3e-5);
  run(cases::online<float>, "online, positions", 5, 35, 6, 8, Type::float32, 0.8, 3e-5);
  run([](const char*, int N, int M) { cases::logsumexp(N, M); }, "logsumexp", 3, 300);
}

// Mistakes that the sanitizers have to find.
void plant(const std::string& what) {
  std::vector<float> stds(65), least(1);
  std::vector<uint8_t> active(4, 1);
  fused_mi::Jensen in;
  in.S = 1, in.E = 16, in.roles = 1, in.least_parts = 1;
  in.stds = {stds.data() + (what == "align"), 16, 16, 1, Type::float32};
  in.masks[0] = {active.data(), 1, 1}, in.role[0] = {0, 0, 4};
  in.least = least.data() + (what == "index");
  using namespace fused_mi;
  cases::ask(launch(prepare_kernel<Packed<float, float, 4>>, 1, kPrepare, sizeof(Met), nullptr, in));
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "0", what = argc > 2 ? argv[2] : "";
  if (mode == "plant") {
    plant(what);
  } else if (mode == "without") {
    const size_t colon = what.find(':');
    const std::string file = what.substr(0, colon);
    emulator::left_out = {file.c_str(), std::atoi(what.c_str() + colon + 1)};
    chosen = argc > 3 ? argv[3] : "";
    for (emulator::seed = 0; emulator::seed < 4; ++emulator::seed) every_case();
  } else {
    emulator::seed = static_cast<unsigned>(std::atoi(mode.c_str()));
    chosen = what;
    every_case();
  }
  if (mode == "sites") {
    for (const emulator::Site& site : emulator::sites) std::printf("%s:%d\n", site.file, site.line);
    return 0;
  }
  std::printf(cases::failed ? "FAILED\n" : "passed\n");
  return cases::failed;
}
