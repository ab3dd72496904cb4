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

// Finds who contributes where.
template <class Parallel>
std::unique_ptr<Position[]> found_positions(
    const MomentsInputs& in, Path path, Parallel&& parallel) {
  auto positions = positions_of(in);
  const Mixture& m = in.mixtures[0];
  parallel(
      0, in.S, grain(m.samples.count() + m.components.count()),
      [&](int64_t begin, int64_t end) {
        moments_kernels(path).positions(in, positions.get(), begin, end);
      });
  return positions;
}

// Lays out what the tiles share; without memory, it measures.
inline int64_t share(PairsForward& call, char* memory) {
  const PairsCut& cut = call.cut;
  const MomentsInputs& in = call.in;
  const int64_t logs = in.count * cut.units, bits = in.count * in.S * cut.components;
  const int64_t of_samples = in.own_stds ? logs * cut.samples : 0;
  const int64_t parts =
      cut.splits > 1 ? cut.splits * in.count * cut.samples * cut.components : 0;
  if (memory != nullptr) {
    call.component_logs = reinterpret_cast<double*>(memory);
    call.sample_logs = call.component_logs + logs * cut.components;
    call.parts = call.sample_logs + of_samples;
    call.component_bits = reinterpret_cast<int64_t*>(call.parts + parts);
  }
  return (logs * cut.components + of_samples + parts + bits) * 8;
}

// The energies of `call`, whose cut and positions are known. False where the range of its type is not
// enough.
template <class Parallel>
bool find_energies(PairsForward call, Path path, Parallel&& parallel) {
  const MomentsInputs& in = call.in;
  const PairsCut& cut = call.cut;
  const int64_t M = cut.components;
  Scratch<Use::call> memory(share(call, nullptr));
  share(call, memory.get());
  const PairsKernels& kernels = pairs_kernels(path);
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
             parallel, in.count * cut.samples, grain(M / 2 * (cut.splits + cut.units + in.S)),
             [&](int64_t begin, int64_t end) { return kernels.finish(call, begin, end); });
}

// In the type of `in`; false where its range is not enough.
template <class Parallel>
bool try_pairs(MomentsInputs in, double* energies, Path path, Parallel&& parallel) {
  join_positions(in);
  const auto positions = found_positions(in, path, parallel);
  PairsForward call;
  call.in = in;
  call.cut = PairsCut(
      in.mixtures[0].samples.count(), in.mixtures[0].components.count(), in.S, in.E, in.wide);
  call.positions = positions.get();
  call.energies = energies;
  return find_energies(call, path, parallel);
}

// Writes `energies` (count, 3, N, M).
template <class Parallel>
bool launch_pairs(MomentsInputs in, double* energies, Path path, Parallel&& parallel) {
  if (!in.wide && try_pairs(in, energies, path, parallel)) return true;
  in.wide = true;
  return try_pairs(in, energies, path, parallel);
}

// The gradients of `call`, whose positions are known. False where the range of its type is not enough.
template <class Parallel>
bool find_gradients(PairsBackward call, Path path, Parallel&& parallel) {
  constexpr int64_t kItems = 64, kBytes = 1 << 20, kMost = 512, kLeast = 16;
  const MomentsInputs& in = call.in;
  call.N = call.of(0).samples.count(), call.M = call.of(0).components.count();
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
  call.stream = !call.add && streams(in, gradients, buffered, call.width, call.N + call.M);
  const PairsBackwardKernels& kernels = pairs_backward_kernels(path);
  std::optional<Scratch<Use::call>> weights;
  if (in.S == 1 && call.weights == nullptr) {  // else each thread weighs the pairs of its positions
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

// In the type of `call.in`; false where its range is not enough.
template <class Parallel>
bool try_pairs_gradients(PairsBackward call, Path path, Parallel&& parallel) {
  join_positions(call.in, {&call.d_y, &call.d_x, &call.d_mu, &call.d_stds});
  const auto positions = found_positions(call.in, path, parallel);
  call.positions = positions.get();
  return find_gradients(call, path, parallel);
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
