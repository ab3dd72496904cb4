// The kernels against naive loops, without torch: for sanitizers, see sanitize.sh.
//
// Every buffer has exactly the size that it needs, so that AddressSanitizer sees a step beyond it.
#include "../cpu/moments_launch.h"
#include "logsumexp_case.h"
#include "online_case.h"
#include "pairs_case.h"
#include "parts_case.h"

#include <random>

namespace {

void run(const Case& c, Path path) {
  std::mt19937_64 generator(1);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform(0.5, 1.5);
  Array y(c.batch, c.S, c.E, c.type, c.padded), x = y, mu = y, stds = y;
  std::vector<uint8_t> mask(c.batch * c.S);
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t s = 0; s < c.S; ++s) {
      bool active = s != 1 && (s == 0 || uniform(generator) < 1.1);
      mask[b * c.S + s] = active;
      for (int64_t e = 0; active && e < c.E; ++e) {  // NaN elsewhere
        double clean = normal(generator) + c.offset, sigma = uniform(generator);
        x.set(b, s, e, c.scale * clean);
        mu.set(b, s, e, c.scale * 0.3 * normal(generator));
        stds.set(b, s, e, c.scale * sigma);
        y.set(b, s, e, c.scale * (clean + sigma * normal(generator)));
      }
    }
  }
  MomentsInputs in;
  in.y = y.view(), in.x = x.view(), in.mu = mu.view(), in.stds = stds.view();
  in.sample_mask = in.component_mask = {mask.data(), c.S, 1};
  in.S = c.S, in.E = c.E, in.own_stds = true;
  in.exclude_diagonal = c.exclude_diagonal;
  in.wide = c.type == Type::float64;
  int64_t half = c.batch / 2;
  Rows first{0, half}, second{half, c.batch}, every{0, c.batch};
  const double less = 1e-3 * c.scale * c.scale, more = 2 * less;  // eps
  std::vector<Mixture> mixtures;
  std::vector<Pass> passes;
  if (c.exclude_diagonal) {
    mixtures = {{every, every, less, more}};
    passes = {{every, 0, 0, true, true, true, true}};
  } else {
    mixtures = {{first, second, less, more}};
    if (c.symmetric) mixtures.push_back({second, first, more, less});
    passes = {
        {first, 0, c.symmetric ? 1 : -1, true, true, true, true},
        {second, c.symmetric ? 1 : -1, 0, true, true, true, true}};
  }
  in.mixtures = mixtures.data();
  in.count = static_cast<int64_t>(mixtures.size());

  run_pairs(in, passes, {y, x, mu, stds}, mask, c.scale, path);
  run_online(in, passes, y, c.scale, path);
  if (!c.exclude_diagonal && !c.symmetric) {
    MomentsInputs of_mixture = in;
    of_mixture.own_stds = false;
    for (bool left_out : {false, true}) {
      Given given(half, c.batch - half, left_out);
      run_online(of_mixture, passes, y, c.scale, path, &given);
    }
  }

  // One thread, then several: the same bytes.
  const int64_t size = in.wide_state() ? 8 : 4;
  std::vector<double> upstream(in.count * 3);
  for (size_t i = 0; i < upstream.size(); ++i) upstream[i] = 0.5 - static_cast<double>(i);
  std::vector<std::vector<char>> results[2];
  for (int threads : {1, 3, 8}) {
    std::vector<char> state(in.count * 4 * c.S * c.E * size), sums(in.count * 3 * 8);
    bool done = launch_moments(
        in, state.data(), reinterpret_cast<double*>(sums.data()), path, Threads{threads});
    Array d_y(c.batch, c.S, c.E, c.type, false), d_x = d_y, d_mu = d_y, d_stds = d_y;
    MomentsBackward call;
    call.in = in;
    call.state = state.data();
    call.upstream = upstream.data();
    call.passes = passes.data();
    call.pass_count = static_cast<int64_t>(passes.size());
    call.d_y = d_y.view(), call.d_x = d_x.view();
    call.d_mu = d_mu.view(), call.d_stds = d_stds.view();
    done = launch_gradients(call, path, Threads{threads}) && done;
    check("moments: done", done, true, 0, 0);
    VarianceInputs least_of{stds.view(), in.sample_mask, every, in.wide, c.S, c.E};
    std::vector<char> least(8);
    double found = launch_least(least_of, path, Threads{threads});
    std::memcpy(least.data(), &found, 8);
    auto& result = results[threads > 1];
    result = {sums, state, d_y.data, d_x.data, d_mu.data, d_stds.data, least};
    if (threads > 1 && result != results[0]) {
      std::printf("other bytes with %d threads\n", threads);
      ++failures;
    }
  }

  if (!c.exclude_diagonal) {
    const auto& r = results[0];
    run_parts(
        in, passes, y, upstream, reinterpret_cast<const double*>(r[0].data()), c.scale,
        {r[2], r[3], r[4], r[5]}, path);
  }

  // The naive double sum over pairs.
  const double* sums = reinterpret_cast<const double*>(results[0][0].data());
  double least = std::numeric_limits<double>::infinity();
  Array gradients[4] = {
      {c.batch, c.S, c.E, Type::float64, false}, {c.batch, c.S, c.E, Type::float64, false},
      {c.batch, c.S, c.E, Type::float64, false}, {c.batch, c.S, c.E, Type::float64, false}};
  for (Array& g : gradients) std::memset(g.data.data(), 0, g.data.size());
  auto add = [](Array& g, int64_t r, int64_t s, int64_t e, double value) {
    g.set(r, s, e, g.get(r, s, e) + value);
  };
  for (int64_t d = 0; d < in.count; ++d) {
    const Mixture& m = mixtures[d];
    double q = 0, g = 0, k = 0;
    const double* u = upstream.data() + d * 3;
    for (int64_t i = m.samples.start; i < m.samples.stop; ++i) {
      for (int64_t l = m.components.start; l < m.components.stop; ++l) {
        if (c.exclude_diagonal && i == l) continue;
        for (int64_t s = 0; s < c.S; ++s) {
          if (!mask[i * c.S + s] || !mask[l * c.S + s]) continue;
          for (int64_t e = 0; e < c.E; ++e) {
            double sigma_l = stds.get(l, s, e), sigma_i = stds.get(i, s, e);
            double v = sigma_l * sigma_l + m.component_eps, own = sigma_i * sigma_i + m.sample_eps;
            double distance = y.get(i, s, e) - x.get(l, s, e) - mu.get(l, s, e);
            q += distance * distance / v / 2;
            g += (std::log(v) + std::log(2 * M_PI)) / 2;
            k += (std::log(own) + std::log(2 * M_PI)) / 2;
            add(gradients[0], i, s, e, u[0] * distance / v);
            add(gradients[1], l, s, e, -u[0] * distance / v);
            add(gradients[2], l, s, e, -u[0] * distance / v);
            double of_g = u[1] - u[0] * distance * distance / v;
            add(gradients[3], l, s, e, sigma_l / v * of_g);
            add(gradients[3], i, s, e, u[2] * sigma_i / own);
          }
        }
      }
    }
    double tolerance = in.wide ? 1e-12 : 2e-6, scale = q + std::fabs(g) + std::fabs(k);
    check("q", sums[d * 3], q, scale, tolerance);
    check("g", sums[d * 3 + 1], g, scale, tolerance);
    check("k", sums[d * 3 + 2], k, scale, tolerance);
  }
  const double precision = precision_of(c.type, in.wide);
  for (int which = 0; which < 4; ++which) {
    Array ours(c.batch, c.S, c.E, c.type, false);
    ours.data = results[0][2 + which];
    double largest = 0;
    for (int64_t b = 0; b < c.batch; ++b) {
      for (int64_t s = 0; s < c.S; ++s) {
        for (int64_t e = 0; e < c.E; ++e) {
          largest = std::fmax(largest, std::fabs(gradients[which].get(b, s, e)));
        }
      }
    }
    for (int64_t b = 0; b < c.batch; ++b) {
      for (int64_t s = 0; s < c.S; ++s) {
        for (int64_t e = 0; e < c.E; ++e) {
          double expected = gradients[which].get(b, s, e), found = ours.get(b, s, e);
          check("gradient", c.scale * found, c.scale * expected, c.scale * largest, precision);
          if (!mask[b * c.S + s] && found != 0) check("zero", found, 0, 0, 0);
          if (mask[b * c.S + s]) {
            double sigma = stds.get(b, s, e);
            least = std::fmin(
                least, in.wide ? sigma * sigma
                               : static_cast<float>(sigma) * static_cast<float>(sigma));
          }
        }
      }
    }
  }
  double found;
  std::memcpy(&found, results[0][6].data(), 8);
  check("least", found, least, 0, 0);
}

