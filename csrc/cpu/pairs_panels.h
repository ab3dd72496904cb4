// Rows of inputs as vectors that are ready for differences, `y r + (-c r)` with `r = 1 / sqrt(v)`.
//
// Both y and c are relative to a shift of the position and feature, so that an offset of the
// embeddings does not cost digits. Rows that do not contribute are left out, never multiplied by 0.
#pragma once

#include "pairs.h"
#include "variance_terms.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace fused_mi::FUSED_MI_PATH {

// Components in registers at a time.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kM = 4;
#else
constexpr int kM = 2;
#endif

// Cuts aligned memory into arrays; without memory, it measures.
struct Arena {
  char* memory;
  int64_t used = 0;

  template <class T>
  T* take(int64_t count) {
    int64_t at = used;
    used += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return memory ? reinterpret_cast<T*>(memory + at) : nullptr;
  }
};

template <class T>
FUSED_MI_INLINE void set(const Arena& arena, T* to, const T& value) {
  if (arena.memory) *to = value;
}

template <class A>
V<A> root(V<A> value) {
  for (int i = 0; i < kLanes<A>; ++i) value[i] = std::sqrt(value[i]);
  return value;
}

#if defined(__AVX512F__)
template <>
FUSED_MI_INLINE V<float> root<float>(V<float> value) {
  return (V<float>)_mm512_maskz_sqrt_ps(0xffff, (__m512)value);
}
template <>
FUSED_MI_INLINE V<double> root<double>(V<double> value) {
  return (V<double>)_mm512_maskz_sqrt_pd(0xff, (__m512d)value);
}
#elif defined(__AVX__)
template <>
FUSED_MI_INLINE V<float> root<float>(V<float> value) {
  return (V<float>)_mm256_sqrt_ps((__m256)value);
}
template <>
FUSED_MI_INLINE V<double> root<double>(V<double> value) {
  return (V<double>)_mm256_sqrt_pd((__m256d)value);
}
#endif

