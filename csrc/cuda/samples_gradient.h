// d_y_i = sum_l u_il (y_i - c_l) / v_l of the samples: three operations of a pair and feature.
#pragma once

#include "pairs_gradient.h"

#include <type_traits>

namespace fused_mi {

template <class Tile>
GPU_KERNEL(Tile::THREADS, Tile::BLOCKS)
samples_gradient_kernel(const Pairs in) {
  using F = typename Tile::F;
  using T = typename Tile::T;
  Field<Tile> at(in.N, in);
  const int split = static_cast<int>(at.s / in.S);
  at.s %= in.S;
  const int begin = split * in.components_per_split, left = in.M - begin;
  const int stop = in.gradient_splits > 1 && left > in.components_per_split ? begin + in.components_per_split : in.M;
  auto& shared = gpu::shared<typename Tile::Shared>();
  const T eps = static_cast<T>(in.eps.get(0));
  const int thread = threadIdx.x;
  const auto here = [&](int i) { return in.sample(at.first_row + at.row + i, at.s); };
  Square<Tile> y, total = {};
  T shift[Tile::ACROSS], piece_shift[Tile::V];
  load_shift(in, at, shift);
  load_square(in.y, in.sample_start, at, in.E, here, y);
  const int piece = thread % Tile::PIECES * Tile::V;
  const int64_t piece_e = at.first_e + piece;
  GPU_UNROLL
  for (int j = 0; j < Tile::V; ++j) {
    piece_shift[j] = piece_e < in.E ? static_cast<const T*>(in.shift)[at.s * in.E + piece_e + j] : T(0);
  }
  GPU_UNROLL
  for (int i = 0; i < Tile::SIDE; ++i) {
    GPU_UNROLL
    for (int j = 0; j < Tile::ACROSS; ++j) y[i][j] = here(i) ? y[i][j] - shift[j] : T(0);
  }
  bool odd = false;

  pass_by<Tile>(
      begin, stop, shared,
      [&](int slab, typename Tile::Raw& raw, typename Tile::Ahead& ahead) {
        ahead.use = 0;
        GPU_UNROLL
        for (int i = 0; i < Tile::COPIES; ++i) {
          const int m = slab * Tile::DEPTH + (i * Tile::THREADS + thread) / Tile::PIECES;
          const bool use = piece_e < in.E && m < stop && in.component(m, at.s);
          ahead.use |= static_cast<unsigned>(use) << i;
          const int64_t row = in.component_start + m;
          fetch<F>(raw.first[i][thread], in.x, use ? in.x.at(row, at.s, piece_e) : 0, use);
          if (in.mu.data) {
            fetch<F>(raw.mu[i][thread], in.mu, use ? in.mu.at(row, at.s, piece_e) : 0, use);
          }
          fetch<F>(raw.stds[i][thread], in.stds, use ? in.stds.at(row, at.s, piece_e) : 0, use);
        }
        gpu::commit();
        GPU_UNROLL
        for (int i = 0; i < Tile::UPSTREAM; ++i) {
          const int k = i * Tile::THREADS + thread, m = slab * Tile::DEPTH + k % Tile::DEPTH;
          const int64_t n = at.first_row + k / Tile::DEPTH;
          const bool use = n < in.N && m < stop;
          ahead.upstream[i] = use ? static_cast<const T*>(in.upstream.data)[n * in.upstream_row + m] : T(0);
        }
      },
      [&](const typename Tile::Raw& raw, const typename Tile::Ahead& ahead, typename Tile::Ready& ready) {
        GPU_UNROLL
        for (int i = 0; i < Tile::COPIES; ++i) {
          const int local = (i * Tile::THREADS + thread) / Tile::PIECES;
          const bool use = ahead.use >> i & 1;
          const typename F::Raw x = raw.first[i][thread], stds = raw.stds[i][thread];
          typename F::Raw mu = x;
          if (in.mu.data) mu = raw.mu[i][thread];
          GPU_UNROLL
          for (int j = 0; j < Tile::V; ++j) {
            const T sigma = F::get(stds, j), r = gpu::inverse_root(gpu::fma(sigma, sigma, eps));
            T c = F::get(x, j) - piece_shift[j];
            if (in.mu.data) c += F::get(mu, j);
            odd |= use && irregular_root(r);
            ready.first[local][piece + j] = use ? r : T(0);
            ready.second[local][piece + j] = use ? c * r : T(0);
          }
        }
        GPU_UNROLL
        for (int i = 0; i < Tile::UPSTREAM; ++i) {
          const int k = i * Tile::THREADS + thread;
          ready.upstream[k % Tile::DEPTH][k / Tile::DEPTH] = ahead.upstream[i];
        }
      },
      [&](const typename Tile::Ready& ready) {
        GPU_UNROLL
        for (int k = 0; k < Tile::DEPTH; ++k) {
          T r[Tile::ACROSS], c[Tile::ACROSS], u[Tile::SIDE];
          operands(&ready.first[k][at.column], 4, r);
          operands(&ready.second[k][at.column], 4, c);
          operands(&ready.upstream[k][at.row], 4, u);
          GPU_UNROLL
          for (int i = 0; i < Tile::SIDE; ++i) {
            GPU_UNROLL
            for (int j = 0; j < Tile::ACROSS; ++j) {
              const T z = gpu::fma(y[i][j], r[j], -c[j]);
              total[i][j] = gpu::fma(u[i], z * r[j], total[i][j]);
            }
          }
        }
      });

  GPU_UNROLL
  for (int i = 0; i < Tile::SIDE; ++i) {
    GPU_UNROLL
    for (int j = 0; j < Tile::ACROSS; ++j) {
      total[i][j] = here(i) ? total[i][j] : T(0);
      odd |= !(gpu::size(total[i][j]) < gpu::infinity<T>());
    }
  }
  if (odd) gpu::raise(in.irregular);
  if constexpr (std::is_same_v<T, float>) {
    if (in.gradient_splits > 1) {
      const int64_t size = in.N * in.S * in.E;
      const View part{in.split_gradients + split * size, in.S * in.E, in.E, 1, Type::float32};
      return store_square(part, 0, in.N, at, in.E, false, total);
    }
  }
  store_square(in.d_y, in.sample_start, in.N, at, in.E, in.add, total);
}

}  // namespace fused_mi
