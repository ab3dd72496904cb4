// Tensors as the kernels see them, and how their elements are read and written.
#pragma once

#include "gpu.h"

namespace fused_mi {

enum class Type : int { float32, float64, bfloat16, float16 };

// (rows, S, E); strides in elements. data is nullptr where there is none.
struct View {
  void* data = nullptr;
  int64_t row = 0, position = 0, feature = 0;
  Type type = Type::float32;

  GPU_DEVICE int64_t at(int64_t r, int64_t s, int64_t e) const {
    return r * row + s * position + e * feature;
  }
};

// (rows, S), non-zero = active; strides in elements.
struct Mask {
  const uint8_t* data = nullptr;
  int64_t row = 0, position = 0;

  GPU_DEVICE bool at(int64_t r, int64_t s) const { return data[r * row + s * position] != 0; }
};

// A vector of float32 or float64.
struct Numbers {
  void* data = nullptr;
  bool wide = false;

  GPU_DEVICE double get(int64_t i) const {
    return wide ? static_cast<double*>(data)[i] : static_cast<double>(static_cast<float*>(data)[i]);
  }
  GPU_DEVICE void set(int64_t i, double value) const {
    if (wide) {
      static_cast<double*>(data)[i] = value;
    } else {
      static_cast<float*>(data)[i] = static_cast<float>(value);
    }
  }
};

// Where an element is; vectors lie side by side.
template <class F>
GPU_DEVICE int64_t place(const View& v, int64_t r, int64_t s, int64_t e) {
  return r * v.row + s * v.position + (F::V > 1 ? e : e * v.feature);
}

// A format reads V elements of a row at once, whose number V divides, as numbers of the type T.

// Elements of one type, side by side, vectors of them at multiples of their size.
template <class Element_, class T, int V_>
struct Packed {
  using Element = Element_;
  using Number = T;
  static constexpr int V = V_;
  using Raw = gpu::Vector<Element, V>;

  static GPU_DEVICE Raw load(const View& v, int64_t at) {
    return *reinterpret_cast<const Raw*>(static_cast<const Element*>(v.data) + at);
  }
  static GPU_DEVICE T get(const Raw& raw, int j) { return static_cast<T>(gpu::widened(raw.at[j])); }
  static GPU_DEVICE void store(const View& v, int64_t at, const T (&values)[V]) {
    Raw raw;
    GPU_UNROLL
    for (int j = 0; j < V; ++j) gpu::narrow(values[j], raw.at[j]);
    *reinterpret_cast<Raw*>(static_cast<Element*>(v.data) + at) = raw;
  }
};

// Anything, one by one.
template <class T>
struct Loose {
  using Element = T;
  using Number = T;
  static constexpr int V = 1;
  using Raw = gpu::Vector<T, 1>;

  static GPU_DEVICE Raw load(const View& v, int64_t at) {
    switch (v.type) {
      case Type::float32:
        return {static_cast<T>(static_cast<const float*>(v.data)[at])};
      case Type::float64:
        return {static_cast<T>(static_cast<const double*>(v.data)[at])};
      case Type::bfloat16:
        return {static_cast<T>(gpu::widened(static_cast<const gpu::bfloat16*>(v.data)[at]))};
      default:
        return {static_cast<T>(gpu::widened(static_cast<const gpu::float16*>(v.data)[at]))};
    }
  }
  static GPU_DEVICE T get(const Raw& raw, int) { return raw.at[0]; }
  static GPU_DEVICE void store(const View& v, int64_t at, const T (&values)[1]) {
    switch (v.type) {
      case Type::float32:
        return gpu::narrow(values[0], static_cast<float*>(v.data)[at]);
      case Type::float64:
        return gpu::narrow(values[0], static_cast<double*>(v.data)[at]);
      case Type::bfloat16:
        return gpu::narrow(values[0], static_cast<gpu::bfloat16*>(v.data)[at]);
      default:
        return gpu::narrow(values[0], static_cast<gpu::float16*>(v.data)[at]);
    }
  }
};

// One element as float64: for what is rarely needed.
GPU_DEVICE double element(const View& v, int64_t r, int64_t s, int64_t e) {
  return Loose<double>::load(v, v.at(r, s, e)).at[0];
}
GPU_DEVICE void set_element(const View& v, int64_t r, int64_t s, int64_t e, double value) {
  Loose<double>::store(v, v.at(r, s, e), {value});
}

// A sum or a minimum over the threads of a block, in a fixed order, in all of them; `slots` has room
// for one number of each warp. Begins and ends with a barrier.
template <int THREADS, class T, class Join>
GPU_DEVICE T over_block(T value, T* slots, Join join) {
  GPU_UNROLL
  for (int bits = 16; bits > 0; bits /= 2) value = join(value, gpu::exchange(value, bits));
  gpu::barrier();
  if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = value;
  gpu::barrier();
  value = slots[0];
  GPU_UNROLL
  for (int w = 1; w < THREADS / 32; ++w) value = join(value, slots[w]);
  return value;
}

template <int THREADS>
GPU_DEVICE double sum_over_block(double value, double* slots) {
  return over_block<THREADS>(value, slots, [](double a, double b) { return a + b; });
}

}  // namespace fused_mi
