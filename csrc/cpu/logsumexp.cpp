#include "logsumexp.h"

#include "exponential.h"

#include <cmath>

namespace fused_mi::FUSED_MI_PATH {
namespace {

typedef V<double> Doubles;

// One row of the matrices of one mixture.
struct Row {
  const double *q, *g, *k;
  int64_t own;  // the component that is left out, or one that is not there

  FUSED_MI_INLINE Row(const Logsumexp& in, int64_t item)
      : own(in.own < 0 ? in.M : in.own + item % in.N) {
    q = in.energies + at(in, item);
    g = q + in.N * in.M;
    k = g + in.N * in.M;
  }

  // Whether the vector from component l on has the one that is left out.
  FUSED_MI_INLINE bool has_own(int64_t l) const {
    return l <= own && own < l + kLanes<double>;
  }

  FUSED_MI_INLINE void prefetch(int64_t l) const {
    __builtin_prefetch(q + l), __builtin_prefetch(g + l), __builtin_prefetch(k + l);
  }

  // Where it begins in (count, 3, N, M).
  FUSED_MI_INLINE static int64_t at(const Logsumexp& in, int64_t item) {
    return (item / in.N * 3 * in.N + item % in.N) * in.M;
  }
};

// Where a number of the row stands in (count, 4, N), the others N apart.
FUSED_MI_INLINE int64_t state_at(const Logsumexp& in, int64_t item) {
  return item / in.N * 4 * in.N + item % in.N;
}

// Energies of neighbouring components, and their log-density, -inf where there is none.
template <class Lanes>
struct Pairs {
  Doubles q, g, k, density;

  FUSED_MI_INLINE Pairs(const Row& row, int64_t l, Lanes lanes)
      : q(load<double>(row.q + l, lanes)),
        g(load<double>(row.g + l, lanes)),
        k(load<double>(row.k + l, lanes)) {
    const Doubles none = all<double>(-INFINITY);
    density = inside<double>(k - q - g, none, lanes);
    if (row.has_own(l)) density[row.own - l] = -INFINITY;
  }
};

FUSED_MI_INLINE double sum_of_lanes(Doubles value) {
  double sum = 0;
  for (int i = 0; i < kLanes<double>; ++i) sum += value[i];
  return sum;
}

// Sums over components of exp(density - shift), and of q, g and k times that.
struct Sums {
  Doubles weights{}, q{}, g{}, k{};

  FUSED_MI_INLINE void scale(double factor) {
    weights *= factor, q *= factor, g *= factor, k *= factor;
  }

  template <class Lanes>
  FUSED_MI_INLINE void include(const Pairs<Lanes>& pairs, double shift) {
    const Doubles weight = exponential(pairs.density - shift), zero{};
    // 0 * inf: a component that is never chosen adds nothing.
    const Bits<double> never = weight == 0;
    weights += weight;
    q += never ? zero : weight * pairs.q;
    g += never ? zero : weight * pairs.g;
    k += never ? zero : weight * pairs.k;
  }
};

// Equal responsibilities, where every density is 0.
void equal_means(const Logsumexp& in, const Row& row, double* state) {
  double q = 0, g = 0, k = 0, partners = static_cast<double>(in.partners());
  for (int64_t l = 0; l < in.M; ++l) {
    if (l == row.own) continue;
    q += row.q[l], g += row.g[l], k += row.k[l];
  }
  state[0] = -INFINITY;
  state[in.N] = q / partners, state[2 * in.N] = g / partners, state[3 * in.N] = k / partners;
}

void state_of_rows(const LogsumexpForward& call, int64_t begin, int64_t end) {
  constexpr int64_t kBlock = 512;  // is read from memory once, then from the first cache
  const Logsumexp& in = call.in;
  for (int64_t item = begin; item < end; ++item) {
    const Row row(in, item);
    double most = -INFINITY, shift = 0;
    Sums sums;
    for (int64_t start = 0; start < in.M; start += kBlock) {
      const int width = static_cast<int>(kBlock < in.M - start ? kBlock : in.M - start);
      Doubles largest = all<double>(most);
      over_vectors<double>(width, [&](int f, auto lanes) __attribute__((always_inline)) {
        Doubles density = Pairs(row, start + f, lanes).density;
        largest = density > largest ? density : largest;  // NaN is not: it reaches the sums
      });
      double found = most;
      for (int i = 0; i < kLanes<double>; ++i) found = largest[i] > found ? largest[i] : found;
      if (found > most) sums.scale(std::exp(most - found));
      most = found;
      shift = std::isinf(most) ? 0 : most;
      over_vectors<double>(width, [&](int f, auto lanes) __attribute__((always_inline)) {
        const Pairs pairs(row, start + f, lanes);
        row.prefetch(start + f + kBlock);  // on its way while this block is computed
        sums.include(pairs, shift);
      });
    }
    double* state = call.state + state_at(in, item);
    const double weights = sum_of_lanes(sums.weights);
    if (weights == 0) {
      equal_means(in, row, state);
      continue;
    }
    state[0] = shift + std::log(weights);
    state[in.N] = sum_of_lanes(sums.q) / weights;
    state[2 * in.N] = sum_of_lanes(sums.g) / weights;
    state[3 * in.N] = sum_of_lanes(sums.k) / weights;
  }
}

void gradient_of_rows(const LogsumexpBackward& call, int64_t begin, int64_t end) {
  constexpr int kAhead = 512;  // of a matrix, is on its way
  const Logsumexp& in = call.in;
  const int64_t matrix = in.N * in.M;
  const int width = static_cast<int>(in.M);
  const double of_sample = 1 / static_cast<double>(in.N);
  const double equal = 1 / static_cast<double>(in.partners());
  for (int64_t item = begin; item < end; ++item) {
    const Row row(in, item);
    const double *u = call.upstream + item / in.N * 5, *state = call.state + state_at(in, item);
    const double total = u[0], of_q = u[1], of_g = u[2], assignment = u[3], of_k = -u[4];
    const double log_sum = state[0], q = state[in.N], g = state[2 * in.N], k = state[3 * in.N];
    const bool hopeless = log_sum == -INFINITY;  // responsibilities are equal, and constant
    double* to = call.gradient + Row::at(in, item);
    over_vectors<double>(width, [&](int l, auto lanes) __attribute__((always_inline)) {
      const Pairs pairs(row, l, lanes);
      row.prefetch(l + kAhead);
      const Doubles zero{};
      Doubles r = exponential(pairs.density - log_sum), of_density = zero;
      if (hopeless) {
        r = all<double>(equal);
        if (row.has_own(l)) r[row.own - l] = 0;
      } else {
        of_density = (of_q - assignment) * (pairs.q - q) + (of_g - assignment) * (pairs.g - g) +
            (of_k + assignment) * (pairs.k - k) - total;
      }
      const Doubles weight = r * of_sample;
      // Select: energies and upstream gradients may be infinite where nothing is chosen.
      const Bits<double> never = r == 0;
      auto write = [&](double* at, Doubles value) __attribute__((always_inline)) {
        store(at, never ? zero : weight * value, lanes, call.stream);
      };
      write(to + l, of_q - of_density);
      write(to + matrix + l, of_g - of_density);
      write(to + 2 * matrix + l, of_k + of_density);
    });
  }
  if (call.stream) finish_writes();
}

}  // namespace

extern const LogsumexpKernels logsumexp_kernels = {state_of_rows, gradient_of_rows};

}  // namespace fused_mi::FUSED_MI_PATH
