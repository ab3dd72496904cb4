// The online log-sum-exp against the kernels that keep all energies, which naive loops check.
#pragma once

#include "../cpu/online_launch.h"
#include "arrays.h"

#include <array>
#include <optional>

namespace {

// Gradients of y, x, mu and stds.
using FourArrays = std::array<Array, 4>;

FourArrays zeros_like(const Array& t, Type type) {
  const Array zero = [&] {
    Array z(t.rows, t.S, t.E, type, false);
    std::memset(z.data.data(), 0, z.data.size());
    return z;
  }();
  return {zero, zero, zero, zero};
}

void write_to(PairsBackward& call, FourArrays& gradients) {
  call.d_y = gradients[0].view(), call.d_x = gradients[1].view();
  call.d_mu = gradients[2].view(), call.d_stds = gradients[3].view();
}

// Weights and origins as a caller has them.
struct Given {
  std::vector<double> weights, of_weights;
  std::vector<int64_t> origins;
  Labels labels;

  Given(int64_t N, int64_t M, bool left_out) : weights(M), of_weights(M), origins(N) {
    for (int64_t l = 0; l < M; ++l) weights[l] = -1 - static_cast<double>(l % 5);
    if (M > 2) weights[1] = -INFINITY;
    for (int64_t i = 0; i < N; ++i) origins[i] = (7 * i + 1) % M;
    labels = {weights.data(), origins.data(), left_out, of_weights.data()};
  }
};

void run_online(
    const MomentsInputs& in, const std::vector<Pass>& passes, const Array& y, double scale,
    Path path, Given* given = nullptr) {
  const int64_t N = in.mixtures[0].samples.count(), M = in.mixtures[0].components.count();
  const int64_t pairs = in.count * 3 * N * M;
  const Labels labels = given == nullptr ? Labels() : given->labels;
  const int64_t each = given == nullptr ? 1 : N;  // upstream gradients are of each sample
  std::vector<double> numbers(in.count * 5 * each);
  for (size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = (1 + static_cast<double>(i % 4)) / static_cast<double>(N);
  }
  const OfTerms upstream{numbers.data(), each};

  std::vector<double> energies(pairs), kept(in.count * Logsumexp::kRows * N);
  check("online: energies", launch_pairs(in, energies.data(), path, Threads{1}), true, 0, 0);
  LogsumexpForward forward;
  forward.in.energies = energies.data();
  forward.in.count = in.count, forward.in.N = N, forward.in.M = M;
  forward.in.own = labels.own(in.exclude_diagonal);
  if (given != nullptr) put_weights(labels.log_weights, forward.in, energies.data());
  forward.state = kept.data();
  launch_logsumexp(forward, path, Threads{1});
  std::vector<double> of_energies(pairs), of_weights(M);
  LogsumexpBackward of_rows{forward.in, kept.data(), upstream};
  of_rows.gradient = of_energies.data();
  launch_logsumexp_gradient(of_rows, path, Threads{1});
  if (given != nullptr) add_of_weights(of_rows, of_weights.data());
  const Type wide_type = in.wide ? Type::float64 : Type::float32;
  FourArrays expected = zeros_like(y, Type::float64);
  PairsBackward back;
  back.in = in, back.in.wide = true;  // the reference: float64 throughout
  back.upstream = of_energies.data();
  back.passes = passes.data(), back.pass_count = static_cast<int64_t>(passes.size());
  write_to(back, expected);
  check("online: reference", launch_pairs_gradients(back, path, Threads{1}), true, 0, 0);

  std::vector<char> results[2];
  for (int threads : {1, 3, 8}) {
    std::vector<double> state(kept.size());
    const bool done = launch_online(in, labels, state.data(), path, Threads{threads});
    check("online: done", done, true, 0, 0);
    std::optional<FourArrays> found;
    for (bool wide : {in.wide, true}) {
      found = zeros_like(y, wide ? Type::float64 : wide_type);
      PairsBackward call;
      call.in = in, call.in.wide = wide;
      write_to(call, *found);
      if (given != nullptr) std::fill(given->of_weights.begin(), given->of_weights.end(), 0);
      const Threads parallel{threads};
      if (try_online_gradients(call, labels, state.data(), upstream, path, parallel)) break;
      if (wide) check("online: gradients", false, true, 0, 0);
    }
    auto& result = results[threads > 1];
    result.assign(
        reinterpret_cast<char*>(state.data()), reinterpret_cast<char*>(state.data() + state.size()));
    if (given != nullptr) {
      const char* bytes = reinterpret_cast<const char*>(labels.of_weights);
      result.insert(result.end(), bytes, bytes + M * sizeof(double));
    }
    for (const Array& g : *found) result.insert(result.end(), g.data.begin(), g.data.end());
    if (threads > 1) {
      if (result != results[0]) {
        std::printf("online: other bytes with %d threads\n", threads);
        ++failures;
      }
      continue;
    }
    for (size_t i = 0; i < state.size(); ++i) {
      check("online: state", state[i], kept[i], std::fabs(kept[i]), in.wide ? 1e-12 : 4e-6);
    }
    for (int64_t l = 0; given != nullptr && l < M; ++l) {
      check("online: weight", labels.of_weights[l], of_weights[l], 1, in.wide ? 1e-10 : 1e-4);
    }
    for (int which = 0; which < 4; ++which) {
      double largest = 0;
      auto each = [&](auto&& body) {
        for (int64_t i = 0; i < y.rows * y.S * y.E; ++i) {
          const int64_t b = i / (y.S * y.E), s = i / y.E % y.S, e = i % y.E;
          body((*found)[which].get(b, s, e), expected[which].get(b, s, e));
        }
      };
      each([&](double, double want) { largest = std::fmax(largest, std::fabs(want)); });
      each([&](double got, double want) {
        check(
            "online: gradient", scale * got, scale * want, scale * largest, in.wide ? 1e-9 : 1e-3);
      });
    }
  }
}

}  // namespace