// a b + c, rounded once where there is an instruction for it.
FUSED_MI_INLINE V<float> multiply_add(V<float> a, V<float> b, V<float> c) {
#if defined(__AVX512F__)
  return (V<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (V<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (V<float>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

FUSED_MI_INLINE V<double> multiply_add(V<double> a, V<double> b, V<double> c) {
#if defined(__AVX512F__)
  return (V<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  return (V<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
  return (V<double>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

template <class A>
FUSED_MI_INLINE V<A> inverse_root(V<A> value) {
  return A(1) / root<A>(value);
}

#if defined(__AVX512F__)
// An estimate of 14 bits and a step of Newton's: division and root would take as long as 60 pairs.
template <>
FUSED_MI_INLINE V<float> inverse_root<float>(V<float> value) {
  V<float> x = (V<float>)_mm512_maskz_rsqrt14_ps(0xffff, (__m512)value);
  return multiply_add(x * 0.5f, multiply_add(value * x, -x, all<float>(1)), x);
}
#endif

// Where the vectors of a packed row go: `stride` vectors apart.
template <class A>
struct Column {
  V<A>* first;
  int64_t stride;

  FUSED_MI_INLINE V<A>& operator[](int64_t v) const {
    return first[v * stride];
  }
};

template <class A>
struct Centre {
  Column<A> root, centre;  // r, and -c r
  Column<A> slope{nullptr, 0};  // sigma / v; nullptr: not wanted
};

// Of the components of a block: the weights 1 / v, and with these weights the squares of what a
// difference is made of, x, the centre and the deviation from it.
template <class A>
struct Sizes {
  V<A>* weights = nullptr;  // nullptr: not wanted
  V<A>* squares = nullptr;

  void clear(int vectors) const {
    if (!weights) return;
    for (int v = 0; v < vectors; ++v) weights[v] = squares[v] = V<A>{};
  }
  FUSED_MI_INLINE Sizes from(int vector) const {
    return weights ? Sizes{weights + vector, squares + vector} : Sizes{};
  }
};

// A row, and the one that is packed after it, to be fetched meanwhile.
template <class In>
struct Row {
  const In* now;
  const char* next;

  FUSED_MI_INLINE void fetch(int f) const {
    __builtin_prefetch(next + f * static_cast<int64_t>(sizeof(In)));
  }
};

// Packs rows of one position and block, of both roles.
template <class A, class In>
struct Packer {
  const MomentsInputs& in;
  int64_t s, e;
  int width;
  A eps;
  const A* shift;
  Range<A> range;  // of components whose slope is wanted
  alignas(64) A shift_buffer[PairsCut::kDepth];
  alignas(64) In buffers[3][sizeof(In) > 2 ? PairsCut::kDepth : 1];

  Packer(
      const MomentsInputs& in, const Mixture& mixture, const Position& position, int64_t s,
      int64_t e, int width)
      : in(in),
        s(s),
        e(e),
        width(width),
        eps(static_cast<A>(mixture.component_eps)) {
    shift = read(in.x, position.first_component, s, e, width, shift_buffer);
    if constexpr (sizeof(A) == 8) make_finite(mixture, position);
  }

  // `to(j)`: where row j of the list goes; lanes beyond the width become 0.
  template <class To>
  FUSED_MI_INLINE void samples(const int32_t* rows, int count, int64_t start, To&& to) {
    for (int j = 0; j < count; ++j) {
      Row<In> y = row(in.y, rows, count, j, start, buffers[0]);
      Column<A> out = to(j);
      over_vectors<A>(width, [&](int f, auto part) __attribute__((always_inline)) {
        y.fetch(f);
        out[f / kLanes<A>] = load<A>(y.now + f, part) - load<A>(shift + f, part);
      });
    }
  }

  template <class To>
  FUSED_MI_INLINE void components(
      const int32_t* rows, int count, int64_t start, const Sizes<A>& sizes, To&& to) {
    for (int j = 0; j < count; ++j) {
      Row<In> x = row(in.x, rows, count, j, start, buffers[0]);
      Row<In> mu = row(in.mu, rows, count, j, start, buffers[1]);
      Row<In> sigma = row(in.stds, rows, count, j, start, buffers[2]);
      Centre<A> out = to(j);
      component(x, mu, sigma, sizes, out);
    }
  }

  // Whether the shift is far from all that weighs: differences from it have lost their digits.
  bool far(const Sizes<A>& sizes) const {
    const A farthest = static_cast<A>(in.farthest_shift(sizeof(A) == 8));
    Bits<A> found{};
    over_vectors<A>(width, [&](int f, auto part) __attribute__((always_inline)) {
      const int v = f / kLanes<A>;
      V<A> from = load<A>(shift + f, part);
      found |= (from * sizes.weights[v]) * from > farthest * sizes.squares[v];
    });
    return any<A>(found);
  }

 private:
  FUSED_MI_INLINE Row<In> row(
      const View& view, const int32_t* rows, int count, int j, int64_t start, In* buffer) const {
    const int32_t next = rows[j + 1 < count ? j + 1 : j];
    return {read(view, start + rows[j], s, e, width, buffer), view.at(start + next, s, e)};
  }

  FUSED_MI_INLINE void component(
      const Row<In>& x, const Row<In>& mu, const Row<In>& sigma, const Sizes<A>& sizes,
      const Centre<A>& out) {
    over_vectors<A>(width, [&](int f, auto part) __attribute__((always_inline)) {
      sigma.fetch(f);
      x.fetch(f);
      mu.fetch(f);
      V<A> of_row = load<A>(sigma.now + f, part), variance = of_row * of_row + eps;
      V<A> r = inside<A>(inverse_root<A>(variance), V<A>{}, part);
      V<A> value = load<A>(x.now + f, part), from = load<A>(shift + f, part);
      V<A> deviation = (value - from) + load<A>(mu.now + f, part);
      const int v = f / kLanes<A>;
      out.root[v] = r;
      out.centre[v] = -deviation * r;
      if (sizes.weights) {
        V<A> size = value * r, centre = (deviation + from) * r;
        sizes.weights[v] += r * r;
        sizes.squares[v] += (size * size + centre * centre) + A(1);
      }
      if (!out.slope.first) return;
      out.slope[v] = of_row * (r * r);
      range.include(inside<A>(variance, all<A>(1), part));
    });
  }

  // An infinite shift would make every pair NaN: the next row instead whose value is finite, or 0.
  // In float64 alone: what is not finite leaves float32.
  void make_finite(const Mixture& mixture, const Position& position) {
    const A infinity = static_cast<A>(INFINITY);
    for (int f = 0; f < width; ++f) {
      if (std::fabs(shift[f]) < infinity) continue;
      if (shift != shift_buffer) std::memcpy(shift_buffer, shift, width * sizeof(A));
      shift = shift_buffer;
      A value = infinity, buffer;
      int64_t row = position.first_component + 1;
      for (; row < mixture.components.stop && !(std::fabs(value) < infinity); ++row) {
        if (!component_contributes(in, mixture, position, row, s)) continue;
        value = *read(in.x, row, s, e + f, 1, &buffer);
      }
      shift_buffer[f] = std::fabs(value) < infinity ? value : 0;
    }
  }
};

// The rows of a tile that contribute at a position, relative to its first ones.
struct Lists {
  int32_t *samples = nullptr, *components = nullptr;
  int sample_count = 0, component_count = 0;

  Lists() = default;
  Lists(Arena& arena, int64_t most_samples, int64_t most_components)
      : samples(arena.take<int32_t>(most_samples)),
        components(arena.take<int32_t>(most_components)) {}

  void copy(const Lists& other) {
    sample_count = other.sample_count;
    component_count = other.component_count;
    std::memcpy(samples, other.samples, sample_count * sizeof(int32_t));
    std::memcpy(components, other.components, component_count * sizeof(int32_t));
  }

  FUSED_MI_INLINE explicit operator bool() const {
    return sample_count > 0 && component_count > 0;
  }

  FUSED_MI_INLINE bool operator==(const Lists& other) const {
    return sample_count == other.sample_count && component_count == other.component_count &&
        std::memcmp(samples, other.samples, sample_count * sizeof(int32_t)) == 0 &&
        std::memcmp(components, other.components, component_count * sizeof(int32_t)) == 0;
  }

  void choose(
      const MomentsInputs& in, const Mixture& m, const Position& p, int64_t s, Rows of_samples,
      Rows of_components) {
    sample_count = component_count = 0;
    if (p.samples == 0 || p.components == 0) return;
    for (int64_t row = of_samples.start; row < of_samples.stop; ++row) {
      if (!sample_contributes(in, m, p, row, s)) continue;
      samples[sample_count++] = static_cast<int32_t>(row - of_samples.start);
    }
    for (int64_t row = of_components.start; row < of_components.stop; ++row) {
      if (!component_contributes(in, m, p, row, s)) continue;
      components[component_count++] = static_cast<int32_t>(row - of_components.start);
    }
  }
};

}  // namespace fused_mi::FUSED_MI_PATH
