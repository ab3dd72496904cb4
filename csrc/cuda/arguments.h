// Arguments that the whole losses share: who meets whom.
#pragma once

#include "jensen.h"
#include "tensors.h"

#include <algorithm>
#include <vector>

namespace fused_mi {

// Three numbers of each: the mask, the first row and how many.
inline void set_roles(Jensen& in, const std::vector<int64_t>& roles, const Tensor& stds) {
  STD_TORCH_CHECK(roles.size() % 3 == 0 && roles.size() <= 12, "roles: three numbers each, up to four");
  in.roles = static_cast<int>(roles.size() / 3);
  for (int r = 0; r < in.roles; ++r) {
    const int64_t mask = roles[3 * r], start = roles[3 * r + 1], rows = roles[3 * r + 2];
    STD_TORCH_CHECK(
        (mask == 0 || mask == 1) && start >= 0 && rows >= 0 && start + rows <= stds.size(0),
        "roles: no such rows");
    in.role[r] = {static_cast<int>(mask), static_cast<int>(start), static_cast<int>(rows)};
  }
}

// Six numbers of each mixture: the first sample and how many, the first component and how many, the
// roles of the stabilisers of samples (-1: none) and of components.
inline Jensen meeting_of(
    const Tensor& y, const Tensor& x, const Tensor& mu, const Tensor& stds, const Tensor& sample_mask,
    const Tensor& component_mask, const std::vector<int64_t>& mixtures, bool alone) {
  STD_TORCH_CHECK(y.dim() == 3, "y: expected (rows, S, E)");
  Jensen in;
  in.S = y.size(1), in.E = y.size(2);
  in.y = view_of(y, "y", in.S, in.E);
  in.x = view_of(x, "x", in.S, in.E);
  in.mu = view_of(mu, "mu", in.S, in.E);
  in.stds = view_of(stds, "stds", in.S, in.E);
  in.masks[0] = mask_of(sample_mask, "sample_mask", in.S);
  in.masks[1] = mask_of(component_mask, "component_mask", in.S);
  in.alone = alone;
  for (const View* v : {&in.y, &in.x, &in.mu, &in.stds}) in.wide |= v->type == Type::float64;
  in.mixtures = static_cast<int>(mixtures.size() / 6);
  STD_TORCH_CHECK(
      mixtures.size() % 6 == 0 && (in.mixtures == 1 || (in.mixtures == 2 && !alone)),
      "mixtures: six numbers of each, one or two");
  in.N = static_cast<int>(mixtures[1]), in.M = static_cast<int>(mixtures[3]);
  for (int d = 0; d < in.mixtures; ++d) {
    const int64_t* of = &mixtures[6 * d];
    STD_TORCH_CHECK(of[1] == in.N && of[3] == in.M, "mixtures: of one size");
    STD_TORCH_CHECK(
        of[0] >= 0 && of[0] + of[1] <= std::min(y.size(0), sample_mask.size(0)) && of[2] >= 0 &&
            of[2] + of[3] <= std::min({x.size(0), mu.size(0), stds.size(0), component_mask.size(0)}),
        "mixtures: no such rows");
    STD_TORCH_CHECK(!alone || (of[0] == of[2] && of[1] == of[3]), "mixtures: the same rows");
    in.mixture[d] = {
        static_cast<int>(of[0]), static_cast<int>(of[2]), static_cast<int>(of[4]),
        static_cast<int>(of[5])};
  }
  return in;
}

// One tensor of scratch memory for all parts of a call: each costs the host a microsecond. Parts begin at
// multiples of 256 bytes.
class Scratch {
 public:
  int64_t add(int64_t bytes) {
    const int64_t at = size_;
    size_ += (bytes + 255) / 256 * 256;
    return at;
  }
  void allocate(const Tensor& like) {
    memory_.emplace(scratch(like, size_));
    base_ = static_cast<char*>(data_of(*memory_));
  }
  template <class T = void>
  T* at(int64_t offset) const { return reinterpret_cast<T*>(base_ + offset); }

 private:
  int64_t size_ = 0;
  std::optional<Tensor> memory_;
  char* base_ = nullptr;
};

}  // namespace fused_mi
