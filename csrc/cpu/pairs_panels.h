// Rows of inputs as vectors that are ready for differences, `y r + (-c r)` with `r = 1 / sqrt(v)`.
//
// Both y and c are relative to a shift of the position and feature, so that an offset of the
// embeddings does not cost digits. Rows that do not contribute are left out, never multiplied by 0.
#pragma once

#include "moments.h"
#include "variance_terms.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace fused_mi::FUSED_MI_PATH {

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

constexpr int kGroup = 4;  // rows that are packed at a time

template <class A>
struct Centre {
  V<A> *root, *centre;    // r, and -c r
  V<A>* slope = nullptr;  // sigma / v; nullptr: not wanted
};

// Rows of one tensor, and those that are packed after them, to be fetched meanwhile.
template <class In>
struct Group {
  const In *now[kGroup], *next[kGroup];
};

// Packs rows of one position and block, of both roles.
template <class A, class In>
struct Packer {
  const MomentsInputs& in;
  int64_t s, e;
  int width;
  Stabiliser<A> stabiliser;
  const A* shift;
  alignas(64) A shift_buffer[512];
  alignas(64) In buffers[3][kGroup][sizeof(In) > 2 ? 512 : 1];

  Packer(
      const MomentsInputs& in, const Mixture& mixture, const Position& position, int64_t s,
      int64_t e, int width)
      : in(in), s(s), e(e), width(width), stabiliser(mixture.component_eps) {
    shift = read(in.x, position.first_component, s, e, width, shift_buffer);
  }

  // `rows`: `count` of a list, from place j on; the last again where there are fewer.
  FUSED_MI_INLINE Group<In> group(
      int which, const View& view, const int32_t* rows, int count, int j, int64_t start) {
    Group<In> group;
    for (int i = 0; i < kGroup; ++i) {
      int64_t now = start + rows[j + i < count ? j + i : count - 1];
      int64_t next = start + rows[j + i + kGroup < count ? j + i + kGroup : count - 1];
      group.now[i] = read(view, now, s, e, width, buffers[which][i]);
      bool direct = view.type == TypeOf<In>::value;
      group.next[i] = direct ? reinterpret_cast<const In*>(view.at(next, s, e)) : group.now[i];
    }
    return group;
  }

  // `to(j, v)` is where vector v of row j of the list goes; lanes beyond the width become 0.
  template <class To>
  FUSED_MI_INLINE void samples(const int32_t* rows, int count, int64_t start, To&& to) {
    for (int j = 0; j < count; j += kGroup) {
      Group<In> y = group(0, in.y, rows, count, j, start);
      over_vectors<A>(width, [&](int f, auto part) __attribute__((always_inline)) {
        V<A> first = load<A>(shift + f, part);
#pragma GCC unroll 4
        for (int i = 0; i < kGroup; ++i) {
          __builtin_prefetch(y.next[i] + f);
          *to(j + i < count ? j + i : count - 1, f / kLanes<A>) =
              load<A>(y.now[i] + f, part) - first;
        }
      });
    }
  }

  template <class To>
  FUSED_MI_INLINE void components(const int32_t* rows, int count, int64_t start, To&& to) {
    for (int j = 0; j < count; j += kGroup) {
      Group<In> x = group(0, in.x, rows, count, j, start);
      Group<In> mu = group(1, in.mu, rows, count, j, start);
      Group<In> sigma = group(2, in.stds, rows, count, j, start);
      if (!components<false>(x, mu, sigma, j, count, to)) {
        components<true>(x, mu, sigma, j, count, to);
      }
    }
  }

 private:
  template <bool CAREFUL, class To>
  FUSED_MI_INLINE bool components(
      const Group<In>& x, const Group<In>& mu, const Group<In>& sigma, int j, int count, To&& to) {
    Ordinary<A> ordinary;
    over_vectors<A>(width, [&](int f, auto part) __attribute__((always_inline)) {
      V<A> first = load<A>(shift + f, part);
#pragma GCC unroll 4
      for (int i = 0; i < kGroup; ++i) {
        __builtin_prefetch(sigma.next[i] + f);
        __builtin_prefetch(x.next[i] + f);
        __builtin_prefetch(mu.next[i] + f);
        Terms<A> t = variance_terms<CAREFUL, A>(load<A>(sigma.now[i] + f, part), stabiliser);
        if (!CAREFUL) ordinary.include(inside<A>(t.v, all<A>(1), part));
        V<A> centre = (load<A>(x.now[i] + f, part) - first) + load<A>(mu.now[i] + f, part);
        V<A> r = inside<A>(root<A>(t.precision), V<A>{}, part);
        Centre<A> out = to(j + i < count ? j + i : count - 1, f / kLanes<A>);
        *out.root = r;
        *out.centre = -centre * r;
        if (out.slope) *out.slope = t.slope;
      }
    });
    return CAREFUL || ordinary;
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
