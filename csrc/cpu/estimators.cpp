// The operators over whole losses: from embeddings to terms in one call, and back in another.
//
// A state is opaque to the caller: a header with the stabilisers of the components of each mixture,
// then of their samples; then what the backward pass needs.
#include "moments_launch.h"
#include "online_launch.h"
#include "scoring.h"

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <tuple>

namespace fused_mi {
namespace {

// The loss, its terms and the state; false: nothing but the state is known, see launch.h.
using Result = std::tuple<Tensor, Tensor, Tensor, bool>;

Result result_of(
    const Scoring& call, double total, double q, double g, double assignment, double std_log,
    const Tensor& state, bool known) {
  const ScalarType type = call.accumulation();
  Tensor loss = fresh({}, type), terms = fresh({6}, type);
  const double entropy = q + g + assignment, all[] = {total, q, g, assignment, entropy, std_log};
  const Numbers to(terms);
  for (int i = 0; i < 6; ++i) to.set(i, all[i]);
  Numbers(loss).set(0, total);
  return {loss, terms, state, known};
}

Result jensen(
    const Tensor& y, const Tensor& x, const Tensor& mu, const Tensor& stds,
    const Tensor& sample_mask, std::optional<Tensor> component_mask, int64_t pairing,
    bool own_stds, bool sum, double safety_factor, int64_t path_) {
  Scoring call(y, x, mu, stds, sample_mask, component_mask, pairing, own_stds, sum);
  const MomentsInputs& in = call.in;
  const Path path = checked(path_);
  const ScalarType type = in.wide_state() ? ScalarType::Double : ScalarType::Float;
  // With room that other backends use, see `jensen_state`.
  const int64_t size = in.wide_state() ? sizeof(double) : sizeof(float);
  const int64_t used = kHeader + in.count * 4 * in.S * in.E, room = in.count * 4 * in.S * 4;
  Tensor state = fresh({used + room / size}, type);
  std::memset(static_cast<char*>(state.mutable_data_ptr()) + used * size, 0, room);
  call.stabilise(state, safety_factor, path);
  double sums[6] = {};
  bool known = true;
  if (!call.nothing()) {
    char* moments = static_cast<char*>(state.mutable_data_ptr()) + kHeader * size;
    known = launch_moments(in, moments, sums, path, Threads{});
  }
  const double scale = call.share() / static_cast<double>(std::max<int64_t>(call.partners(), 1));
  const double q = (sums[0] + sums[3]) * scale, g = (sums[1] + sums[4]) * scale;
  const double k = (sums[2] + sums[5]) * scale;
  return result_of(call, q + g - k, q, g, 0, -k, state, known);
}

// Empty where nothing is known, see launch.h.
std::vector<Tensor> jensen_backward(
    std::optional<Tensor> of_total, std::optional<Tensor> of_terms, const Tensor& y,
    const Tensor& x, const Tensor& mu, const Tensor& stds, const Tensor& sample_mask,
    std::optional<Tensor> component_mask, int64_t pairing, bool own_stds, bool sum,
    const Tensor& state, std::vector<bool> wanted, int64_t path) {
  Scoring call(y, x, mu, stds, sample_mask, component_mask, pairing, own_stds, sum);
  if (!call.read_stabilisers(state)) return {};
  Wanted of_inputs(call, wanted);
  if (call.nothing()) {
    of_inputs.zero();
    return of_inputs.found();
  }
  MomentsBackward back;
  back.in = call.in;
  back.state = static_cast<const char*>(state.const_data_ptr()) +
      kHeader * (call.in.wide_state() ? sizeof(double) : sizeof(float));
  const double scale = call.share() / static_cast<double>(call.partners());
  const Upstream of(of_total, of_terms);
  double upstream[6];
  for (int d = 0; d < 2; ++d) {
    upstream[3 * d] = scale * (of.total + of.q);
    upstream[3 * d + 1] = scale * (of.total + of.g);
    upstream[3 * d + 2] = -scale * (of.total + of.std_log);
  }
  back.upstream = upstream;
  back.passes = of_inputs.passes, back.pass_count = of_inputs.count;
  views_of(call.in, of_inputs.gradients(), {&back.d_y, &back.d_x, &back.d_mu, &back.d_stds});
  if (!launch_gradients(back, checked(path), Threads{})) return {};
  return of_inputs.found();
}

// What a state of the log-sum-exp holds behind its header.
struct Kept {
  double *rows, *energies;  // (count, 5, N), and (count, 3, N, M) unless they were not kept

