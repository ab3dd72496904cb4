// Operator `logsumexp_of_pairs_backward`: what pairs weigh, block by block, and the gradients that follow.
#include "logsumexp_call.h"
#include "operators.h"

namespace fused_mi {
namespace {

struct Block {
  int n0, n1, m0, m1;
  int samples() const { return n1 - n0; }
  int components() const { return m1 - m0; }
};

// Where the weights of a block of pairs are.
struct WeightsOf {
  Numbers q, g, k;
  int64_t row;
};

class Backward {
 public:
  Backward(
      LogsumexpCall& call, const double* upstream, bool each, int rows, int columns, View (&gradients)[4],
      double* of_weights, const Device& device)
      : call_(call), upstream_(upstream), each_(each), rows_(std::min(rows, call.of.N)),
        columns_(std::min(columns, call.of.M)), d_y_(gradients[0]), d_x_(gradients[1]), d_mu_(gradients[2]),
        d_stds_(gradients[3]), of_weights_(of_weights), device_(device) {
    several_ = rows_ < call.of.N || columns_ < call.of.M;
    const int64_t D = several_ ? 1 : call.of.mixtures, number = call.of.wide ? 8 : 4;
    row_ = call.online() ? ceil_div(columns_, 4) * 4 : columns_;
    matrix_ = static_cast<int64_t>(rows_) * row_;
    Online online = call.online(0, 0, rows_, 0, columns_);
    Pairs pairs = online.pairs;
    plan_samples_gradient(pairs, multiprocessors());
    Scratch& memory = call.memory;
    weights_ = memory.add(D * 3 * matrix_ * number);
    of_logs_ = memory.add(static_cast<int64_t>(columns_) * call.of.S * 8);
    of_own_ = memory.add(call.of.mixtures * call.of.N * call.of.S * 8);
    sums_ = memory.add(call.online() ? plan_weigh(online).sums : 0);
    const bool shared = d_y_.data && pairs.gradient_splits > 1 && !call.of.wide;
    split_ = memory.add(shared ? pairs.gradient_splits * rows_ * call.of.S * call.of.E * 4 : 0);
  }

  void set_upstream(const double* upstream) { upstream_ = upstream; }

  // Twice: the usual way, and carefully, which ends at once where nothing was out of range.
  void run() {
    for (int d = 0; d < call_.of.mixtures; ++d) call_.prepare(d, device_);
    for (const bool careful : {false, true}) {
      careful_ = careful;
      for (int d = 0; d < call_.of.mixtures && !several_; ++d) weigh(d, whole());
      for (int d = 0; d < call_.of.mixtures; ++d) {
        for (int m0 = 0; m0 < call_.of.M; m0 += columns_) {
          for (int n0 = 0; n0 < call_.of.N; n0 += rows_) {
            const Block block{n0, std::min(n0 + rows_, call_.of.N), m0, std::min(m0 + columns_, call_.of.M)};
            if (several_) weigh(d, block);
            if (d_y_.data) samples(d, block);
            if (d_x_.data || d_mu_.data || d_stds_.data) components(d, block);
          }
        }
      }
      for (int d = 0; d < call_.of.mixtures; ++d) own_stds(d);
    }
  }

 private:
  Block whole() const { return {0, call_.of.N, 0, call_.of.M}; }
  const int* flag() const { return careful_ ? call_.irregular(0) : nullptr; }
  double* of_own(int d) const { return call_.memory.at<double>(of_own_) + d * call_.of.N * call_.of.S; }

  Online online(int d, const Block& block) const {
    return call_.online(d, block.n0, block.n1, block.m0, block.m1);
  }

  WeightsOf weights(int d) const {
    const bool wide = call_.of.wide;
    char* base = call_.memory.at<char>(weights_) + (several_ ? 0 : d * 3 * matrix_ * (wide ? 8 : 4));
    auto at = [&](int k) { return Numbers{base + k * matrix_ * (wide ? 8 : 4), wide}; };
    return {at(0), at(1), at(2), row_};
  }

  bool wants_k(int d) const {
    return of_weights_ || (d_stds_.data && call_.of.mixture[d].sample_role >= 0);
  }

