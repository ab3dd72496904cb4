// The operators `torch.ops.fused_mi_cuda`, and `torch.ops.fused_mi_emulated` of the library whose kernels
// run in the emulator. With tensors.h all that knows torch; built against its stable ABI.
#include "operators.h"

#include "device.h"

#include <torch/csrc/stable/library.h>

namespace fused_mi {
namespace {

// Of the schemas below; the Python side expects one.
int64_t version() { return 2; }

std::vector<int64_t> versions_of_cuda() {
  int driver = 0, runtime = 0;
  versions(driver, runtime);
  return {driver, runtime};
}

}  // namespace
}  // namespace fused_mi

#ifdef FUSED_MI_EMULATED
#define NAMESPACE fused_mi_emulated
#else
#define NAMESPACE fused_mi_cuda
#endif

STABLE_TORCH_LIBRARY(NAMESPACE, m) {
  m.def("version() -> int");
  m.def("versions_of_cuda() -> int[]");
  m.def(
      "variance(Tensor stds, Tensor mask, Tensor other_mask, int[] roles, float factor,"
      " float smallest, float largest, Tensor(a!) eps) -> ()");
  m.def(
      "jensen(Tensor y, Tensor x, Tensor mu, Tensor stds, Tensor sample_mask, Tensor component_mask,"
      " int[] mixtures, bool alone, float divisor, Tensor(a!) header, Tensor(b!) state,"
      " Tensor(c!) counts, int[] roles, float factor, float smallest, float largest,"
      " Tensor(d!) total, Tensor(e!) terms) -> ()");
  m.def(
      "jensen_backward(Tensor? of_total, Tensor? of_terms, Tensor y, Tensor x, Tensor mu, Tensor stds,"
      " Tensor sample_mask, Tensor component_mask, int[] mixtures, bool alone, float divisor,"
      " Tensor header, Tensor state, Tensor counts, int[] passes, Tensor(a!)? d_y, Tensor(b!)? d_x,"
      " Tensor(c!)? d_mu, Tensor(d!)? d_stds) -> ()");
  m.def(
      "log_determinants(Tensor stds, Tensor active, Tensor eps, int start, bool wide,"
      " Tensor(a!) irregular, Tensor(b!) logs) -> ()");
  m.def(
      "distances(Tensor y, Tensor x, Tensor? mu, Tensor stds, Tensor sample_active,"
      " Tensor component_active, Tensor eps, int sample_start, int component_start,"
      " Tensor(a!) irregular, Tensor(b!) shift, Tensor(c!) q) -> ()");
  m.def(
      "samples_gradient(Tensor y, Tensor x, Tensor? mu, Tensor stds, Tensor sample_active,"
      " Tensor component_active, Tensor eps, int sample_start, int component_start,"
      " Tensor(a!) irregular, Tensor(b!) shift, Tensor upstream, Tensor(c!) d_y) -> ()");
  m.def(
      "components_gradient(Tensor y, Tensor x, Tensor? mu, Tensor stds, Tensor sample_active,"
      " Tensor component_active, Tensor eps, int sample_start, int component_start,"
      " Tensor(a!) irregular, Tensor(b!) shift, Tensor? upstream, Tensor? of_logs,"
      " Tensor? own_eps, Tensor? own_active, Tensor? of_own, Tensor(c!)? d_x, Tensor(d!)? d_mu,"
      " Tensor(e!)? d_stds) -> ()");
  m.def(
      "logsumexp(Tensor energies, int? own, Tensor? origins, bool left_out, Tensor(a!) rows) -> ()");
  m.def(
      "logsumexp_backward(Tensor upstream, Tensor energies, Tensor rows, int? own, Tensor? origins,"
      " bool left_out, Tensor(a!) gradient) -> ()");
  m.def(
      "logsumexp_of_pairs(Tensor y, Tensor x, Tensor mu, Tensor stds, Tensor sample_mask,"
      " Tensor component_mask, int[] mixtures, bool alone, Tensor(a!) header, int[] roles,"
      " float factor, float smallest, float largest, Tensor? log_weights, float offset, int? own,"
      " Tensor? origins, bool left_out, Tensor(b!) rows, Tensor(c!)? energies, float log_partners,"
      " float factor_of_terms, Tensor(d!)? total, Tensor(e!)? terms) -> ()");
  m.def(
      "logsumexp_of_pairs_backward(Tensor? of_total, Tensor? of_terms, Tensor? of_samples, Tensor y,"
      " Tensor x, Tensor mu, Tensor stds, Tensor sample_mask, Tensor component_mask, int[] mixtures,"
      " bool alone, Tensor header, Tensor? log_weights, float offset, int? own, Tensor? origins,"
      " bool left_out, Tensor rows, Tensor? energies, float factor_of_terms, bool each,"
      " int block_rows, int block_columns, Tensor(a!)? d_y, Tensor(b!)? d_x, Tensor(c!)? d_mu,"
      " Tensor(d!)? d_stds, Tensor(e!)? d_log_weights) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(NAMESPACE, CompositeExplicitAutograd, m) {
  m.impl("version", TORCH_BOX(&fused_mi::version));
  m.impl("versions_of_cuda", TORCH_BOX(&fused_mi::versions_of_cuda));
  m.impl("variance", TORCH_BOX(&fused_mi::variance));
  m.impl("jensen", TORCH_BOX(&fused_mi::jensen));
  m.impl("jensen_backward", TORCH_BOX(&fused_mi::jensen_backward));
  m.impl("log_determinants", TORCH_BOX(&fused_mi::log_determinants));
  m.impl("distances", TORCH_BOX(&fused_mi::distances));
  m.impl("samples_gradient", TORCH_BOX(&fused_mi::samples_gradient));
  m.impl("components_gradient", TORCH_BOX(&fused_mi::components_gradient));
  m.impl("logsumexp", TORCH_BOX(&fused_mi::logsumexp));
  m.impl("logsumexp_backward", TORCH_BOX(&fused_mi::logsumexp_backward));
  m.impl("logsumexp_of_pairs", TORCH_BOX(&fused_mi::logsumexp_of_pairs));
  m.impl("logsumexp_of_pairs_backward", TORCH_BOX(&fused_mi::logsumexp_of_pairs_backward));
}
