// The operators `torch.ops.fused_mi_cpu`. With arguments.h and checks.h all that knows torch.
//
// Raw operators: they write into tensors that the caller allocates, and know no autograd. `path` is
// an instruction path, see paths.h. Those over mixtures return false where they have no result: plain
// torch is needed, see launch.h. Built against the stable ABI, for every later torch.
#include "arguments.h"
#include "logsumexp_launch.h"
#include "moments_launch.h"
#include "pages.h"

#include <torch/csrc/stable/library.h>

#include <initializer_list>
#include <limits>
#include <optional>
#include <vector>

namespace fused_mi {
namespace {

// The smallest positive active variance, or `none` where there is none, times `factor`, see `product_of`.
void variance(
    const Tensor& stds, const Tensor& mask, int64_t start, int64_t stop, double factor,
    double smallest, double none, int64_t path, const Tensor& eps) {
  STD_TORCH_CHECK(stds.dim() == 3, "stds: expected (rows, S, E)");
  VarianceInputs in;
  in.S = stds.size(1);
  in.E = stds.size(2);
  in.stds = view_of(stds, "stds", in.S, in.E);
  in.mask = mask_of(mask, "mask", in.S);
  in.rows = {start, stop};
  check_rows(in.rows, stds, "stds");
  check_rows(in.rows, mask, "mask");
  in.wide = eps.scalar_type() == ScalarType::Double;
  char* to = output(eps, "eps", 1, in.wide ? ScalarType::Double : ScalarType::Float);
  double least = launch_least(in, checked(path), Threads{});
  if (least == std::numeric_limits<double>::infinity()) least = none;
  if (in.wide) {
    *reinterpret_cast<double*>(to) = product_of<double>(least, factor, smallest);
  } else {
    *reinterpret_cast<float*>(to) = product_of<float>(least, factor, smallest);
  }
}

// Whether moments are computed in float64: their state is, or without the diagonal an input.
bool in_float64(
    const Tensor& state, std::initializer_list<const Tensor*> inputs, bool exclude_diagonal) {
  bool wide = !exclude_diagonal && state.scalar_type() == ScalarType::Double;
  for (const Tensor* t : inputs) wide |= t->scalar_type() == ScalarType::Double;
  return wide;
}

ScalarType state_type(const Inputs& inputs) {
  return inputs.in.wide_state() ? ScalarType::Double : ScalarType::Float;
}

bool moments(
    const Tensor& y, const Tensor& x, const Tensor& mu, const Tensor& stds,
    const Tensor& sample_mask, const Tensor& component_mask, std::vector<double> component_eps,
    std::vector<double> sample_eps, std::vector<int64_t> rows, bool exclude_diagonal, int64_t path,
    const Tensor& sums, const Tensor& state) {
  Inputs inputs = inputs_of(
      y, x, mu, stds, sample_mask, component_mask, component_eps, sample_eps, rows,
      exclude_diagonal, in_float64(state, {&y, &x, &mu, &stds}, exclude_diagonal));
  MomentsInputs& in = inputs.in;
  in.mixtures = inputs.mixtures.data();
  char* to_state = output(state, "state", in.count * 4 * in.S * in.E, state_type(inputs));
  char* to_sums = output(sums, "sums", in.count * 3, ScalarType::Double);
  return launch_moments(in, to_state, reinterpret_cast<double*>(to_sums), checked(path), Threads{});
}

bool moments_backward(
    const Tensor& upstream, const Tensor& y, const Tensor& x, const Tensor& mu, const Tensor& stds,
    const Tensor& sample_mask, const Tensor& component_mask, std::vector<double> component_eps,
    std::vector<double> sample_eps, std::vector<int64_t> rows, bool exclude_diagonal,
    const Tensor& state, std::vector<int64_t> passes, int64_t path, std::optional<Tensor> d_y,
    std::optional<Tensor> d_x, std::optional<Tensor> d_mu, std::optional<Tensor> d_stds) {
  Inputs inputs = inputs_of(
      y, x, mu, stds, sample_mask, component_mask, component_eps, sample_eps, rows,
      exclude_diagonal, in_float64(state, {&y, &x, &mu, &stds}, exclude_diagonal));
  MomentsBackward call;
  call.in = inputs.in;
  MomentsInputs& in = call.in;
  in.mixtures = inputs.mixtures.data();
  call.state = output(state, "state", in.count * 4 * in.S * in.E, state_type(inputs));
  call.upstream = reinterpret_cast<const double*>(
      output(upstream, "upstream", in.count * 3, ScalarType::Double));

  Gradients gradients{&d_y, &d_x, &d_mu, &d_stds};
  std::vector<Pass> found = passes_of(in, passes, gradients);
  call.passes = found.data();
  call.pass_count = static_cast<int64_t>(found.size());
  views_of(in, gradients, {&call.d_y, &call.d_x, &call.d_mu, &call.d_stds});
  return launch_gradients(call, checked(path), Threads{});
}

// How many energies there are; all mixtures have as many samples, and as many components.
int64_t energies_count(const MomentsInputs& in) {
  STD_TORCH_CHECK(in.count > 0 && in.S * in.E > 0, "pairs: no mixture or no element");
  const Mixture& first = in.mixtures[0];
  STD_TORCH_CHECK(first.samples.count() * first.components.count() > 0, "pairs: no pair");
  for (int64_t d = 1; d < in.count; ++d) {
    STD_TORCH_CHECK(
        in.mixtures[d].samples.count() == first.samples.count() &&
            in.mixtures[d].components.count() == first.components.count(),
        "pairs: mixtures of one size");
  }
  return in.count * 3 * first.samples.count() * first.components.count();
}

bool pairs(
    const Tensor& y, const Tensor& x, const Tensor& mu, const Tensor& stds,
    const Tensor& sample_mask, const Tensor& component_mask, std::vector<double> component_eps,
    std::vector<double> sample_eps, std::vector<int64_t> rows, bool exclude_diagonal, bool wide,
    int64_t path, const Tensor& energies) {
  Inputs inputs = inputs_of(
      y, x, mu, stds, sample_mask, component_mask, component_eps, sample_eps, rows,
      exclude_diagonal, wide);
  MomentsInputs& in = inputs.in;
  in.mixtures = inputs.mixtures.data();
  char* to = output(energies, "energies", energies_count(in), ScalarType::Double);
  prefer_huge_pages(to, energies.numel() * size_of(Type::float64));
  return launch_pairs(in, reinterpret_cast<double*>(to), checked(path), Threads{});
}

bool pairs_backward(
    const Tensor& upstream, const Tensor& y, const Tensor& x, const Tensor& mu, const Tensor& stds,
    const Tensor& sample_mask, const Tensor& component_mask, std::vector<double> component_eps,
    std::vector<double> sample_eps, std::vector<int64_t> rows, bool exclude_diagonal, bool wide,
    std::vector<int64_t> passes, int64_t path, std::optional<Tensor> d_y,
    std::optional<Tensor> d_x, std::optional<Tensor> d_mu, std::optional<Tensor> d_stds) {
  Inputs inputs = inputs_of(
      y, x, mu, stds, sample_mask, component_mask, component_eps, sample_eps, rows,
      exclude_diagonal, wide);
  PairsBackward call;
  call.in = inputs.in;
  MomentsInputs& in = call.in;
  in.mixtures = inputs.mixtures.data();
  call.upstream = reinterpret_cast<const double*>(
      output(upstream, "upstream", energies_count(in), ScalarType::Double));
  Gradients gradients{&d_y, &d_x, &d_mu, &d_stds};
  std::vector<Pass> found = passes_of(in, passes, gradients);
  call.passes = found.data();
  call.pass_count = static_cast<int64_t>(found.size());
  views_of(in, gradients, {&call.d_y, &call.d_x, &call.d_mu, &call.d_stds});
  return launch_pairs_gradients(call, checked(path), Threads{});
}

// `energies` (count, 3, N, M).
Logsumexp logsumexp_of(
    const Tensor& energies, std::optional<int64_t> own, const std::optional<Tensor>& origins,
    bool leave_out) {
  STD_TORCH_CHECK(energies.dim() == 4 && energies.size(1) == 3, "energies: expected (D, 3, N, M)");
  Logsumexp in;
  in.count = energies.size(0), in.N = energies.size(2), in.M = energies.size(3);
  STD_TORCH_CHECK(energies.numel() > 0, "logsumexp: no pair");
  in.energies = reinterpret_cast<const double*>(
      output(energies, "energies", in.rows() * 3 * in.M, ScalarType::Double));
  STD_TORCH_CHECK(!own || *own >= 0, "own: expected a component");
  in.own.first = own.value_or(Own::kNone);
  if (origins) {
    in.own.origins = origins_of(*origins, in.N, in.M);
    in.own.left_out = leave_out;
  }
  return in;
}

void logsumexp(
    const Tensor& energies, std::optional<int64_t> own, std::optional<Tensor> origins,
    bool leave_out, int64_t path, const Tensor& state) {
  LogsumexpForward call{logsumexp_of(energies, own, origins, leave_out)};
  const Logsumexp& in = call.in;
  call.state = reinterpret_cast<double*>(
      output(state, "state", in.kRows * in.rows(), ScalarType::Double));
  launch_logsumexp(call, checked(path), Threads{});
}

void logsumexp_backward(
    const Tensor& upstream, const Tensor& energies, const Tensor& state,
    std::optional<int64_t> own, std::optional<Tensor> origins, bool leave_out, int64_t path,
    const Tensor& gradient) {
  LogsumexpBackward call{logsumexp_of(energies, own, origins, leave_out)};
  const Logsumexp& in = call.in;
  call.state = reinterpret_cast<const double*>(
      output(state, "state", in.kRows * in.rows(), ScalarType::Double));
  call.upstream.samples = upstream.size(2);
  call.upstream.data = reinterpret_cast<const double*>(output(
      upstream, "upstream", in.kTerms * in.count * (upstream.size(2) == 1 ? 1 : in.N),
      ScalarType::Double));
  char* to = output(gradient, "gradient", energies.numel(), ScalarType::Double);
  prefer_huge_pages(to, energies.numel() * size_of(Type::float64));
  call.gradient = reinterpret_cast<double*>(to);
  launch_logsumexp_gradient(call, checked(path), Threads{});
}

// Of the schemas below; the Python side expects one.
int64_t version() {
  return 6;
}

// A bit for each instruction path that this machine supports.
int64_t paths() {
  int64_t bits = 0;
  for (Path path : {Path::plain, Path::avx2, Path::avx512}) {
    bits |= static_cast<int64_t>(supported(path)) << static_cast<int64_t>(path);
  }
  return bits;
}

}  // namespace
}  // namespace fused_mi

