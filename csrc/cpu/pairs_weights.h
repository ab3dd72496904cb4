// What the pairs of a mixture weigh at a position: upstream gradients, by groups of components.
#pragma once

#include "pairs.h"
#include "pairs_panels.h"

namespace fused_mi::FUSED_MI_PATH {
namespace {

constexpr int64_t kBlock = PairsBackward::kWeighed;

// While it lives, results that are denormal become 0. Most responsibilities are far below any that
// counts, and arithmetic on denormal numbers is so slow that the whole pass took ten times as long.
class FlushToZero {
#if defined(__x86_64__)
 public:
  FlushToZero() : before(_mm_getcsr()) {
    _mm_setcsr(before | 0x8000u);
  }
  FlushToZero(const FlushToZero&) = delete;
  ~FlushToZero() {
    _mm_setcsr(before);
  }

 private:
  unsigned before;
#else
 public:
  FlushToZero() {}
#endif
};

// Samples that meet one group of components.
struct Partners {
  int all = 0, some = 0;  // with all of the group, and with some of it
};

// It stays while the rows that contribute do.
template <class A>
struct Weights {
  Lists lists;
  int64_t position = -1;  // to which `lists` belong
  bool ready = false;
  Partners* partners;  // (groups,)
  int32_t* rows;       // (groups, N) places of samples: first `all`, at the end `some`
  A* of_q;             // (groups, N, kM)
  A* of_g;             // (M,) sums of upstream gradients over the samples
  A* of_k;             // (N,) and over the components

  Weights(Arena& arena, int64_t N, int64_t M) : lists(arena, N, M) {
    const int64_t groups = ceil_div(M, kM);
    partners = arena.take<Partners>(groups);
    rows = arena.take<int32_t>(groups * N);
    of_q = arena.take<A>(groups * N * kM);
    of_g = arena.take<A>(M);
    of_k = arena.take<A>(N);
  }
};

// Sample n weighs `of_q` with components `first` to `first + width`, kBlock numbers, 0 behind the last:
// it is appended to the groups in which it weighs anything.
template <class A>
FUSED_MI_INLINE void append(
    const Weights<A>& w, int64_t N, int n, int64_t first, int width, const A* of_q) {
  for (int m = 0; m < width; m += kM) {
    const int columns = width - m < kM ? width - m : kM;
    int zeros = 0;
    for (int j = 0; j < columns; ++j) zeros += of_q[m + j] == 0;
    if (zeros == columns) continue;
    const int64_t group = (first + m) / kM;
    Partners& partners = w.partners[group];
    const int64_t place = group * N + (zeros == 0 ? partners.all++ : N - ++partners.some);
    w.rows[place] = n;
    std::memcpy(w.of_q + place * kM, of_q + m, kM * sizeof(A));
  }
}

// Components `first` to `first` + kBlock of the list.
template <class A>
void weigh_components(const PairsBackward& call, int64_t d, Weights<A>& w, int64_t first) {
  const int64_t N = call.N, M = call.M;
  const double *of_q = call.upstream + d * 3 * N * M, *of_g = of_q + N * M;
  const Lists& lists = w.lists;
  const int64_t left = lists.component_count - first;
  const int width = static_cast<int>(left < kBlock ? left : kBlock);
  const int32_t* components = lists.components + first;
  double sums[kBlock] = {};
  A weights[kBlock] = {};
  for (int m = 0; m < width; m += kM) w.partners[(first + m) / kM] = Partners();
  for (int n = 0; n < lists.sample_count; ++n) {
    const double *from = of_q + lists.samples[n] * M, *from_g = of_g + lists.samples[n] * M;
    for (int l = 0; l < width; ++l) weights[l] = static_cast<A>(from[components[l]]);
    append(w, N, n, first, width, weights);
    for (int l = 0; l < width; ++l) sums[l] += from_g[components[l]];
  }
  for (int l = 0; l < width; ++l) w.of_g[first + l] = static_cast<A>(sums[l]);
}

// Samples `first` to `first` + kBlock of the list.
template <class A>
void weigh_samples(const PairsBackward& call, int64_t d, Weights<A>& w, int64_t first) {
  const double* of_k = call.upstream + (d * 3 + 2) * call.N * call.M;
  const Lists& lists = w.lists;
  for (int64_t n = first; n < first + kBlock && n < lists.sample_count; ++n) {
    const double* from = of_k + lists.samples[n] * call.M;
    double sum = 0;
    for (int l = 0; l < lists.component_count; ++l) sum += from[lists.components[l]];
    w.of_k[n] = static_cast<A>(sum);
  }
}

template <class A>
void weigh_item(const PairsBackward& call, int64_t d, Weights<A>& w, int64_t item) {
  const FlushToZero flush;
  const int64_t of_components = ceil_div(call.M, kBlock);
  if (item < of_components) {
    if (item * kBlock < w.lists.component_count) weigh_components(call, d, w, item * kBlock);
  } else if (call.in.own_stds) {
    weigh_samples(call, d, w, (item - of_components) * kBlock);
  }
}

}  // namespace
}  // namespace fused_mi::FUSED_MI_PATH
