// Who is scored against whom, from the arguments of the operators over whole losses.
#pragma once

#include "arguments.h"
#include "launch.h"

#include <array>
#include <initializer_list>
#include <limits>

namespace fused_mi {

// As the Python side counts them.
enum class Pairing { all, sub_batch, symmetric, leave_one_out };

constexpr int64_t kHeader = 16;  // elements of a state before anything else, see below

// A fresh contiguous CPU tensor.
inline Tensor fresh(std::initializer_list<int64_t> sizes, ScalarType type) {
  std::array<int64_t, 4> strides{};
  int64_t count = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = count;
    count *= sizes.begin()[i];
  }
  const int32_t code = type == ScalarType::Double ? aoti_torch_dtype_float64()
      : type == ScalarType::BFloat16              ? aoti_torch_dtype_bfloat16()
      : type == ScalarType::Half                  ? aoti_torch_dtype_float16()
                                                  : aoti_torch_dtype_float32();
  AtenTensorHandle result;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.begin(), strides.data(), code,
      aoti_torch_device_type_cpu(), 0, &result));
  return Tensor(result);
}

// Numbers of T = float32 or float64.
struct Numbers {
  void* data;
  bool wide;

  explicit Numbers(const Tensor& t)
      : data(t.mutable_data_ptr()), wide(t.scalar_type() == ScalarType::Double) {}

  double get(int64_t i) const {
    return wide ? static_cast<const double*>(data)[i] : static_cast<const float*>(data)[i];
  }
  void set(int64_t i, double value) const {
    if (wide) {
      static_cast<double*>(data)[i] = value;
    } else {
      static_cast<float*>(data)[i] = static_cast<float>(value);
    }
  }
};

inline Tensor with_rows(const Tensor& t) {
  return t.dim() == 3 && t.size(2) > 1 && t.stride(2) != 1 ? torch::stable::contiguous(t) : t;
}

// A call of either estimator: y, x, mu and stds with contiguous rows, and the mixtures.
struct Scoring {
  Tensor tensors[4];
  MomentsInputs in;
  Mixture mixtures[2];
  Pairing pairing;
  bool sum, wide;  // over the samples, not their mean; T is float64

  Scoring(
      const Tensor& y, const Tensor& x, const Tensor& mu, const Tensor& stds,
      const Tensor& sample_mask, const std::optional<Tensor>& component_mask, int64_t pairing_,
      bool own_stds, bool sum_)
      : tensors{with_rows(y), with_rows(x), with_rows(mu), with_rows(stds)},
        pairing(static_cast<Pairing>(pairing_)),
        sum(sum_) {
    STD_TORCH_CHECK(y.dim() == 3, "y: expected (rows, S, E)");
    in.S = y.size(1), in.E = y.size(2);
    in.y = view_of(tensors[0], "y", in.S, in.E);
    in.x = view_of(tensors[1], "x", in.S, in.E);
    in.mu = view_of(tensors[2], "mu", in.S, in.E);
    in.stds = view_of(tensors[3], "stds", in.S, in.E);
    const int64_t N = y.size(0), M = x.size(0);
    const bool batch = pairing != Pairing::all;
    STD_TORCH_CHECK(mu.size(0) == M && stds.size(0) == M, "mu, stds: expected the rows of x");
    STD_TORCH_CHECK(!batch || N == M, "y: expected the rows of x");
    STD_TORCH_CHECK(batch || !own_stds, "own_stds: of one batch");
    STD_TORCH_CHECK(0 <= pairing_ && pairing_ <= 3, "pairing: expected 0 to 3");
    STD_TORCH_CHECK(sample_mask.size(0) == N, "sample_mask: expected the rows of y");
    in.sample_mask = mask_of(sample_mask, "sample_mask", in.S);
    static const uint8_t active = 1;
    in.component_mask = Mask{&active, 0, 0};
    if (component_mask) {
      STD_TORCH_CHECK(component_mask->size(0) == M, "component_mask: expected the rows of x");
      in.component_mask = mask_of(*component_mask, "component_mask", in.S);
    }
    wide = false;
    for (const View* view : {&in.y, &in.x, &in.mu, &in.stds}) wide |= view->type == Type::float64;
    in.own_stds = own_stds;
    in.exclude_diagonal = pairing == Pairing::leave_one_out;
    in.wide = wide;
    in.mixtures = mixtures;
    in.count = pairing == Pairing::symmetric ? 2 : 1;
    const bool halves = pairing == Pairing::sub_batch || pairing == Pairing::symmetric;
    const Rows first{0, halves ? N / 2 : N}, second{halves ? N / 2 : 0, halves ? N : M};
    mixtures[0] = {first, second};
    mixtures[1] = {second, first};
  }
  Scoring(const Scoring&) = delete;  // `in` points into it

  int64_t samples() const {
    return mixtures[0].samples.count();
  }
  int64_t components() const {
    return mixtures[0].components.count();
  }
  int64_t partners() const {
    return components() - in.exclude_diagonal;
  }
  bool nothing() const {
    return in.S * in.E == 0 || samples() == 0 || components() == 0;
  }
  // Of a sum over samples.
  double share() const {
    return (sum ? 1.0 : 1.0 / static_cast<double>(samples())) / static_cast<double>(in.count);
  }
  ScalarType accumulation() const {
    return wide ? ScalarType::Double : ScalarType::Float;
  }

