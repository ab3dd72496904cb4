// From a call of logsumexp to rows for threads, see launch.h.
#pragma once

#include "launch.h"
#include "logsumexp.h"

#include <algorithm>
#include <cmath>

namespace fused_mi {

// Writes `terms` (count, 5) from the state: the value, its parts in q and g, assignment, and in k.
inline void terms_of(const LogsumexpForward& call, double* terms) {
  const Logsumexp& in = call.in;
  const double log_partners = std::log(static_cast<double>(in.partners()));
  for (int64_t d = 0; d < in.count; ++d) {
    const double* state = call.state + d * in.kRows * in.N;
    double* sums = terms + d * 5;
    for (int j = 0; j < 5; ++j) sums[j] = 0;
    for (int64_t i = 0; i < in.N; ++i) {
      const double log_sum = state[i], q = state[in.N + i], g = state[2 * in.N + i];
      const double k = state[3 * in.N + i], of_own = state[4 * in.N + i];
      // Where nothing is near, and the origin is not either, nothing is known.
      if (log_sum != -INFINITY || of_own != INFINITY) sums[0] += log_partners - log_sum - of_own;
      sums[1] += q;
      sums[2] += g;
      // Minus the entropy of the responsibilities is their mean log: k - q - g - log_sum.
      if (log_sum != -INFINITY) sums[3] += log_partners + (k - q - g - log_sum);
      sums[4] -= k;
    }
    for (int j = 0; j < 5; ++j) sums[j] /= static_cast<double>(in.N);
  }
}

// The weights of the components (M,) in place of k.
inline void put_weights(const double* log_weights, const Logsumexp& in, double* energies) {
  for (int64_t i = 0; i < in.N; ++i) {
    std::copy_n(log_weights, in.M, energies + (2 * in.N + i) * in.M);
  }
}

// Adds their gradients to `of_weights`.
inline void add_of_weights(const LogsumexpBackward& call, double* of_weights) {
  const Logsumexp& in = call.in;
  for (int64_t i = 0; i < in.N; ++i) {
    const double* of_k = call.gradient + (2 * in.N + i) * in.M;
    for (int64_t l = 0; l < in.M; ++l) of_weights[l] += of_k[l];
  }
}

// Writes the state.
template <class Parallel>
void launch_logsumexp(const LogsumexpForward& call, Path path, Parallel&& parallel) {
  const Logsumexp& in = call.in;
  parallel(0, in.rows(), grain(3 * in.M), [&](int64_t begin, int64_t end) {
    logsumexp_kernels(path).state(call, begin, end);
  });
}

// Writes the gradient; whether past the caches is found here.
template <class Parallel>
void launch_logsumexp_gradient(LogsumexpBackward call, Path path, Parallel&& parallel) {
  const Logsumexp& in = call.in;
  const int64_t row = in.M * static_cast<int64_t>(sizeof(double));
  call.stream = 3 * in.rows() * row >= kLarge && row % kLine == 0 &&
      reinterpret_cast<uintptr_t>(call.gradient) % kLine == 0;
  parallel(0, in.rows(), grain(3 * in.M), [&](int64_t begin, int64_t end) {
    logsumexp_kernels(path).gradient(call, begin, end);
  });
}

}  // namespace fused_mi
