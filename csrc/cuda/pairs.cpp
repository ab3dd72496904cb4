// Operators of the pairs and of the log-sum-exp over their energies.
#include "operators.h"

#include "logsumexp_launch.h"
#include "pairs_launch.h"

#include <initializer_list>

namespace fused_mi {
namespace {

const uint8_t* flags_of(const Tensor& t, const char* name, int64_t rows, int64_t S) {
  return static_cast<const uint8_t*>(memory_of(t, name, rows * S, ScalarType::Bool));
}

// The upstream gradients of q.
void set_upstream(Pairs& in, const Tensor& t) {
  in.upstream = numbers_of(t, "upstream", static_cast<int64_t>(in.N) * in.M);
  STD_TORCH_CHECK(in.upstream.wide == in.wide, "upstream: expected in the type of the arithmetic");
  in.upstream_row = in.M;
}

const double* doubles_of(const Tensor& t, const char* name, int64_t count) {
  return static_cast<const double*>(memory_of(t, name, count, ScalarType::Double));
}

int* irregular_of(const Tensor& t) {
  return static_cast<int*>(memory_of(t, "irregular", 1, ScalarType::Int));
}

// The samples from `sample_start` and the components from `component_start` on, as many as have flags.
Pairs pairs_of(
    const Tensor& y, const Tensor& x, const std::optional<Tensor>& mu, const Tensor& stds,
    const Tensor& sample_active, const Tensor& component_active, const Tensor& eps,
    int64_t sample_start, int64_t component_start, const Tensor& irregular, const Tensor& shift) {
  STD_TORCH_CHECK(y.dim() == 3, "y: expected (rows, S, E)");
  Pairs in;
  in.S = y.size(1), in.E = y.size(2);
  in.y = view_of(y, "y", in.S, in.E);
  in.x = view_of(x, "x", in.S, in.E);
  in.mu = view_of(mu, "mu", in.S, in.E);
  in.stds = view_of(stds, "stds", in.S, in.E);
  for (const View* v : {&in.y, &in.x, &in.mu, &in.stds}) in.wide |= v->data && v->type == Type::float64;
  in.N = static_cast<int>(sample_active.size(0));
  in.M = static_cast<int>(component_active.size(0));
  in.sample_start = static_cast<int>(sample_start);
  in.component_start = static_cast<int>(component_start);
  STD_TORCH_CHECK(
      sample_start >= 0 && sample_start + in.N <= y.size(0) && component_start >= 0 &&
          component_start + in.M <= std::min(x.size(0), stds.size(0)) &&
          (!mu || component_start + in.M <= mu->size(0)),
      "pairs: no such rows");
  in.sample_active = flags_of(sample_active, "sample_active", in.N, in.S);
  in.component_active = flags_of(component_active, "component_active", in.M, in.S);
  in.eps = numbers_of(eps, "eps", 1);
  in.irregular = irregular_of(irregular);
  in.shift = memory_of(shift, "shift", in.S * in.E, in.wide ? ScalarType::Double : ScalarType::Float);
  return in;
}

}  // namespace

void log_determinants(
    const Tensor& stds, const Tensor& active, const Tensor& eps, int64_t start, bool wide,
    const Tensor& irregular, const Tensor& logs) {
  STD_TORCH_CHECK(stds.dim() == 3, "stds: expected (rows, S, E)");
  LogDeterminants in;
  in.S = stds.size(1), in.E = stds.size(2);
  in.stds = view_of(stds, "stds", in.S, in.E);
  in.rows = static_cast<int>(active.size(0));
  in.start = static_cast<int>(start);
  STD_TORCH_CHECK(start >= 0 && start + in.rows <= stds.size(0), "stds: no such rows");
  in.active = flags_of(active, "active", in.rows, in.S);
  in.eps = numbers_of(eps, "eps", 1);
  in.irregular = irregular_of(irregular);
  in.logs = const_cast<double*>(doubles_of(logs, "logs", in.rows * in.S));
  const Device device(stds);
  check(launch_log_determinants(in, wide, device.stream()));
}

void distances(
    const Tensor& y, const Tensor& x, std::optional<Tensor> mu, const Tensor& stds,
    const Tensor& sample_active, const Tensor& component_active, const Tensor& eps,
    int64_t sample_start, int64_t component_start, const Tensor& irregular, const Tensor& shift,
    const Tensor& q) {
  Pairs in = pairs_of(
      y, x, mu, stds, sample_active, component_active, eps, sample_start, component_start, irregular,
      shift);
  in.q = const_cast<double*>(doubles_of(q, "q", static_cast<int64_t>(in.N) * in.M));
  const Device device(y);
  plan_pairs(in, multiprocessors());
  const Tensor parts = scratch(y, in.splits * in.N * in.M * 8);
  in.parts = static_cast<double*>(data_of(parts));
  for (auto* launch_one : {launch_shift, launch_distances, launch_add_splits, launch_careful_energies}) {
    check(launch_one(in, device.stream()));
  }
}

void samples_gradient(
    const Tensor& y, const Tensor& x, std::optional<Tensor> mu, const Tensor& stds,
    const Tensor& sample_active, const Tensor& component_active, const Tensor& eps,
    int64_t sample_start, int64_t component_start, const Tensor& irregular, const Tensor& shift,
    const Tensor& upstream, const Tensor& d_y) {
  Pairs in = pairs_of(
      y, x, mu, stds, sample_active, component_active, eps, sample_start, component_start, irregular,
      shift);
  set_upstream(in, upstream);
  STD_TORCH_CHECK(d_y.is_contiguous() && d_y.size(0) >= sample_start + in.N, "d_y: no such rows");
  in.d_y = view_of(d_y, "d_y", in.S, in.E);
  const Device device(y);
  for (auto* launch_one : {launch_shift, launch_samples_gradient, launch_careful_samples}) {
    check(launch_one(in, device.stream()));
  }
}

void components_gradient(
    const Tensor& y, const Tensor& x, std::optional<Tensor> mu, const Tensor& stds,
    const Tensor& sample_active, const Tensor& component_active, const Tensor& eps,
    int64_t sample_start, int64_t component_start, const Tensor& irregular, const Tensor& shift,
    std::optional<Tensor> upstream, std::optional<Tensor> of_logs, std::optional<Tensor> own_eps,
    std::optional<Tensor> own_active, std::optional<Tensor> of_own, std::optional<Tensor> d_x,
    std::optional<Tensor> d_mu, std::optional<Tensor> d_stds) {
  Pairs in = pairs_of(
      y, x, mu, stds, sample_active, component_active, eps, sample_start, component_start, irregular,
      shift);
  in.components = upstream.has_value();
  if (upstream) set_upstream(in, *upstream);
  if (of_logs) in.of_logs = doubles_of(*of_logs, "of_logs", in.M * in.S);
  if (own_eps) {
    STD_TORCH_CHECK(own_active && of_own, "own_active, of_own: expected where there is own_eps");
    in.own_eps = numbers_of(*own_eps, "own_eps", 1);
    in.own_active = flags_of(*own_active, "own_active", in.M, in.S);
    in.of_own = doubles_of(*of_own, "of_own", in.M * in.S);
  }
  const std::optional<Tensor>* gradients[] = {&d_x, &d_mu, &d_stds};
  View* views[] = {&in.d_x, &in.d_mu, &in.d_stds};
  for (int k = 0; k < 3; ++k) {
    const std::optional<Tensor>& t = *gradients[k];
    STD_TORCH_CHECK(
        !t || (t->is_contiguous() && t->size(0) >= component_start + in.M), "gradients: no such rows");
    *views[k] = view_of(t, "gradients", in.S, in.E);
  }
  const Device device(y);
  if (in.components) check(launch_shift(in, device.stream()));
  check(launch_components_gradient(in, device.stream()));
  check(launch_careful_components(in, device.stream()));
}

namespace {

Logsumexp logsumexp_of(
    const Tensor& energies, const Tensor& rows, std::optional<int64_t> own,
    const std::optional<Tensor>& origins, bool left_out) {
  STD_TORCH_CHECK(energies.dim() == 4 && energies.size(1) == 3, "energies: expected (D, 3, N, M)");
  Logsumexp in;
  in.D = static_cast<int>(energies.size(0)), in.N = static_cast<int>(energies.size(2));
  in.M = static_cast<int>(energies.size(3));
  in.energies = doubles_of(energies, "energies", energies.numel());
  in.rows = const_cast<double*>(doubles_of(rows, "rows", static_cast<int64_t>(in.D) * 5 * in.N));
  in.own = own.value_or(0);
  if (origins) {
    in.origins = static_cast<const int64_t*>(memory_of(*origins, "origins", in.N, ScalarType::Long));
  }
  in.left_out = left_out;
  return in;
}

}  // namespace

void logsumexp(
    const Tensor& energies, std::optional<int64_t> own, std::optional<Tensor> origins, bool left_out,
    const Tensor& rows) {
  const Logsumexp in = logsumexp_of(energies, rows, own, origins, left_out);
  const Device device(energies);
  check(launch_logsumexp(in, device.stream()));
}

void logsumexp_backward(
    const Tensor& upstream, const Tensor& energies, const Tensor& rows, std::optional<int64_t> own,
    std::optional<Tensor> origins, bool left_out, const Tensor& gradient) {
  Logsumexp in = logsumexp_of(energies, rows, own, origins, left_out);
  in.each = upstream.numel() != static_cast<int64_t>(in.D) * 5;
  in.upstream = doubles_of(upstream, "upstream", static_cast<int64_t>(in.D) * 5 * (in.each ? in.N : 1));
  in.gradient = numbers_of(gradient, "gradient", energies.numel());
  const Device device(energies);
  check(launch_logsumexp_gradient(in, device.stream()));
}

}  // namespace fused_mi
