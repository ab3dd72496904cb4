// Rows of any input type as rows of the accumulation type.
#pragma once

#include "vector.h"

namespace fused_mi::FUSED_MI_PATH {

template <class A, class In>
void convert_row(const In* from, A* to, int count) {
  over_vectors<float>(count, [&](int f, auto part) __attribute__((always_inline)) {
    V<float> value = load<float>(from + f, part);
    if constexpr (sizeof(A) == sizeof(float)) {
      store(to + f, value, part);
    } else {
      int lanes = count - f < kLanes<float> ? count - f : kLanes<float>;
      for (int i = 0; i < lanes; ++i) to[f + i] = static_cast<A>(value[i]);
    }
  });
}

// Rows of any type into A.
template <class A>
void convert_from(Type type, const char* from, A* to, int count) {
  if (type == Type::bfloat16) return convert_row(reinterpret_cast<const bfloat16*>(from), to, count);
  if (type == Type::float16) return convert_row(reinterpret_cast<const float16*>(from), to, count);
  for (int i = 0; i < count; ++i) {
    to[i] = static_cast<A>(
        type == Type::float32 ? reinterpret_cast<const float*>(from)[i]
                              : reinterpret_cast<const double*>(from)[i]);
  }
}

template <class A, class Out>
void narrow_row(const A* from, Out* to, int count) {
  for (int i = 0; i < count; ++i) narrow(static_cast<float>(from[i]), to[i]);
}

template <class A>
void convert_to(Type type, const A* from, char* to, int count) {
  if (type == Type::bfloat16) return narrow_row(from, reinterpret_cast<bfloat16*>(to), count);
  if (type == Type::float16) return narrow_row(from, reinterpret_cast<float16*>(to), count);
  if (type == Type::float32) {
    for (int i = 0; i < count; ++i) reinterpret_cast<float*>(to)[i] = static_cast<float>(from[i]);
  } else {
    for (int i = 0; i < count; ++i) reinterpret_cast<double*>(to)[i] = static_cast<double>(from[i]);
  }
}

template <class In>
struct TypeOf;
template <>
struct TypeOf<float> {
  static constexpr Type value = Type::float32;
};
template <>
struct TypeOf<double> {
  static constexpr Type value = Type::float64;
};
template <>
struct TypeOf<bfloat16> {
  static constexpr Type value = Type::bfloat16;
};
template <>
struct TypeOf<float16> {
  static constexpr Type value = Type::float16;
};

// `count` features of a row: where they are if they have the type In, else converted into `buffer`.
template <class In>
FUSED_MI_INLINE const In* read(
    const View& view, int64_t row, int64_t s, int64_t e, int count, In* buffer) {
  const char* from = view.at(row, s, e);
  if (view.type == TypeOf<In>::value) return reinterpret_cast<const In*>(from);
  if constexpr (sizeof(In) > 2) convert_from(view.type, from, buffer, count);
  return buffer;
}

// Calls body(In{}) with the type that all of `views` share, if it needs no buffer, else with A.
template <class A, class Body>
FUSED_MI_INLINE void with_input(const View* const* views, int count, Body&& body) {
  if constexpr (sizeof(A) == 4) {
    bool same = true;
    for (int i = 1; i < count; ++i) same = same && views[i]->type == views[0]->type;
    if (same && views[0]->type == Type::bfloat16) return body(bfloat16{});
    if (same && views[0]->type == Type::float16) return body(float16{});
  }
  body(A{});
}

}  // namespace fused_mi::FUSED_MI_PATH
