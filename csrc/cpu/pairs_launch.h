// From a call of the pairs to items of work for threads, see launch.h.
#pragma once

#include "launch.h"
#include "pairs.h"

#include <new>
#include <optional>

namespace fused_mi {

enum class Use { call, items };

// Aligned memory for a call, or for one range of its items; a thread keeps it for its next call,
// unless it is large: fresh memory costs page faults.
template <Use USE>
class Scratch {
 public:
  explicit Scratch(int64_t bytes) {
    constexpr int64_t kMost = 1 << 24;
    thread_local Memory kept;
    thread_local int64_t size = 0;
    if (bytes > kMost) {
      own = allocate(bytes);
      data = own.get();
      return;
    }
    if (size < bytes) {
      size = 0;
      kept.reset();
      kept = allocate(bytes);
      size = bytes;
    }
    data = kept.get();
  }

  char* get() const {
    return data;
  }

 private:
  struct Free {
    void operator()(char* memory) const {
      ::operator delete[](memory, std::align_val_t{64});
    }
  };
  using Memory = std::unique_ptr<char, Free>;

  static Memory allocate(int64_t bytes) {
    return Memory(static_cast<char*>(
        ::operator new[](static_cast<size_t>(bytes), std::align_val_t{64})));
  }

  Memory own;
  char* data;
};

// In the type of `in`; false where its range is not enough.
template <class Parallel>
bool try_pairs(MomentsInputs in, double* energies, Path path, Parallel&& parallel) {
  join_positions(in);
  const int64_t N = in.mixtures[0].samples.count(), M = in.mixtures[0].components.count();
  PairsForward call;
  call.in = in;
  call.cut = PairsCut(N, M, in.S, in.E, in.wide);
  call.energies = energies;
  const PairsCut& cut = call.cut;
  auto positions = positions_of(in);
  call.positions = positions.get();
  const int64_t logs = in.count * cut.units, of_samples = in.own_stds ? logs * N : 0;
  const int64_t bits = in.count * in.S * M;
  const int64_t parts = cut.splits > 1 ? cut.splits * in.count * N * M : 0;
  Scratch<Use::call> memory((logs * M + of_samples + bits + parts) * 8);
  call.component_logs = reinterpret_cast<double*>(memory.get());
  call.sample_logs = call.component_logs + logs * M;
  call.parts = call.sample_logs + of_samples;
  call.component_bits = reinterpret_cast<int64_t*>(call.parts + parts);

  const PairsKernels& kernels = pairs_kernels(path);
  parallel(0, in.S, grain(N + M), [&](int64_t begin, int64_t end) {
    moments_kernels(path).positions(in, call.positions, begin, end);
  });
  parallel(0, in.count * in.S, grain(M), [&](int64_t begin, int64_t end) {
    kernels.mark(call, begin, end);
  });
  const int64_t bytes = kernels.bytes(call);
  int64_t pairs_of_item = cut.tile_samples * cut.tile_components / 8;  // as cheap as one element
  bool regular = all_of(
      parallel, in.count * cut.tiles_n * cut.tiles_m * cut.splits,
      grain(pairs_of_item * cut.units_per_split * cut.width),
      [&](int64_t begin, int64_t end) {
        return kernels.distances(call, Scratch<Use::items>(bytes).get(), begin, end);
      });
  return regular &&
      all_of(
             parallel, in.count * N, grain(M / 2 * (cut.splits + cut.units + in.S)),
             [&](int64_t begin, int64_t end) { return kernels.finish(call, begin, end); });
}

// Writes `energies` (count, 3, N, M).
template <class Parallel>
bool launch_pairs(MomentsInputs in, double* energies, Path path, Parallel&& parallel) {
  if (!in.wide && try_pairs(in, energies, path, parallel)) return true;
  in.wide = true;
  return try_pairs(in, energies, path, parallel);
}

// In the type of `call.in`; false where its range is not enough.
template <class Parallel>
bool try_pairs_gradients(PairsBackward call, Path path, Parallel&& parallel) {
  constexpr int64_t kItems = 64, kBytes = 1 << 20, kMost = 512, kLeast = 16;
  join_positions(call.in, {&call.d_y, &call.d_x, &call.d_mu, &call.d_stds});
  const MomentsInputs& in = call.in;
  call.N = in.mixtures[0].samples.count();
  call.M = in.mixtures[0].components.count();
  // The rows of a block stay in a cache, and there are enough blocks.
  const int64_t rows = (1 + in.count) * (call.N + 3 * call.M) * (in.wide ? 8 : 4);
  int64_t most = kMost;
  while (most > kLeast && (most * rows > kBytes || in.S * ceil_div(in.E, most) < kItems)) {
    most /= 2;
  }
  call.blocks = ceil_div(in.E, most);
  call.width = ceil_div(ceil_div(in.E, call.blocks), kLeast) * kLeast;
  call.blocks = ceil_div(in.E, call.width);
  const View* gradients[] = {&call.d_y, &call.d_x, &call.d_mu, &call.d_stds};
  bool buffered = in.wide && in.y.type != Type::float64;
  call.stream = streams(in, gradients, buffered, call.width, call.N + call.M);
  auto positions = positions_of(in);
  call.positions = positions.get();
  parallel(0, in.S, grain(call.N + call.M), [&](int64_t begin, int64_t end) {
    moments_kernels(path).positions(in, call.positions, begin, end);
  });
  const PairsBackwardKernels& kernels = pairs_backward_kernels(path);
  std::optional<Scratch<Use::call>> weights;
  if (in.S == 1) {  // else each thread weighs the pairs of its positions
    weights.emplace(kernels.prepare(call, nullptr));
    call.weights = weights->get();
    kernels.prepare(call, call.weights);
    parallel(
        0, in.count * call.weigh_items(), grain(PairsBackward::kWeighed * (call.N + call.M) / 2),
        [&](int64_t begin, int64_t end) { kernels.weigh(call, begin, end); });
  }
  const int64_t bytes = kernels.bytes(call);
  return all_of(
      parallel, in.S * call.blocks, grain(in.count * call.N * call.M / 4 * call.width),
      [&](int64_t begin, int64_t end) {
        return kernels.gradients(call, Scratch<Use::items>(bytes).get(), begin, end);
      });
}

// Writes the gradients that `call` names; its block of features and positions are filled in here.
template <class Parallel>
bool launch_pairs_gradients(PairsBackward call, Path path, Parallel&& parallel) {
  if (!call.in.wide) {
    if (try_pairs_gradients(call, path, parallel)) return true;
    const MomentsInputs& in = call.in;
    const int64_t pairs = in.mixtures[0].samples.count() * in.mixtures[0].components.count();
    for (int64_t i = 0; i < in.count * 3 * pairs; ++i) {
      call.finite_upstream &= std::isfinite(call.upstream[i]);
    }
    if (!call.finite_upstream && try_pairs_gradients(call, path, parallel)) return true;
  }
  call.in.wide = true;
  return try_pairs_gradients(call, path, parallel);
}

}  // namespace fused_mi
