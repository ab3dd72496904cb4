// Tensors of the operators as the kernels see them, checked; the device of a call.
#pragma once

#include "elements.h"

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace fused_mi {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

#ifdef FUSED_MI_EMULATED
constexpr bool kEmulated = true;
#else
constexpr bool kEmulated = false;
#endif

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

inline void check_device(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(
      kEmulated ? t.is_cpu() : t.is_cuda(), name, ": expected a ", kEmulated ? "CPU" : "CUDA", " tensor");
}

inline void* data_of(const Tensor& t) { return const_cast<void*>(t.const_data_ptr()); }

// (rows, S, E)
inline View view_of(const Tensor& t, const char* name, int64_t S, int64_t E) {
  check_device(t, name);
  STD_TORCH_CHECK(
      t.dim() == 3 && t.size(1) == S && t.size(2) == E, name, ": expected (rows, ", S, ", ", E, ")");
  return {data_of(t), t.stride(0), t.stride(1), E > 1 ? t.stride(2) : 1, type_of(t, name)};
}

inline View view_of(const std::optional<Tensor>& t, const char* name, int64_t S, int64_t E) {
  return t ? view_of(*t, name, S, E) : View{};
}

// (rows, S)
inline Mask mask_of(const Tensor& t, const char* name, int64_t S) {
  check_device(t, name);
  STD_TORCH_CHECK(
      t.dim() == 2 && t.size(1) == S && t.scalar_type() == ScalarType::Bool, name,
      ": expected a bool tensor (rows, ", S, ")");
  return {static_cast<const uint8_t*>(data_of(t)), t.stride(0), t.stride(1)};
}

// Memory of a contiguous tensor of `count` elements.
inline void* memory_of(const Tensor& t, const char* name, int64_t count, ScalarType type) {
  check_device(t, name);
  STD_TORCH_CHECK(
      t.is_contiguous() && t.numel() == count && t.scalar_type() == type, name,
      ": expected a contiguous tensor of ", count, " elements of the right dtype");
  return data_of(t);
}

inline Numbers numbers_of(const Tensor& t, const char* name, int64_t count) {
  const bool wide = t.scalar_type() == ScalarType::Double;
  return {memory_of(t, name, count, wide ? ScalarType::Double : ScalarType::Float), wide};
}

inline Tensor scratch(const Tensor& like, int64_t bytes) {
  return torch::stable::new_empty(like, {bytes > 0 ? bytes : 1}, ScalarType::Byte);
}

// The device of a tensor for as long as this lives, and its current stream. That of torch is found by
// name in the library that is loaded: an undefined symbol would keep this one from loading elsewhere.
class Device {
 public:
  explicit Device(const Tensor& t) {
    if (kEmulated) return;
    const int32_t index = t.get_device_index();
    guard_.emplace(index);
    using Get = AOTITorchError (*)(int32_t, void**);
    static const Get get = [] {
      void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
      return library ? reinterpret_cast<Get>(dlsym(library, "aoti_torch_get_current_cuda_stream"))
                     : nullptr;
    }();
    STD_TORCH_CHECK(get, "this torch has no CUDA");
    TORCH_ERROR_CODE_CHECK(get(index, &stream_));
  }
  void* stream() const { return stream_; }

 private:
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  void* stream_ = nullptr;
};

inline void check(const char* error) { STD_TORCH_CHECK(!error, "CUDA: ", error); }

}  // namespace fused_mi
