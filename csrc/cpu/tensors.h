// Tensors as the kernels see them: a pointer, a type and strides; the last dimension is contiguous.
#pragma once

#include <cstdint>

// Code that is shared by the instruction paths must be inlined into each of them.
#define FUSED_MI_INLINE inline __attribute__((always_inline))

namespace fused_mi {

enum class Type { float32, float64, bfloat16, float16 };

FUSED_MI_INLINE int64_t size_of(Type type) {
  return type == Type::float64 ? 8 : type == Type::float32 ? 4 : 2;
}

// (rows, S, E)
struct View {
  char* data = nullptr;  // nullptr: absent
  int64_t row = 0;       // stride, in bytes
  int64_t position = 0;  // stride, in bytes
  Type type = Type::float32;

  FUSED_MI_INLINE char* at(int64_t r, int64_t s, int64_t e) const {
    return data + r * row + s * position + e * size_of(type);
  }
};

// (rows, S), non-zero = active
struct Mask {
  const uint8_t* data = nullptr;
  int64_t row = 0;
  int64_t position = 0;

  FUSED_MI_INLINE bool at(int64_t r, int64_t s) const {
    return data[r * row + s * position] != 0;
  }
};

struct Rows {
  int64_t start = 0, stop = 0;

  FUSED_MI_INLINE int64_t count() const {
    return stop - start;
  }
};

FUSED_MI_INLINE int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// How (positions, features) and the rows of a batch are cut into independent items. Depends on
// sizes alone, so that results do not depend on the number of threads.
struct Cut {
  static constexpr int64_t kWidth = 1024;     // most features of an item: long runs of memory
  static constexpr int64_t kLeastWidth = 128;
  static constexpr int64_t kItems = 64;       // enough for the cores of a machine
  static constexpr int64_t kLeastRows = 64;   // of a split: what its merge is worth

  int64_t positions = 0, features = 0, width = 0, blocks = 0, splits = 0, rows_per_split = 0;

  Cut() = default;
  Cut(int64_t positions, int64_t features, int64_t rows, bool wide)
      : positions(positions), features(features) {
    int64_t most_features = wide ? kWidth / 2 : kWidth;
    while (most_features > kLeastWidth && positions * ceil_div(features, most_features) < kItems) {
      most_features /= 2;
    }
    blocks = ceil_div(features, most_features);
    width = blocks == 0 ? 0 : ceil_div(ceil_div(features, blocks), 16) * 16;
    int64_t wanted = ceil_div(kItems, blocks * positions > 0 ? blocks * positions : 1);
    int64_t most = ceil_div(rows, kLeastRows);
    splits = wanted < most ? wanted : most;
    splits = splits > 1 ? splits : 1;
    rows_per_split = ceil_div(ceil_div(rows, splits), 4) * 4;
    splits = rows_per_split > 0 ? ceil_div(rows, rows_per_split) : 1;
  }

  FUSED_MI_INLINE int64_t tiles() const {
    return positions * blocks;
  }

  FUSED_MI_INLINE int width_at(int64_t e) const {
    return static_cast<int>(width < features - e ? width : features - e);
  }

  // Rows of one split of `rows`; empty where `rows` has fewer than another role.
  FUSED_MI_INLINE Rows part(Rows rows, int64_t split) const {
    int64_t start = rows.start + split * rows_per_split;
    int64_t stop = start + rows_per_split;
    return {start < rows.stop ? start : rows.stop, stop < rows.stop ? stop : rows.stop};
  }
};

}  // namespace fused_mi
