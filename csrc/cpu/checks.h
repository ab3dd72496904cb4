// What the operators share: tensors as the kernels see them, checked, and threads.
#pragma once

#include "paths.h"
#include "tensors.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace fused_mi {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Threads {
  template <class Body>
  void operator()(int64_t begin, int64_t end, int64_t grain, const Body& body) const {
    if (end - begin <= grain) {  // nothing to share
      if (end > begin) body(begin, end);
    } else {
      torch::stable::parallel_for(begin, end, grain, body);
    }
  }
};

inline Path checked(int64_t path) {
  Path found = static_cast<Path>(path);
  STD_TORCH_CHECK(supported(found), "instruction path ", path, " is not supported here");
  return found;
}

inline Type type_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Type::float32;
    case ScalarType::Double:
      return Type::float64;
    case ScalarType::BFloat16:
      return Type::bfloat16;
    case ScalarType::Half:
      return Type::float16;
    default:
      STD_TORCH_CHECK(false, name, ": unsupported dtype");
  }
}

// (rows, S, E)
inline View view_of(const Tensor& t, const char* name, int64_t S, int64_t E) {
  STD_TORCH_CHECK(t.is_cpu(), name, ": expected a CPU tensor");
  STD_TORCH_CHECK(
      t.dim() == 3 && t.size(1) == S && t.size(2) == E, name, ": expected (rows, ", S, ", ", E, ")");
  STD_TORCH_CHECK(E <= 1 || t.stride(2) == 1, name, ": the last dimension must be contiguous");
  Type type = type_of(t, name);
  char* data = static_cast<char*>(const_cast<void*>(t.const_data_ptr()));
  return {data, t.stride(0) * size_of(type), t.stride(1) * size_of(type), type};
}

// (rows, S)
inline Mask mask_of(const Tensor& t, const char* name, int64_t S) {
  STD_TORCH_CHECK(
      t.is_cpu() && t.dim() == 2 && t.size(1) == S && t.scalar_type() == ScalarType::Bool, name,
      ": expected a bool CPU tensor (rows, ", S, ")");
  return {static_cast<const uint8_t*>(t.const_data_ptr()), t.stride(0), t.stride(1)};
}

inline void check_rows(Rows rows, const Tensor& t, const char* name) {
  STD_TORCH_CHECK(
      0 <= rows.start && rows.start <= rows.stop && rows.stop <= t.size(0), name, ": rows ",
      rows.start, " to ", rows.stop, " of ", t.size(0));
}

// Memory of a contiguous tensor of `count` elements.
inline char* output(const Tensor& t, const char* name, int64_t count, ScalarType type) {
  STD_TORCH_CHECK(
      t.is_cpu() && t.is_contiguous() && t.numel() == count && t.scalar_type() == type, name,
      ": expected a contiguous tensor of ", count, " elements of the right dtype");
  return static_cast<char*>(t.mutable_data_ptr());
}

// The components that N samples come from, each one of M.
inline const int64_t* origins_of(const Tensor& t, int64_t N, int64_t M) {
  const auto* origins =
      reinterpret_cast<const int64_t*>(output(t, "origins", N, ScalarType::Long));
  for (int64_t i = 0; i < N; ++i) {
    STD_TORCH_CHECK(0 <= origins[i] && origins[i] < M, "origins: no component ", origins[i]);
  }
  return origins;
}

}  // namespace fused_mi