STABLE_TORCH_LIBRARY(fused_mi_cpu, m) {
  m.def("version() -> int");
  m.def("paths() -> int");
  m.def(
      "variance(Tensor stds, Tensor mask, int start, int stop, float factor, float smallest,"
      " float none, int path, Tensor(a!) eps) -> ()");
  m.def(
      "moments(Tensor y, Tensor x, Tensor mu, Tensor stds, Tensor sample_mask,"
      " Tensor component_mask, float[] component_eps, float[] sample_eps, int[] rows,"
      " bool exclude_diagonal, int path, Tensor(a!) sums, Tensor(b!) state) -> bool");
  m.def(
      "moments_backward(Tensor upstream, Tensor y, Tensor x, Tensor mu, Tensor stds,"
      " Tensor sample_mask, Tensor component_mask, float[] component_eps, float[] sample_eps,"
      " int[] rows, bool exclude_diagonal, Tensor state, int[] passes, int path, Tensor(a!)? d_y,"
      " Tensor(b!)? d_x, Tensor(c!)? d_mu, Tensor(d!)? d_stds) -> bool");
  m.def(
      "pairs(Tensor y, Tensor x, Tensor mu, Tensor stds, Tensor sample_mask,"
      " Tensor component_mask, float[] component_eps, float[] sample_eps, int[] rows,"
      " bool exclude_diagonal, bool wide, int path, Tensor(a!) energies) -> bool");
  m.def(
      "pairs_backward(Tensor upstream, Tensor y, Tensor x, Tensor mu, Tensor stds,"
      " Tensor sample_mask, Tensor component_mask, float[] component_eps, float[] sample_eps,"
      " int[] rows, bool exclude_diagonal, bool wide, int[] passes, int path, Tensor(a!)? d_y,"
      " Tensor(b!)? d_x, Tensor(c!)? d_mu, Tensor(d!)? d_stds) -> bool");
  m.def(
      "logsumexp(Tensor energies, int? own, Tensor? origins, bool leave_origins_out, int path,"
      " Tensor(a!) state) -> ()");
  m.def(
      "logsumexp_backward(Tensor upstream, Tensor energies, Tensor state, int? own, Tensor? origins,"
      " bool leave_origins_out, int path,"
      " Tensor(a!) gradient) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fused_mi_cpu, CompositeExplicitAutograd, m) {
  m.impl("version", TORCH_BOX(&fused_mi::version));
  m.impl("paths", TORCH_BOX(&fused_mi::paths));
  m.impl("variance", TORCH_BOX(&fused_mi::variance));
  m.impl("moments", TORCH_BOX(&fused_mi::moments));
  m.impl("moments_backward", TORCH_BOX(&fused_mi::moments_backward));
  m.impl("pairs", TORCH_BOX(&fused_mi::pairs));
  m.impl("pairs_backward", TORCH_BOX(&fused_mi::pairs_backward));
  m.impl("logsumexp", TORCH_BOX(&fused_mi::logsumexp));
  m.impl("logsumexp_backward", TORCH_BOX(&fused_mi::logsumexp_backward));
}