  void weigh(int d, const Block& block) {
    const WeightsOf to = weights(d);
    if (call_.online()) {
      Online in = online(d, block);
      in.sums = call_.memory.at<double>(sums_);
      in.state = call_.rows + static_cast<int64_t>(d) * 5 * call_.of.N + block.n0;
      in.upstream = upstream_ + static_cast<int64_t>(d) * 5 * (each_ ? call_.of.N : 1) + (each_ ? block.n0 : 0);
      in.each = each_, in.row = to.row;
      const bool of_stds = d_stds_.data;
      in.of_q = static_cast<float*>(to.q.data);
      if (of_stds) in.of_g = static_cast<float*>(to.g.data);
      if (wants_k(d)) in.of_k = static_cast<float*>(to.k.data);
      check((careful_ ? launch_careful_weigh : launch_weigh)(in, device_.stream()));
    } else if (d == 0 && !careful_) {  // of all mixtures
      Logsumexp in = call_.logsumexp();
      in.upstream = upstream_, in.each = each_, in.gradient = to.q;
      check(launch_logsumexp_gradient(in, device_.stream()));
    }
    if (wants_k(d)) {
      SumWeights in = sums(to.k, block);
      if (of_weights_) {
        in.over_rows = true, in.add = block.n0 > 0;
        in.sums = of_weights_ + block.m0;
        check(launch_sum_weights(in, device_.stream()));
      }
      if (call_.of.mixture[d].sample_role >= 0) {
        in = sums(to.k, block);
        in.active = call_.components(d) + block.m0 * call_.of.S;
        in.S = call_.of.S, in.add = block.m0 > 0;
        in.sums = of_own(d) + block.n0 * call_.of.S;
        check(launch_sum_weights(in, device_.stream()));
      }
    }
  }

  SumWeights sums(const Numbers& weights, const Block& block) const {
    SumWeights in;
    in.weights = weights, in.row = row_;
    in.rows = block.samples(), in.columns = block.components();
    in.irregular = flag();
    return in;
  }

  void samples(int d, const Block& block) const {
    Pairs in = online(d, block).pairs;
    const WeightsOf from = weights(d);
    in.upstream = from.q, in.upstream_row = from.row;
    in.d_y = d_y_, in.add = block.m0 > 0;
    if (careful_) return check(launch_careful_samples(in, device_.stream()));
    if (!in.wide) plan_samples_gradient(in, multiprocessors());
    in.split_gradients = call_.memory.at<float>(split_);
    check(launch_samples_gradient(in, device_.stream()));
    if (in.gradient_splits == 1) return;
    AddGradients add{in.split_gradients, d_y_, in.sample_start, in.S, in.E, in.N * in.S * in.E,
                     in.gradient_splits, in.add, nullptr};
    check(launch_add_gradients(add, device_.stream()));
  }

  void components(int d, const Block& block) const {
    Pairs in = online(d, block).pairs;
    const WeightsOf from = weights(d);
    in.upstream = from.q, in.upstream_row = from.row;
    in.d_x = d_x_, in.d_mu = d_mu_, in.d_stds = d_stds_, in.add = block.n0 > 0;
    if (d_stds_.data) {  // of this block: so is the gradient that it enters
      SumWeights logs = sums(from.g, block);
      logs.over_rows = true;
      logs.active = in.sample_active, logs.S = in.S;
      logs.sums = call_.memory.at<double>(of_logs_);
      check(launch_sum_weights(logs, device_.stream()));
      in.of_logs = logs.sums;
      for (int i = 0; i < call_.of.mixtures && !several_; ++i) {
        if (together(i, d)) set_own(i, in);
      }
    }
    check((careful_ ? launch_careful_components : launch_components_gradient)(in, device_.stream()));
  }

  // Whether the samples of mixture i are the components of mixture d.
  bool together(int i, int d) const {
    return call_.of.mixture[i].sample_role >= 0 && call_.of.N == call_.of.M &&
        call_.of.mixture[i].sample_start == call_.of.mixture[d].component_start;
  }

  void set_own(int i, Pairs& in) const {
    in.own_eps = call_.eps(call_.of.mixture[i].sample_role);
    in.own_active = call_.samples(i);
    in.of_own = of_own(i);
  }

  // Of samples that are no components, or on top of what they have as components.
  void own_stds(int d) const {
    if (!d_stds_.data || call_.of.mixture[d].sample_role < 0) return;
    bool also = false;
    for (int j = 0; j < call_.of.mixtures; ++j) also |= together(d, j);
    if (also && !several_) return;
    Pairs in = online(d, whole()).pairs;
    in.component_start = in.sample_start;
    in.M = in.N, in.N = 0, in.components = false;
    in.d_stds = d_stds_, in.add = also;
    set_own(d, in);
    check((careful_ ? launch_careful_components : launch_components_gradient)(in, device_.stream()));
  }

