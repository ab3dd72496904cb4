// Which format serves the tensors of a call; for launches, not for kernels.
#pragma once

#include "elements.h"

#include <initializer_list>

namespace fused_mi {

inline int size_of(Type type) {
  return type == Type::float64 ? 8 : type == Type::float32 ? 4 : 2;
}

// Whether the views, where there are any, have elements of the first one's type in vectors of V.
inline bool packed(std::initializer_list<const View*> views, int64_t E, int V) {
  const Type type = (*views.begin())->type;
  for (const View* v : views) {
    if (!v->data) continue;
    const bool aligned = reinterpret_cast<uintptr_t>(v->data) % (V * size_of(type)) == 0;
    if (v->type != type || v->feature != 1 || v->row % V || v->position % V || !aligned) return false;
  }
  return E % V == 0;
}

// `call(format)` with the widest format that serves all views, of up to WIDTH elements and 16 bytes. With
// `wide` arithmetic is in float64.
template <int WIDTH = 4, class Call>
const char* with_format(
    std::initializer_list<const View*> views, int64_t E, bool wide, const Call& call) {
  const Type type = (*views.begin())->type;
  if (wide) return call(Loose<double>{});  // limited by arithmetic anyway
  if (type != Type::float64 && packed(views, E, WIDTH)) {
    if (type == Type::float32) return call(Packed<float, float, WIDTH>{});
    if (type == Type::bfloat16) return call(Packed<gpu::bfloat16, float, WIDTH>{});
    return call(Packed<gpu::float16, float, WIDTH>{});
  }
  return call(Loose<float>{});
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace fused_mi