  Kept(const Scoring& call, const Tensor& state)
      : rows(static_cast<double*>(state.mutable_data_ptr()) + kHeader),
        energies(rows + call.in.count * Logsumexp::kRows * call.samples()) {}
};

// The tensors are those of the caller.
Labels labels_of(
    const Scoring& call, const std::optional<Tensor>& log_weights,
    const std::optional<Tensor>& origins, bool leave_out) {
  Labels labels;
  labels.left_out = leave_out;
  STD_TORCH_CHECK(
      call.pairing == Pairing::all || (!log_weights && !origins), "log_weights, origins: of \"all\"");
  const int64_t N = call.samples(), M = call.components();
  if (log_weights) {
    labels.log_weights = reinterpret_cast<const double*>(
        output(*log_weights, "log_weights", M, ScalarType::Double));
  }
  if (origins) labels.origins = origins_of(*origins, N, M);
  return labels;
}

Logsumexp logsumexp_of(const Scoring& call, const Labels& labels, const Kept& kept) {
  Logsumexp in;
  in.energies = kept.energies;
  in.count = call.in.count, in.N = call.samples(), in.M = call.components();
  in.own = labels.own(call.in.exclude_diagonal);
  return in;
}

Result logsumexp(
    const Tensor& y, const Tensor& x, const Tensor& mu, const Tensor& stds,
    const Tensor& sample_mask, std::optional<Tensor> component_mask, int64_t pairing,
    bool own_stds, bool sum, double safety_factor, std::optional<Tensor> log_weights,
    std::optional<Tensor> origins, bool leave_out, bool keep, int64_t path_) {
  Scoring call(y, x, mu, stds, sample_mask, component_mask, pairing, own_stds, sum);
  MomentsInputs& in = call.in;
  const Path path = checked(path_);
  const int64_t count = in.count, N = call.samples(), M = call.components();
  const int64_t pairs = keep ? count * 3 * N * M : 0;
  Tensor state = fresh({kHeader + count * Logsumexp::kRows * N + pairs}, ScalarType::Double);
  const Kept kept(call, state);
  const Labels labels = labels_of(call, log_weights, origins, leave_out);
  call.stabilise(state, safety_factor, path);
  prefer_huge_pages(reinterpret_cast<char*>(kept.energies), pairs * 8);
  bool known = true;
  double terms[10] = {};
  const LogsumexpForward of_rows{logsumexp_of(call, labels, kept), kept.rows};
  const bool empty = in.S * in.E == 0;
  if (keep) {
    if (empty) std::fill_n(kept.energies, pairs, 0.0);
    known = empty || launch_pairs(in, kept.energies, path, Threads{});
    if (known && labels.log_weights) put_weights(labels.log_weights, of_rows.in, kept.energies);
    if (known) launch_logsumexp(of_rows, path, Threads{});
  } else if (!empty) {
    known = launch_online(in, labels, kept.rows, path, Threads{});
  }
  if (known && !(empty && !keep)) terms_of(of_rows, terms);
  double means[5] = {};
  const double scale = call.share() * static_cast<double>(N);
  for (int64_t d = 0; d < count; ++d) {
    for (int j = 0; j < 5; ++j) means[j] += terms[5 * d + j] * scale;
  }
  // Of the weights, not of equal ones.
  if (labels.log_weights != nullptr) means[3] += means[4];
  return result_of(call, means[0], means[1], means[2], means[3], means[4], state, known);
}

// Gradients add up in the type of the computation, then become those of the inputs.
std::vector<Tensor> online_backward(
    const Scoring& call, const Labels& labels, Wanted& of_inputs, const double* state,
    const OfTerms& upstream, Path path) {
  for (bool wide : {false, true}) {
    if (call.wide && !wide) continue;
    const ScalarType type = wide ? ScalarType::Double : ScalarType::Float;
    PairsBackward back;
    back.in = call.in;
    back.in.wide = wide;
    std::array<std::optional<Tensor>, 4> sums;
    for (int i = 0; i < 4; ++i) {
      std::optional<Tensor>& to = of_inputs.tensors[i];
      if (!to || (i == 2 && of_inputs.tensors[1])) continue;  // that of mu is that of x
      sums[i] = to->scalar_type() == type ? *to : fresh({to->size(0), to->size(1), to->size(2)}, type);
    }
    views_of(
        back.in, {&sums[0], &sums[1], &sums[2], &sums[3]},
        {&back.d_y, &back.d_x, &back.d_mu, &back.d_stds});
    for (std::optional<Tensor>& t : sums) {
      if (t) torch::stable::zero_(*t);
    }
    if (labels.of_weights != nullptr) std::fill_n(labels.of_weights, call.components(), 0.0);
    if (!try_online_gradients(back, labels, state, upstream, path, Threads{})) continue;
    if (!sums[2]) sums[2] = sums[1];
    for (int i = 0; i < 4; ++i) {
      std::optional<Tensor>& to = of_inputs.tensors[i];
      if (to && to->data_ptr() != sums[i]->data_ptr()) torch::stable::copy_(*to, *sums[i]);
    }
    return of_inputs.found();
  }
  return {};
}

std::vector<Tensor> logsumexp_backward(
    std::optional<Tensor> of_total, std::optional<Tensor> of_terms,
    std::optional<Tensor> of_samples, const Tensor& y, const Tensor& x, const Tensor& mu,
    const Tensor& stds, const Tensor& sample_mask, std::optional<Tensor> component_mask,
    int64_t pairing, bool own_stds, bool sum, std::optional<Tensor> log_weights,
    std::optional<Tensor> origins, bool leave_out, const Tensor& state, std::vector<bool> wanted,
    int64_t path_) {
  Scoring call(y, x, mu, stds, sample_mask, component_mask, pairing, own_stds, sum);
  MomentsInputs& in = call.in;
  if (!call.read_stabilisers(state)) return {};
  const bool of_weights = wanted.size() > 4 && wanted[4];
  wanted.resize(4);
  Wanted of_inputs(call, wanted);
  if (of_weights) {
    of_inputs.weights = fresh({call.components()}, ScalarType::Double);
    torch::stable::zero_(*of_inputs.weights);
  }
  if (call.nothing()) {
    of_inputs.zero();
    return of_inputs.found();
  }
  const Path path = checked(path_);
  const int64_t count = in.count, N = call.samples(), M = call.components();
  const Upstream of(of_samples ? std::nullopt : of_total, of_samples ? std::nullopt : of_terms);
  const double scale = call.share();
  const double std_log = of.std_log + (log_weights ? of.assignment : 0);  // see `logsumexp`
  const double parts[] = {of.total, of.q, of.g, of.assignment, std_log};
  double shared[10];
  for (int j = 0; j < 10; ++j) shared[j] = scale * parts[j % 5];
  OfTerms upstream{shared, 1};
  if (of_samples) {
    upstream.samples = N;
    upstream.data = reinterpret_cast<const double*>(
        output(*of_samples, "of_samples", count * Logsumexp::kTerms * N, ScalarType::Double));
  }
  Labels labels = labels_of(call, log_weights, origins, leave_out);
  if (of_weights) {
    labels.of_weights = static_cast<double*>(of_inputs.weights->mutable_data_ptr());
  }
  const Kept kept(call, state);
  const bool keeps = state.numel() > kHeader + count * Logsumexp::kRows * N;
  if (!keeps) return online_backward(call, labels, of_inputs, kept.rows, upstream, path);
  Tensor of_energies = fresh({count, 3, N, M}, ScalarType::Double);
  LogsumexpBackward of_rows{logsumexp_of(call, labels, kept)};
  of_rows.state = kept.rows, of_rows.upstream = upstream;
  of_rows.gradient = static_cast<double*>(of_energies.mutable_data_ptr());
  prefer_huge_pages(reinterpret_cast<char*>(of_rows.gradient), count * 3 * N * M * 8);
  launch_logsumexp_gradient(of_rows, path, Threads{});
  if (of_weights) add_of_weights(of_rows, labels.of_weights);

  PairsBackward back;
  back.in = in;
  back.upstream = of_rows.gradient;
  back.passes = of_inputs.passes, back.pass_count = of_inputs.count;
  views_of(in, of_inputs.gradients(), {&back.d_y, &back.d_x, &back.d_mu, &back.d_stds});
  if (!launch_pairs_gradients(back, path, Threads{})) return {};
  return of_inputs.found();
}

}  // namespace
}  // namespace fused_mi

