// What both directions of `logsumexp_of_pairs` share: a call, and what precedes its pairs.
#pragma once

#include "arguments.h"
#include "jensen_launch.h"
#include "logsumexp_launch.h"
#include "online_launch.h"
#include "pairs_launch.h"
#include "scoring_launch.h"

namespace fused_mi {

// Components that are left out or whose energies matter, and the weights of all.
struct Labels {
  std::optional<Tensor> log_weights;
  double offset = 0;
  std::optional<int64_t> own;  // of the first sample, the next one of the next
  std::optional<Tensor> origins;
  bool left_out = false;
};

class LogsumexpCall {
 public:
  Jensen of;  // who meets whom
  const double* energies = nullptr;  // (D, 3, N, M) where they are kept
  const double* rows = nullptr;      // (D, 5, N)
  Numbers header;                    // eps by their roles
  const int64_t* origins = nullptr;
  int64_t own = 0, partners = 0;
  bool left_out = false, weighted = false, own_stds = false;
  bool one_flag = false;  // where one mixture is out of range all are

  LogsumexpCall(
      const Jensen& meeting, const Labels& labels, const Tensor& eps, const Tensor& state,
      const std::optional<Tensor>& kept)
      : of(meeting), left_out(labels.left_out), weighted(labels.log_weights), labels_(labels) {
    const int64_t N = of.N, M = of.M, pairs = N * M, D = of.mixtures;
    header = numbers_of(eps, "header", kHeader);
    rows = static_cast<const double*>(memory_of(state, "rows", D * 5 * N, ScalarType::Double));
    if (kept) {
      energies = static_cast<const double*>(memory_of(*kept, "energies", D * 3 * pairs, ScalarType::Double));
    }
    STD_TORCH_CHECK(energies || !of.wide, "energies: expected in float64");
    if (labels.origins) {
      origins = static_cast<const int64_t*>(memory_of(*labels.origins, "origins", N, ScalarType::Long));
    }
    own = labels.own.value_or(0);
    partners = M - left_out;
    for (int d = 0; d < D; ++d) own_stds |= of.mixture[d].sample_role >= 0;
    if (weighted) {
      const Tensor& t = *labels.log_weights;
      check_device(t, "log_weights");
      STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == M, "log_weights: expected (", M, ",)");
      log_weights_ = {data_of(t), t.stride(0), 0, 0, type_of(t, "log_weights")};
    }
    const int64_t number = of.wide ? 8 : 4;
    flags_ = memory.add(D * (N + M) * of.S);
    counts_ = memory.add(D * 4 * of.S * 4);
    irregular_ = memory.add(D * 4);
    shift_ = memory.add(D * of.S * of.E * number);
    logs_ = memory.add(D * (N + M) * of.S * 8);
    weights_ = memory.add(weighted ? M * 8 : 0);
  }

  Scratch memory;  // other parts of it may be added before the first launch

  bool online() const { return !energies; }
  int* irregular(int d) const { return memory.at<int>(irregular_) + (one_flag ? 0 : d); }

  // Stabilisers if there are roles, where rows contribute, the weights of the components.
  void prepare(const Device& device) {
    of.counts = memory.at<int>(counts_);
    of.header = header;
    check(launch_prepare(of, device.stream()));
    if (of.roles > 0) check(launch_stabilisers(of, device.stream()));
    Contributing in;
    in.of = of;
    in.samples = samples(0), in.components = components(0);
    in.irregular = irregular(0);
    in.log_weights = log_weights_, in.offset = labels_.offset;
    if (online()) {
      in.halves = memory.at<Two<float>>(weights_);
    } else {
      in.weights = memory.at<double>(weights_);
    }
    check(launch_contributing(in, device.stream()));
  }

  // Logs and the shift of mixture d.
  void prepare(int d, const Device& device) const {
    const Mixture& m = of.mixture[d];
    log_determinants(components(d), eps(m.component_role), m.component_start, of.M, logs(d), irregular(d), device);
    if (m.sample_role >= 0) {
      log_determinants(
          samples(d), eps(m.sample_role), m.sample_start, of.N, logs(d) + of.M * of.S, irregular(d), device);
    }
    check(launch_shift(pairs(d), device.stream()));
  }

  Pairs pairs(int d) const {
    const Mixture& m = of.mixture[d];
    Pairs in;
    in.y = of.y, in.x = of.x, in.mu = of.mu, in.stds = of.stds;
    in.S = of.S, in.E = of.E, in.N = of.N, in.M = of.M, in.wide = of.wide;
    in.sample_start = m.sample_start, in.component_start = m.component_start;
    in.sample_active = samples(d), in.component_active = components(d);
    in.eps = eps(m.component_role);
    in.irregular = irregular(d);
    in.shift = memory.at<char>(shift_) + d * of.S * of.E * (of.wide ? 8 : 4);
    in.chunks = static_cast<int>(of.S * ceil_div(of.E, kChunk));
    return in;
  }

  PairLogs pair_logs(int d) const {
    PairLogs in;
    in.of = pairs(d);
    in.of_components = logs(d);
    if (of.mixture[d].sample_role >= 0) in.of_samples = logs(d) + of.M * of.S;
    if (weighted) in.log_weights = memory.at<double>(weights_);
    return in;
  }

  // Of a block of the pairs of mixture d.
  Online online(int d, int n0, int n1, int m0, int m1) const {
    Online in;
    in.pairs = pairs(d);
    in.pairs.N = n1 - n0, in.pairs.M = m1 - m0;
    in.pairs.sample_start += n0, in.pairs.component_start += m0;
    in.pairs.sample_active += n0 * of.S, in.pairs.component_active += m0 * of.S;
    const auto* halves = reinterpret_cast<const Two<float>*>(logs(d));
    in.of_components = halves + m0 * of.S;
    if (of.mixture[d].sample_role >= 0) in.of_samples = halves + (of.M + n0) * of.S;
    if (weighted) in.log_weights = memory.at<Two<float>>(weights_) + m0;
    if (origins) in.origins = origins + n0;
    in.own = origins ? -m0 : own + n0 - m0;
    in.left_out = left_out;
    in.samples = of.N, in.partners = partners;
    return in;
  }

  Logsumexp logsumexp() const {
    Logsumexp in;
    in.energies = energies, in.rows = const_cast<double*>(rows), in.origins = origins, in.own = own;
    in.D = of.mixtures, in.N = of.N, in.M = of.M, in.left_out = left_out;
    return in;
  }

  Numbers eps(int role) const {
    return {static_cast<char*>(header.data) + role * (header.wide ? 8 : 4), header.wide};
  }
  uint8_t* samples(int d) const { return memory.at<uint8_t>(flags_) + d * of.N * of.S; }
  uint8_t* components(int d) const {
    return memory.at<uint8_t>(flags_) + (of.mixtures * of.N + d * of.M) * of.S;
  }

 private:
  // (M, S), then (N, S)
  double* logs(int d) const { return memory.at<double>(logs_) + d * (of.N + of.M) * of.S; }

  void log_determinants(
      const uint8_t* active, const Numbers& eps, int start, int rows, double* to, int* irregular,
      const Device& device) const {
    LogDeterminants in{of.stds, active, eps, to, nullptr, irregular, of.S, of.E, start, rows};
    if (online()) in.halves = reinterpret_cast<Two<float>*>(to);
    check(launch_log_determinants(in, of.wide, device.stream()));
  }

  const Labels labels_;
  View log_weights_;
  int64_t flags_, counts_, irregular_, shift_, logs_, weights_;
};

}  // namespace fused_mi
