// Arguments of the operators over mixtures, checked, as the kernels see them.
#pragma once

#include "checks.h"
#include "moments.h"
#include "pages.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

namespace fused_mi {

// A product, but no less than `smallest` and no more than the largest number of its type.
template <class T>
T product_of(double least, double factor, double smallest) {
  constexpr double most = std::numeric_limits<T>::max();
  const T found = static_cast<T>(least) * static_cast<T>(std::min(factor, most));
  return std::min(std::max(found, static_cast<T>(smallest)), std::numeric_limits<T>::max());
}

struct Inputs {
  MomentsInputs in;
  std::vector<Mixture> mixtures;
};

// `rows`: four bounds of each mixture, of samples and of components.
inline Inputs inputs_of(
    const Tensor& y, const Tensor& x, const Tensor& mu, const Tensor& stds,
    const Tensor& sample_mask, const Tensor& component_mask,
    const std::vector<double>& component_eps, const std::vector<double>& sample_eps,
    const std::vector<int64_t>& rows, bool exclude_diagonal, bool wide) {
  STD_TORCH_CHECK(y.dim() == 3, "y: expected (rows, S, E)");
  Inputs result;
  MomentsInputs& in = result.in;
  in.S = y.size(1);
  in.E = y.size(2);
  in.y = view_of(y, "y", in.S, in.E);
  in.x = view_of(x, "x", in.S, in.E);
  in.mu = view_of(mu, "mu", in.S, in.E);
  in.stds = view_of(stds, "stds", in.S, in.E);
  in.sample_mask = mask_of(sample_mask, "sample_mask", in.S);
  in.component_mask = mask_of(component_mask, "component_mask", in.S);
  in.count = static_cast<int64_t>(component_eps.size());
  in.own_stds = !sample_eps.empty();
  in.exclude_diagonal = exclude_diagonal;
  in.wide = wide;
  STD_TORCH_CHECK(static_cast<int64_t>(rows.size()) == 4 * in.count, "rows: four bounds each");
  STD_TORCH_CHECK(
      !in.own_stds || sample_eps.size() == component_eps.size(), "sample_eps: one each, or none");
  for (int64_t d = 0; d < in.count; ++d) {
    Mixture m{{rows[4 * d], rows[4 * d + 1]}, {rows[4 * d + 2], rows[4 * d + 3]}};
    m.component_eps = component_eps[d];
    m.sample_eps = in.own_stds ? sample_eps[d] : 0;
    check_rows(m.samples, y, "y");
    check_rows(m.samples, sample_mask, "sample_mask");
    check_rows(m.components, component_mask, "component_mask");
    for (const Tensor* t : {&x, &mu, &stds}) check_rows(m.components, *t, "components");
    if (in.own_stds) check_rows(m.samples, stds, "stds");
    if (exclude_diagonal) {
      STD_TORCH_CHECK(
          m.samples.start == m.components.start && m.samples.stop == m.components.stop,
          "exclude_diagonal: the same rows in both roles");
      check_rows(m.samples, component_mask, "component_mask");
      check_rows(m.components, sample_mask, "sample_mask");
      check_rows(m.components, y, "y");
    }
    result.mixtures.push_back(m);
  }
  in.mixtures = nullptr;  // of the caller, whose vector does not move any more
  return result;
}

// Of y, x, mu and stds; nullopt: not wanted.
using Gradients = std::array<const std::optional<Tensor>*, 4>;

// `passes`: five numbers each, see `Pass`; the last has a bit for each gradient that it writes.
inline std::vector<Pass> passes_of(
    const MomentsInputs& in, const std::vector<int64_t>& passes, const Gradients& gradients) {
  STD_TORCH_CHECK(passes.size() % 5 == 0, "passes: five numbers each");
  std::vector<Pass> found;
  for (size_t p = 0; p < passes.size(); p += 5) {
    Pass pass{{passes[p], passes[p + 1]}, passes[p + 2], passes[p + 3]};
    bool* write[] = {&pass.write_y, &pass.write_x, &pass.write_mu, &pass.write_stds};
    for (int i = 0; i < 4; ++i) {
      *write[i] = (passes[p + 4] >> i & 1) != 0;
      STD_TORCH_CHECK(!*write[i] || gradients[i]->has_value(), "passes: writes what is not wanted");
      if (*write[i]) check_rows(pass.rows, **gradients[i], "gradient");
    }
    for (int64_t d : {pass.as_samples, pass.as_components}) {
      STD_TORCH_CHECK(-1 <= d && d < in.count, "passes: no such mixture");
    }
    Rows all = pass.rows;
    for (auto [d, samples] : {std::pair{pass.as_samples, true}, {pass.as_components, false}}) {
      if (d < 0) continue;
      Rows role = samples ? in.mixtures[d].samples : in.mixtures[d].components;
      STD_TORCH_CHECK(all.start == role.start && all.stop == role.stop, "passes: other rows");
    }
    found.push_back(pass);
  }
  return found;
}

inline void views_of(
    const MomentsInputs& in, const Gradients& gradients, const std::array<View*, 4>& views) {
  for (int i = 0; i < 4; ++i) {
    if (!gradients[i]->has_value()) continue;
    View& view = *views[i] = view_of(**gradients[i], "gradient", in.S, in.E);
    if ((*gradients[i])->is_contiguous()) {
      prefer_huge_pages(view.data, (*gradients[i])->numel() * size_of(view.type));
    }
  }
}

}  // namespace fused_mi