STABLE_TORCH_LIBRARY_FRAGMENT(fused_mi_cpu, m) {
  const std::string scoring =
      "Tensor y, Tensor x, Tensor mu, Tensor stds, Tensor sample_mask, Tensor? component_mask,"
      " int pairing, bool own_stds, ";
  const std::string labels = "Tensor? log_weights, Tensor? origins, bool leave_origins_out, ";
  const std::string result = "int path) -> (Tensor, Tensor, Tensor, bool)";
  const std::string gradients = "Tensor state, bool[] wanted, int path) -> Tensor[]";
  m.def(("jensen(" + scoring + "bool sum, float safety_factor, " + result).c_str());
  m.def(("jensen_backward(Tensor? of_total, Tensor? of_terms, " + scoring + "bool sum, " + gradients)
            .c_str());
  m.def(("logsumexp_of_pairs(" + scoring + "bool sum, float safety_factor, " + labels +
         "bool keep, " + result)
            .c_str());
  m.def(("logsumexp_of_pairs_backward(Tensor? of_total, Tensor? of_terms, Tensor? of_samples, " +
         scoring + "bool sum, " + labels + gradients)
            .c_str());
}

STABLE_TORCH_LIBRARY_IMPL(fused_mi_cpu, CompositeExplicitAutograd, m) {
  m.impl("jensen", TORCH_BOX(&fused_mi::jensen));
  m.impl("jensen_backward", TORCH_BOX(&fused_mi::jensen_backward));
  m.impl("logsumexp_of_pairs", TORCH_BOX(&fused_mi::logsumexp));
  m.impl("logsumexp_of_pairs_backward", TORCH_BOX(&fused_mi::logsumexp_backward));
}
