// Operators `variance`, `jensen` and `jensen_backward`: raw ones, which write into tensors of the caller
// and know no autograd.
#include "arguments.h"
#include "device.h"
#include "jensen_launch.h"
#include "operators.h"

namespace fused_mi {
namespace {

Jensen jensen_of(
    const Tensor& y, const Tensor& x, const Tensor& mu, const Tensor& stds, const Tensor& sample_mask,
    const Tensor& component_mask, const std::vector<int64_t>& mixtures, bool alone, double divisor,
    const Tensor& header, const Tensor& state, const Tensor& counts) {
  Jensen in = meeting_of(y, x, mu, stds, sample_mask, component_mask, mixtures, alone);
  in.divisor = divisor;
  in.header = numbers_of(header, "header", kHeader);
  in.state = numbers_of(state, "state", in.mixtures * 4 * in.S * in.E);
  const void* memory = memory_of(counts, "counts", in.mixtures * 4 * in.S, ScalarType::Int);
  in.counts = static_cast<int*>(const_cast<void*>(memory));
  return in;
}

}  // namespace

void variance(
    const Tensor& stds, const Tensor& mask, const Tensor& other_mask, std::vector<int64_t> roles,
    double factor, double smallest, double largest, const Tensor& eps) {
  STD_TORCH_CHECK(stds.dim() == 3, "stds: expected (rows, S, E)");
  Jensen in;
  in.S = stds.size(1), in.E = stds.size(2);
  in.stds = view_of(stds, "stds", in.S, in.E);
  in.masks[0] = mask_of(mask, "mask", in.S);
  in.masks[1] = mask_of(other_mask, "other_mask", in.S);
  set_roles(in, roles, stds);
  in.stabiliser = {factor, smallest, largest};
  in.header = numbers_of(eps, "eps", in.roles);
  in.wide = in.header.wide;
  const Device device(stds);
  plan_least(in, multiprocessors());
  const Tensor least = scratch(stds, in.roles * in.least_parts * bytes_of_number(in));
  in.least = data_of(least);
  check(launch_prepare(in, device.stream()));
  check(launch_stabilisers(in, device.stream()));
}

void jensen(
    const Tensor& y, const Tensor& x, const Tensor& mu, const Tensor& stds, const Tensor& sample_mask,
    const Tensor& component_mask, std::vector<int64_t> mixtures, bool alone, double divisor,
    const Tensor& header, const Tensor& state, const Tensor& counts, std::vector<int64_t> roles,
    double factor, double smallest, double largest, const Tensor& total, const Tensor& terms) {
  Jensen in = jensen_of(
      y, x, mu, stds, sample_mask, component_mask, mixtures, alone, divisor, header, state, counts);
  set_roles(in, roles, stds);
  for (const Mixture& of : in.mixture) {
    STD_TORCH_CHECK(of.sample_role < in.roles && of.component_role < in.roles, "roles: too few");
  }
  in.stabiliser = {factor, smallest, largest};
  in.total = numbers_of(total, "total", 1);
  in.terms = numbers_of(terms, "terms", 6);
  const Device device(y);
  plan_jensen(in, multiprocessors());
  const Bytes bytes(in);
  Scratch memory;
  const int64_t least = memory.add(bytes.least), parts = memory.add(bytes.parts);
  const int64_t samples = memory.add(bytes.samples), sums = memory.add(bytes.sums);
  const int64_t merged = memory.add(bytes.merged);
  memory.allocate(y);
  in.least = memory.at(least), in.parts = memory.at(parts), in.samples = memory.at(samples);
  in.sums = memory.at<double>(sums), in.merged = memory.at<double>(merged);
  check(launch_prepare(in, device.stream()));
  check((alone ? launch_accumulate_alone : launch_accumulate)(in, device.stream()));
  check(launch_finish(in, device.stream()));
  check(launch_reduce(in, device.stream()));
}

void jensen_backward(
    std::optional<Tensor> of_total, std::optional<Tensor> of_terms, const Tensor& y, const Tensor& x,
    const Tensor& mu, const Tensor& stds, const Tensor& sample_mask, const Tensor& component_mask,
    std::vector<int64_t> mixtures, bool alone, double divisor, const Tensor& header,
    const Tensor& state, const Tensor& counts, std::vector<int64_t> passes, std::optional<Tensor> d_y,
    std::optional<Tensor> d_x, std::optional<Tensor> d_mu, std::optional<Tensor> d_stds) {
  Gradient in;
  in.of = jensen_of(
      y, x, mu, stds, sample_mask, component_mask, mixtures, alone, divisor, header, state, counts);
  if (of_total) in.of_total = numbers_of(*of_total, "of_total", 1);
  if (of_terms) in.of_terms = numbers_of(*of_terms, "of_terms", 6);
  const std::optional<Tensor>* gradients[] = {&d_y, &d_x, &d_mu, &d_stds};
  View* views[] = {&in.d_y, &in.d_x, &in.d_mu, &in.d_stds};
  for (int k = 0; k < 4; ++k) {
    STD_TORCH_CHECK(!*gradients[k] || (*gradients[k])->is_contiguous(), "gradients: not contiguous");
    *views[k] = view_of(*gradients[k], "gradients", in.of.S, in.of.E);
  }
  STD_TORCH_CHECK(passes.size() % 5 == 0 && passes.size() <= 10, "passes: five numbers each, up to two");
  for (size_t p = 0; p < passes.size() / 5; ++p) {
    const int64_t* of = &passes[5 * p];
    Pass& pass = in.pass[p];
    pass.start = static_cast<int>(of[0]);
    pass.rows = static_cast<int>(of[1] - of[0]);
    pass.as_samples = static_cast<int>(of[2]);
    pass.as_components = static_cast<int>(of[3]);
    STD_TORCH_CHECK(
        pass.as_samples < in.of.mixtures && pass.as_components < in.of.mixtures, "passes: no such mixture");
    for (int k = 0; k < 4; ++k) {
      pass.writes[k] = of[4] >> k & 1;
      STD_TORCH_CHECK(
          !pass.writes[k] || (*gradients[k] && of[0] >= 0 && of[1] <= (*gradients[k])->size(0)),
          "passes: no such gradient");
    }
  }
  const Device device(y);
  plan_gradient(in, multiprocessors());
  check(launch_gradient(in, device.stream()));
  check(launch_gradient_of_pairs(in, device.stream()));
}

}  // namespace fused_mi