  LogsumexpCall& call_;
  const double* upstream_;
  bool each_, several_ = false, careful_ = false;
  int rows_, columns_;
  View d_y_, d_x_, d_mu_, d_stds_;
  double* of_weights_;
  const Device& device_;
  int64_t row_, matrix_, weights_, of_logs_, of_own_, sums_, split_;
};

// Rows of a gradient that no role of a mixture has.
void zero_others(const View& to, int64_t rows, std::vector<std::pair<int64_t, int64_t>> of_roles, int64_t size,
                 const Device& device) {
  if (!to.data) return;
  const int64_t bytes = size * size_of(to.type);
  std::sort(of_roles.begin(), of_roles.end());
  of_roles.push_back({rows, rows});
  int64_t begin = 0;
  for (const auto& [start, stop] : of_roles) {
    if (start > begin) check(zero(static_cast<char*>(to.data) + begin * bytes, (start - begin) * bytes, device.stream()));
    begin = std::max(begin, stop);
  }
}

}  // namespace

void logsumexp_of_pairs_backward(
    std::optional<Tensor> of_total, std::optional<Tensor> of_terms, std::optional<Tensor> of_samples,
    const Tensor& y, const Tensor& x, const Tensor& mu, const Tensor& stds, const Tensor& sample_mask,
    const Tensor& component_mask, std::vector<int64_t> mixtures, bool alone, const Tensor& header,
    std::optional<Tensor> log_weights, double offset, std::optional<int64_t> own,
    std::optional<Tensor> origins, bool left_out, const Tensor& rows, std::optional<Tensor> energies,
    double factor_of_terms, bool each, int64_t block_rows, int64_t block_columns, std::optional<Tensor> d_y,
    std::optional<Tensor> d_x, std::optional<Tensor> d_mu, std::optional<Tensor> d_stds,
    std::optional<Tensor> d_log_weights) {
  const Jensen meeting = meeting_of(y, x, mu, stds, sample_mask, component_mask, mixtures, alone);
  const Device device(y);
  LogsumexpCall call(meeting, {log_weights, offset, own, origins, left_out}, header, rows, energies);
  call.one_flag = true;
  const int64_t D = meeting.mixtures, N = meeting.N, M = meeting.M, columns = each ? N : 1;
  const std::optional<Tensor>* given[] = {&d_y, &d_x, &d_mu, &d_stds};
  const int64_t sizes[] = {y.size(0), x.size(0), mu.size(0), stds.size(0)};
  View gradients[4];
  std::vector<std::pair<int64_t, int64_t>> samples, components;
  for (int d = 0; d < D; ++d) {
    samples.push_back({meeting.mixture[d].sample_start, meeting.mixture[d].sample_start + N});
    components.push_back({meeting.mixture[d].component_start, meeting.mixture[d].component_start + M});
  }
  for (int k = 0; k < 4; ++k) {
    const std::optional<Tensor>& t = *given[k];
    STD_TORCH_CHECK(!t || (t->is_contiguous() && t->size(0) == sizes[k]), "gradients: as the inputs, contiguous");
    gradients[k] = view_of(t, "gradients", meeting.S, meeting.E);
    auto of_role = k == 0 ? samples : components;
    if (k == 3 && call.own_stds) of_role.insert(of_role.end(), samples.begin(), samples.end());
    zero_others(gradients[k], sizes[k], of_role, meeting.S * meeting.E, device);
  }
  double* of_weights = nullptr;
  if (d_log_weights) {
    of_weights = static_cast<double*>(memory_of(*d_log_weights, "d_log_weights", M, ScalarType::Double));
  }
  STD_TORCH_CHECK(block_rows > 0 && block_columns > 0, "block_rows, block_columns: expected positive");
  const int64_t upstream = call.memory.add(D * 5 * columns * 8);
  Scores scores;
  scores.D = static_cast<int>(D), scores.N = static_cast<int>(N), scores.each = each;
  scores.factor = factor_of_terms, scores.weighted = call.weighted;
  if (of_total) scores.of_total = numbers_of(*of_total, "of_total", each ? D * N : 1);
  if (of_terms) scores.of_terms = numbers_of(*of_terms, "of_terms", kTerms * (each ? D * N : 1));
  const double* ready = nullptr;
  if (of_samples) {
    ready = static_cast<const double*>(memory_of(*of_samples, "of_samples", D * 5 * columns, ScalarType::Double));
  }
  const int most = 1 << 30;
  const bool blocks = call.online();
  Backward backward(
      call, ready, each, blocks ? static_cast<int>(std::min<int64_t>(block_rows, most)) : meeting.N,
      blocks ? static_cast<int>(std::min<int64_t>(block_columns, most)) : meeting.M, gradients, of_weights, device);
  call.memory.allocate(y);
  if (!ready) {
    scores.upstream = call.memory.at<double>(upstream);
    backward.set_upstream(scores.upstream);
    check(launch_upstream(scores, device.stream()));
  }
  call.prepare(device);
  backward.run();
}

}  // namespace fused_mi
