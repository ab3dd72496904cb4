// Operator `logsumexp_of_pairs`: from embeddings, masks and options to the loss, its terms and what the
// backward pass needs.
#include "logsumexp_call.h"
#include "operators.h"

namespace fused_mi {
namespace {

void with_energies(const LogsumexpCall& call, int64_t memory_of_parts, const Device& device) {
  const int64_t size = static_cast<int64_t>(call.of.N) * call.of.M;
  for (int d = 0; d < call.of.mixtures; ++d) {
    call.prepare(d, device);
    Pairs in = call.pairs(d);
    plan_pairs(in, multiprocessors());
    in.parts = call.memory.at<double>(memory_of_parts);
    in.q = const_cast<double*>(call.energies) + d * 3 * size;
    check(launch_distances(in, device.stream()));
    check(launch_add_splits(in, device.stream()));
    check(launch_careful_energies(in, device.stream()));
    PairLogs logs = call.pair_logs(d);
    logs.g = in.q + size, logs.k = in.q + 2 * size;
    check(launch_pair_logs(logs, device.stream()));
  }
  check(launch_logsumexp(call.logsumexp(), device.stream()));
}

Online planned(const LogsumexpCall& call, int d, OnlinePlan& plan) {
  Online in = call.online(d, 0, call.of.N, 0, call.of.M);
  plan = plan_online(in);
  in.rows = const_cast<double*>(call.rows) + static_cast<int64_t>(d) * 5 * call.of.N;
  return in;
}

void without_energies(const LogsumexpCall& call, int64_t sums, int64_t parts, const Device& device) {
  for (int d = 0; d < call.of.mixtures; ++d) {
    call.prepare(d, device);
    OnlinePlan plan;
    Online in = planned(call, d, plan);
    in.sums = call.memory.at<double>(sums), in.parts = call.memory.at<double>(parts);
    for (auto* launch_one : {launch_online, launch_careful_online, launch_online_finish}) {
      check(launch_one(in, device.stream()));
    }
  }
}

}  // namespace

void logsumexp_of_pairs(
    const Tensor& y, const Tensor& x, const Tensor& mu, const Tensor& stds, const Tensor& sample_mask,
    const Tensor& component_mask, std::vector<int64_t> mixtures, bool alone, const Tensor& header,
    std::vector<int64_t> roles, double factor, double smallest, double largest,
    std::optional<Tensor> log_weights, double offset, std::optional<int64_t> own,
    std::optional<Tensor> origins, bool left_out, const Tensor& rows, std::optional<Tensor> energies,
    double log_partners, double factor_of_terms, std::optional<Tensor> total, std::optional<Tensor> terms) {
  Jensen meeting = meeting_of(y, x, mu, stds, sample_mask, component_mask, mixtures, alone);
  set_roles(meeting, roles, stds);
  meeting.stabiliser = {factor, smallest, largest};
  const Device device(y);
  const Labels labels{log_weights, offset, own, origins, left_out};
  LogsumexpCall call(meeting, labels, header, rows, energies);
  if (meeting.roles > 0) plan_least(call.of, multiprocessors());
  const int64_t least = call.memory.add(call.of.roles * call.of.least_parts * bytes_of_number(call.of));
  int64_t sums = 0, parts = 0;
  if (energies) {
    Pairs in = call.pairs(0);
    plan_pairs(in, multiprocessors());
    parts = call.memory.add(static_cast<int64_t>(in.splits) * in.N * in.M * 8);
  } else {
    OnlinePlan plan;
    planned(call, 0, plan);
    sums = call.memory.add(plan.sums), parts = call.memory.add(plan.parts);
  }
  call.memory.allocate(y);
  call.of.least = call.memory.at(least);
  call.prepare(device);
  if (energies) {
    with_energies(call, parts, device);
  } else {
    without_energies(call, sums, parts, device);
  }
  if (!total) return;
  Scores scores;
  scores.each = total->dim() > 0;
  const int64_t columns = scores.each ? static_cast<int64_t>(call.of.mixtures) * call.of.N : 1;
  scores.total = numbers_of(*total, "total", columns);
  STD_TORCH_CHECK(terms.has_value(), "terms: expected where there is a total");
  scores.terms = numbers_of(*terms, "terms", kTerms * columns);
  scores.rows = call.rows, scores.D = call.of.mixtures, scores.N = call.of.N;
  scores.log_partners = log_partners, scores.factor = factor_of_terms, scores.weighted = call.weighted;
  check(launch_terms(scores, device.stream()));
}

}  // namespace fused_mi
