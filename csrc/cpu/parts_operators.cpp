// Operators over rows whose partners are elsewhere, on other ranks or in other micro-batches.
#include "arguments.h"
#include "moments_launch.h"

#include <torch/csrc/stable/library.h>

#include <initializer_list>
#include <optional>
#include <vector>

namespace fused_mi {
namespace {

bool any_float64(std::initializer_list<const Tensor*> inputs) {
  bool wide = false;
  for (const Tensor* t : inputs) wide |= t->scalar_type() == ScalarType::Double;
  return wide;
}

// Of each mixture how many components a sample meets, and samples a component, elsewhere: (D, 2, S).
void read_partners(MomentsInputs& in, const Tensor& partners) {
  in.partners = reinterpret_cast<const int64_t*>(
      output(partners, "partners", in.count * 2 * in.S, ScalarType::Long));
  in.partners_row = in.S;
  STD_TORCH_CHECK(!in.exclude_diagonal, "partners: they are elsewhere");
}

// (planes, sums, and counts of the contributing rows of each role); see parts_finish.h.
bool parts(
    const Tensor& y, const Tensor& x, const Tensor& mu, const Tensor& stds,
    const Tensor& sample_mask, const Tensor& component_mask, std::vector<double> component_eps,
    std::vector<double> sample_eps, std::vector<int64_t> rows, const Tensor& partners,
    int64_t path_, const Tensor& planes, const Tensor& counts, const Tensor& sums) {
  Inputs inputs = inputs_of(
      y, x, mu, stds, sample_mask, component_mask, component_eps, sample_eps, rows, false,
      any_float64({&y, &x, &mu, &stds}));
  MomentsInputs& in = inputs.in;
  in.mixtures = inputs.mixtures.data();
  read_partners(in, partners);
  const Path path = checked(path_);
  const bool wide = planes.scalar_type() == ScalarType::Double;
  char* to_planes = output(
      planes, "planes", in.count * kPlanesOfParts * in.S * in.E,
      wide ? ScalarType::Double : ScalarType::Float);
  auto* to_counts =
      reinterpret_cast<int64_t*>(output(counts, "counts", in.count * 2 * in.S, ScalarType::Long));
  char* to_sums = output(sums, "sums", in.count * 3, ScalarType::Double);
  auto positions = positions_of(in);
  moments_kernels(path).positions(in, positions.get(), 0, in.S);
  for (int64_t d = 0; d < in.count; ++d) {
    for (int64_t s = 0; s < in.S; ++s) {
      to_counts[2 * d * in.S + s] = positions[d * in.S + s].samples;
      to_counts[(2 * d + 1) * in.S + s] = positions[d * in.S + s].components;
    }
  }
  return launch_parts(
      in, to_planes, wide, reinterpret_cast<double*>(to_sums), path, Threads{});
}

bool pull(
    const Tensor& upstream, const Tensor& y, const Tensor& x, const Tensor& mu, const Tensor& stds,
    const Tensor& sample_mask, const Tensor& component_mask, std::vector<double> component_eps,
    std::vector<double> sample_eps, std::vector<int64_t> rows, const Tensor& partners,
    const Tensor& planes, std::vector<int64_t> passes, int64_t path, std::optional<Tensor> d_y,
    std::optional<Tensor> d_x, std::optional<Tensor> d_mu, std::optional<Tensor> d_stds) {
  Inputs inputs = inputs_of(
      y, x, mu, stds, sample_mask, component_mask, component_eps, sample_eps, rows, false,
      any_float64({&y, &x, &mu, &stds}));
  MomentsBackward call;
  call.in = inputs.in;
  MomentsInputs& in = call.in;
  in.mixtures = inputs.mixtures.data();
  read_partners(in, partners);
  call.state =
      output(planes, "planes", in.count * kPlanesOfParts * in.S * in.E, ScalarType::Double);
  call.upstream = reinterpret_cast<const double*>(
      output(upstream, "upstream", in.count * 3, ScalarType::Double));
  Gradients gradients{&d_y, &d_x, &d_mu, &d_stds};
  std::vector<Pass> found = passes_of(in, passes, gradients);
  call.passes = found.data();
  call.pass_count = static_cast<int64_t>(found.size());
  views_of(in, gradients, {&call.d_y, &call.d_x, &call.d_mu, &call.d_stds});
  return launch_pull(call, checked(path), Threads{});
}

// Of sets of rows that were told apart: what they meet, see merge.h; false where the type has no room.
bool merge(
    const Tensor& planes, const Tensor& counts, int64_t features, int64_t first, bool apart,
    int64_t path, const Tensor& merged, const Tensor& sums) {
  STD_TORCH_CHECK(planes.dim() == 4 && planes.size(2) == 6, "planes: expected (D, sets, 6, n)");
  Merge in;
  in.count = planes.size(0), in.sets = planes.size(1), in.n = planes.size(3);
  in.wide = planes.scalar_type() == ScalarType::Double;
  const ScalarType type = in.wide ? ScalarType::Double : ScalarType::Float;
  in.planes = output(planes, "planes", planes.numel(), type);
  in.features = features, in.first = first, in.apart = apart;
  STD_TORCH_CHECK(features > 0 && first >= 0, "features, first: expected a column");
  in.positions = in.n == 0 ? 0 : (first + in.n - 1) / features - first / features + 1;
  in.counts = reinterpret_cast<const int64_t*>(
      output(counts, "counts", in.count * in.sets * in.positions, ScalarType::Long));
  in.merged = output(merged, "merged", in.count * in.results() * 6 * in.n, type);
  char* to_sums = output(sums, "sums", in.count, ScalarType::Double);
  return launch_merge(in, reinterpret_cast<double*>(to_sums), checked(path), Threads{});
}

}  // namespace
}  // namespace fused_mi

STABLE_TORCH_LIBRARY_FRAGMENT(fused_mi_cpu, m) {
  m.def(
      "parts(Tensor y, Tensor x, Tensor mu, Tensor stds, Tensor sample_mask, Tensor component_mask,"
      " float[] component_eps, float[] sample_eps, int[] rows, Tensor partners, int path,"
      " Tensor(a!) planes, Tensor(b!) counts, Tensor(c!) sums) -> bool");
  m.def(
      "pull(Tensor upstream, Tensor y, Tensor x, Tensor mu, Tensor stds, Tensor sample_mask,"
      " Tensor component_mask, float[] component_eps, float[] sample_eps, int[] rows,"
      " Tensor partners, Tensor planes, int[] passes, int path, Tensor(a!)? d_y, Tensor(b!)? d_x,"
      " Tensor(c!)? d_mu, Tensor(d!)? d_stds) -> bool");
  m.def(
      "merge(Tensor planes, Tensor counts, int features, int first, bool apart, int path,"
      " Tensor(a!) merged, Tensor(b!) sums) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(fused_mi_cpu, CompositeExplicitAutograd, m) {
  m.impl("parts", TORCH_BOX(&fused_mi::parts));
  m.impl("pull", TORCH_BOX(&fused_mi::pull));
  m.impl("merge", TORCH_BOX(&fused_mi::merge));
}