// Every float16 is read as what it is: the least variance of a row of one value is its square.
void halves(Path path) {
  const int64_t E = 37;  // whole vectors, and a part of one
  uint8_t mask = 1;
  Array stds(1, 1, E, Type::float16, false);
  for (int bits = 1; bits < 0x7c00; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    for (int64_t e = 0; e < E; ++e) std::memcpy(stds.at(0, 0, e), &half, 2);
    VarianceInputs in{stds.view(), {&mask, 1, 1}, {0, 1}, false, 1, E};
    const double value = from_half(half);
    check("float16", variance_kernels(path).least(in, 0, 1), value * value, 0, 0);
  }
}

}  // namespace

int main() {
  const Case cases[] = {
      {4, 2, 1, Type::float32, false, false, false, 0},
      {6, 3, 37, Type::float32, true, false, true, 0},
      {14, 2, 130, Type::bfloat16, false, false, true, 0},
      {6, 2, 2050, Type::float32, false, false, false, 100},
      {300, 1, 5, Type::float32, true, false, true, 10},
      {9, 3, 35, Type::float32, true, true, false, 100},
      {140, 1, 9, Type::bfloat16, false, true, false, 0},
      {10, 3, 19, Type::float64, true, false, false, 1000},
      {600, 65, 2, Type::float32, false, false, false, 0},
      {6, 2, 70, Type::float16, true, false, true, 0},
      {8, 2, 41, Type::float16, false, true, false, 3},
      {10, 2, 70, Type::float32, true, false, true, 3, 0x1p-55},
      {10, 2, 70, Type::float32, false, false, false, 3, 0x1p55},
      {7, 2, 70, Type::float32, false, true, false, 3, 0x1p-55},
      {310, 1, 20, Type::float32, false, false, true, 0},  // several tiles, every row contributes
      {150, 1, 9, Type::float32, false, true, false, 5},
      {280, 1, 17, Type::bfloat16, false, false, false, 0},
  };
  const LogsumexpCase of_energies[] = {
      {1, 1, 2, 0, 1},      {2, 3, 5, -1, 3},        {1, 7, 9, 1, 1e4},
      {2, 4, 1100, -1, 5},  {1, 1408, 1024, -1, 9},
      {2, 3, 5, -1, 3, true}, {1, 7, 9, 1, 1e4, true},
      {1, 6, 9, -1, 3, false, LogsumexpCase::met}, {1, 9, 6, -1, 1e4, true, LogsumexpCase::met},
      {1, 6, 1100, -1, 3, true, LogsumexpCase::left_out}, {1, 9, 6, -1, 3, false, LogsumexpCase::left_out},
  };
  const char* names[] = {"plain", "avx2", "avx512"};
  for (Path path : {Path::plain, Path::avx2, Path::avx512}) {
    const char* name = names[static_cast<int>(path)];
    if (!supported(path)) {
      std::printf("%s: skipped, this machine lacks the instructions\n", name);
      continue;
    }
    int before = failures;
    halves(path);
    for (const Case& c : cases) run(c, path);
    for (const LogsumexpCase& c : of_energies) run_logsumexp(c, path);
    std::printf("%s: %d failures\n", name, failures - before);
  }
  return failures != 0;
}