  // The stabilisers, found here and kept in the header of a state, or read from it.
  void stabilise(const Tensor& state, double safety_factor, Path path) {
    const Numbers header(state);
    for (int64_t i = 0; i < kHeader; ++i) header.set(i, 0);
    const bool shared = in.own_stds && in.component_mask.data == in.sample_mask.data;
    for (int64_t d = 0; d < in.count; ++d) {
      Mixture& m = mixtures[d];
      const bool again = shared && d == 1;  // the ranges of the other direction
      m.component_eps = again ? mixtures[0].sample_eps
                              : stabiliser(in.component_mask, m.components, safety_factor, path);
      header.set(d, m.component_eps);
      if (!in.own_stds) continue;
      m.sample_eps = again ? mixtures[0].component_eps
          : shared && in.exclude_diagonal
          ? m.component_eps
          : stabiliser(in.sample_mask, m.samples, safety_factor, path);
      header.set(in.count + d, m.sample_eps);
    }
  }
  // False where the state is that of plain torch.
  bool read_stabilisers(const Tensor& state) {
    const Numbers header(state);
    for (int64_t d = 0; d < in.count; ++d) {
      mixtures[d].component_eps = header.get(d);
      if (in.own_stds) mixtures[d].sample_eps = header.get(in.count + d);
    }
    return header.get(kHeader - 1) == 0;
  }

 private:
  double stabiliser(const Mask& mask, Rows rows, double safety_factor, Path path) const {
    VarianceInputs v{in.stds, mask, rows, wide, in.S, in.E};
    double least = launch_least(v, path, Threads{});
    if (least == std::numeric_limits<double>::infinity()) least = 1;
    return wide ? of_least<double>(least, safety_factor) : of_least<float>(least, safety_factor);
  }
  // In T, like every backend. A factor below 0 is minus the stabiliser.
  template <class T>
  static double of_least(double least, double safety_factor) {
    if (safety_factor < 0) return product_of<T>(least, 0, -safety_factor);
    const double epsilon = std::numeric_limits<T>::epsilon();
    const double smallest = static_cast<double>(std::numeric_limits<T>::min()) * epsilon;
    return product_of<T>(least, safety_factor * epsilon, safety_factor > 0 ? smallest : 0);
  }
};

// Gradients of an operator's two results: the loss, and its terms in the order of the Python side.
struct Upstream {
  double total = 0, q = 0, g = 0, assignment = 0, std_log = 0;

  Upstream(const std::optional<Tensor>& of_total, const std::optional<Tensor>& of_terms) {
    if (of_terms) {
      STD_TORCH_CHECK(of_terms->dim() == 1 && of_terms->size(0) == 6, "of_terms: expected (6,)");
      const Numbers terms(*of_terms);
      const int64_t step = of_terms->stride(0);
      const double entropy = terms.get(4 * step);
      total = terms.get(0), q = terms.get(step) + entropy, g = terms.get(2 * step) + entropy;
      assignment = terms.get(3 * step) + entropy, std_log = terms.get(5 * step);
    }
    if (of_total) total += Numbers(*of_total).get(0);
  }
};

// Fresh gradients of the wanted tensors, and the passes that write them.
struct Wanted {
  std::optional<Tensor> tensors[4], weights;
  Pass passes[2];
  int64_t count = 0;

  Wanted(const Scoring& call, const std::vector<bool>& wanted) {
    STD_TORCH_CHECK(wanted.size() == 4, "wanted: expected four");
    for (int i = 0; i < 4; ++i) {
      if (!wanted[i]) continue;
      const Tensor& like = call.tensors[i];
      tensors[i] = fresh({like.size(0), like.size(1), like.size(2)}, like.scalar_type());
    }
    const Rows samples = call.mixtures[0].samples, components = call.mixtures[0].components;
    const bool all = call.pairing == Pairing::all;
    if (call.pairing == Pairing::leave_one_out) {
      add({samples, 0, 0}, wanted, true, true);
    } else {
      const int64_t back = call.pairing == Pairing::symmetric ? 1 : -1;
      add({samples, 0, back}, wanted, true, !all);
      add({components, back, 0}, wanted, !all, true);
    }
  }

  std::vector<Tensor> found() const {
    std::vector<Tensor> result;
    for (const std::optional<Tensor>& t : tensors) {
      if (t) result.push_back(*t);
    }
    if (weights) result.push_back(*weights);
    return result;
  }
  Gradients gradients() const {
    return {&tensors[0], &tensors[1], &tensors[2], &tensors[3]};
  }
  void zero() {
    for (std::optional<Tensor>& t : tensors) {
      if (t) torch::stable::zero_(*t);
    }
  }

 private:
  // `of_samples`, `of_components`: whether it writes gradients of y, and of the others.
  void add(Pass pass, const std::vector<bool>& wanted, bool of_samples, bool of_components) {
    pass.write_y = wanted[0] && of_samples;
    pass.write_x = wanted[1] && of_components;
    pass.write_mu = wanted[2] && of_components;
    pass.write_stds = wanted[3] && of_components;
    if (pass.write_y || pass.write_x || pass.write_mu || pass.write_stds) passes[count++] = pass;
  }
};

}  // namespace fused_mi
