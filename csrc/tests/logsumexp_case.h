// The kernels of logsumexp against naive loops.
#pragma once

#include "../cpu/logsumexp_launch.h"
#include "arrays.h"

#include <new>
#include <random>

namespace {

struct LogsumexpCase {
  int64_t count, N, M, own;
  double spread;  // of the energies: large, and one component has all the weight
  bool each = false;                      // gradients are of each sample
  enum { none, met, left_out } origins = none;  // whether samples come from components, not `own`
};

// Every line of memory is whole, so that large gradients go past the caches.
struct Lines {
  int64_t count;
  double* data;

  explicit Lines(int64_t count)
      : count(count), data(new (std::align_val_t{64}) double[count]) {}
  ~Lines() {
    ::operator delete[](data, std::align_val_t{64});
  }
};

// One infinite energy in the first row; every density of the last one is 0.
void run_logsumexp(const LogsumexpCase& c, Path path) {
  std::mt19937_64 generator(1);
  std::normal_distribution<double> normal;
  const int64_t pairs = c.N * c.M;
  const int64_t samples_of_upstream = c.each ? c.N : 1;
  std::vector<double> energies(c.count * 3 * pairs), upstream(c.count * 5 * samples_of_upstream);
  std::vector<int64_t> origins(c.N);
  for (int64_t i = 0; i < c.N; ++i) origins[i] = (7 * i + 3) % c.M;
  for (double& e : energies) e = c.spread * normal(generator);
  for (double& u : upstream) u = normal(generator);
  if (c.M > 2) energies[1] = INFINITY;
  for (int64_t l = 0; c.N > 1 && l < c.M; ++l) energies[pairs - c.M + l] = INFINITY;
  LogsumexpForward forward;
  Logsumexp& in = forward.in;
  in.energies = energies.data();
  in.count = c.count, in.N = c.N, in.M = c.M;
  if (c.own >= 0) in.own.first = c.own;
  if (c.origins != c.none) in.own.origins = origins.data(), in.own.left_out = c.origins == c.left_out;

  // One thread, then several: the same bytes.
  std::vector<double> terms[2], states[2];
  Lines gradient(energies.size()), again(energies.size());
  for (int threads : {1, 3, 8}) {
    std::vector<double> found(c.count * 5), state(c.count * in.kRows * c.N);
    forward.state = state.data();
    launch_logsumexp(forward, path, Threads{threads});
    terms_of(forward, found.data());
    LogsumexpBackward backward{in, state.data(), {upstream.data(), samples_of_upstream}};
    backward.gradient = threads == 1 ? gradient.data : again.data;
    launch_logsumexp_gradient(backward, path, Threads{threads});
    terms[threads > 1] = found, states[threads > 1] = state;
    size_t bytes = energies.size() * sizeof(double);
    if (threads > 1 && (std::memcmp(gradient.data, again.data, bytes) != 0 ||
        std::memcmp(found.data(), terms[0].data(), found.size() * 8) != 0 ||
        states[0] != states[1])) {
      std::printf("logsumexp: other bytes with %d threads\n", threads);
      ++failures;
    }
  }

  const double partners = static_cast<double>(in.partners()), samples = static_cast<double>(c.N);
  const double equal = 1 / static_cast<double>(in.met());
  for (int64_t d = 0; d < c.count; ++d) {
    double want[5] = {}, scale = std::log(partners);
    for (int64_t i = 0; i < c.N; ++i) {
      double u[5];
      for (int j = 0; j < 5; ++j) {
        u[j] = upstream[(d * 5 + j) * samples_of_upstream + (c.each ? i : 0)];
      }
      auto meets = [&](int64_t l) {
        return c.origins == c.none ? c.own < 0 || l != i + c.own
                                   : c.origins == c.met || l != origins[i];
      };
      auto at = [&](int64_t l) { return d * 3 * pairs + i * c.M + l; };
      auto energy = [&](int j, int64_t l) { return energies[at(l) + j * pairs]; };
      auto density = [&](int64_t l) {
        return meets(l) ? energy(2, l) - energy(0, l) - energy(1, l) : -INFINITY;
      };
      double most = -INFINITY, total = 0, mean[4] = {};
      for (int64_t l = 0; l < c.M; ++l) most = std::fmax(most, density(l));
      const bool hopeless = most == -INFINITY;
      for (int64_t l = 0; !hopeless && l < c.M; ++l) total += std::exp(density(l) - most);
      std::vector<double> r(c.M);
      for (int64_t l = 0; l < c.M; ++l) {
        r[l] = hopeless ? meets(l) * equal : std::exp(density(l) - most) / total;
        if (r[l] == 0) continue;
        for (int j = 0; j < 3; ++j) mean[j] += r[l] * energy(j, l);
        mean[3] += r[l] * std::log(r[l]);
        scale += r[l] * (std::fabs(energy(1, l)) + std::fabs(energy(2, l))) / samples;
      }
      const double of_own = c.origins == c.none ? 0 : energy(0, origins[i]) + energy(1, origins[i]);
      if (!hopeless || of_own != INFINITY) {
        want[0] += std::log(partners) - (hopeless ? -INFINITY : most + std::log(total)) - of_own;
      }
      want[1] += mean[0], want[2] += mean[1], want[4] -= mean[2];
      if (!hopeless) want[3] += std::log(partners) + mean[3];
      for (int64_t l = 0; l < c.M; ++l) {
        double h = 0, found[3];
        for (int j = 0; j < 3; ++j) found[j] = gradient.data[at(l) + j * pairs];
        const double from = c.origins != c.none && l == origins[i] && !hopeless ? u[0] : 0;
        if (r[l] == 0) {
          for (int j = 0; j < 3; ++j) check("logsumexp: zero", found[j], j < 2 ? -from : 0, 0, 0);
          continue;
        }
        if (!hopeless) {
          h = u[1] * (energy(0, l) - mean[0]) + u[2] * (energy(1, l) - mean[1]) - u[0];
          h += -u[4] * (energy(2, l) - mean[2]) + u[3] * (std::log(r[l]) - mean[3]);
        }
        const double expected[] = {
            r[l] * (u[1] - h) - from, r[l] * (u[2] - h) - from, r[l] * (h - u[4])};
        for (int j = 0; j < 3; ++j) {
          double size = r[l] * (1 + c.spread * c.spread) + std::fabs(from);
          check("logsumexp: gradient", found[j], expected[j], size, 1e-11);
        }
      }
    }
    for (int j = 0; j < 5; ++j) {
      double found = terms[0][d * 5 + j], expected = want[j] / samples;
      if (std::isinf(expected) && found == expected) continue;
      check("logsumexp: term", found, expected, scale + c.spread, 1e-12);
    }
  }
}

}  // namespace
