// d_c_l = sum_i u_il (c_l - y_i) / v_l, and the gradient of the stds of these rows in both roles: four
// operations of a pair and feature. Zeros where a row lacks a role.
#pragma once

#include "pairs_gradient.h"

namespace fused_mi {

template <class Tile>
GPU_KERNEL(Tile::THREADS, Tile::BLOCKS)
components_gradient_kernel(const Pairs in) {
  using F = typename Tile::F;
  using T = typename Tile::T;
  const Field<Tile> at(in.M, in);
  auto& shared = gpu::shared<typename Tile::Shared>();
  const int thread = threadIdx.x;
  const auto here = [&](int i) {
    return in.components && in.component(at.first_row + at.row + i, at.s);
  };
  const T eps = in.components ? static_cast<T>(in.eps.get(0)) : T(0);
  Square<Tile> r, c, of_centre = {}, of_squares = {};
  bool odd = false;
  if (in.components) {
    T shift[Tile::ACROSS];
    load_shift(in, at, shift);
    load_square(in.x, in.component_start, at, in.E, here, c);
    GPU_UNROLL
    for (int i = 0; i < Tile::SIDE; ++i) {
      GPU_UNROLL
      for (int j = 0; j < Tile::ACROSS; ++j) c[i][j] -= shift[j];
    }
    if (in.mu.data) {
      load_square(in.mu, in.component_start, at, in.E, here, r);
      GPU_UNROLL
      for (int i = 0; i < Tile::SIDE; ++i) {
        GPU_UNROLL
        for (int j = 0; j < Tile::ACROSS; ++j) c[i][j] += r[i][j];
      }
    }
    load_square(in.stds, in.component_start, at, in.E, here, r);
    GPU_UNROLL
    for (int i = 0; i < Tile::SIDE; ++i) {
      GPU_UNROLL
      for (int j = 0; j < Tile::ACROSS; ++j) {
        const bool use = here(i) && at.first_e + at.column + j < in.E;
        r[i][j] = gpu::inverse_root(gpu::fma(r[i][j], r[i][j], eps));
        odd |= use && irregular_root(r[i][j]);
        r[i][j] = use ? r[i][j] : T(0);
        c[i][j] = use ? c[i][j] * r[i][j] : T(0);
      }
    }
    const int piece = thread % Tile::PIECES * Tile::V;
    const int64_t piece_e = at.first_e + piece;
    T piece_shift[Tile::V];
    GPU_UNROLL
    for (int j = 0; j < Tile::V; ++j) {
      piece_shift[j] = piece_e < in.E ? static_cast<const T*>(in.shift)[at.s * in.E + piece_e + j] : T(0);
    }
    pass_by<Tile>(
        0, in.N, shared,
        [&](int slab, typename Tile::Raw& raw, typename Tile::Ahead& ahead) {
          ahead.use = 0;
          GPU_UNROLL
          for (int i = 0; i < Tile::COPIES; ++i) {
            const int n = slab * Tile::DEPTH + (i * Tile::THREADS + thread) / Tile::PIECES;
            const bool use = piece_e < in.E && in.sample(n, at.s);
            ahead.use |= static_cast<unsigned>(use) << i;
            fetch<F>(raw.first[i][thread], in.y, use ? in.y.at(in.sample_start + n, at.s, piece_e) : 0, use);
          }
          gpu::commit();
          GPU_UNROLL
          for (int i = 0; i < Tile::UPSTREAM; ++i) {
            const int k = i * Tile::THREADS + thread, n = slab * Tile::DEPTH + k / Tile::ROWS;
            const int64_t m = at.first_row + k % Tile::ROWS;
            const bool use = in.sample(n, at.s) && m < in.M;
            ahead.upstream[i] = use ? static_cast<const T*>(in.upstream.data)[n * in.upstream_row + m] : T(0);
          }
        },
        [&](const typename Tile::Raw& raw, const typename Tile::Ahead& ahead, typename Tile::Ready& ready) {
          GPU_UNROLL
          for (int i = 0; i < Tile::COPIES; ++i) {
            const int local = (i * Tile::THREADS + thread) / Tile::PIECES;
            const bool use = ahead.use >> i & 1;
            const typename F::Raw y = raw.first[i][thread];
            GPU_UNROLL
            for (int j = 0; j < Tile::V; ++j) {
              ready.first[local][piece + j] = use ? F::get(y, j) - piece_shift[j] : T(0);
            }
          }
          GPU_UNROLL
          for (int i = 0; i < Tile::UPSTREAM; ++i) {
            const int k = i * Tile::THREADS + thread;
            ready.upstream[k / Tile::ROWS][k % Tile::ROWS] = ahead.upstream[i];
          }
        },
        [&](const typename Tile::Ready& ready) {
          GPU_UNROLL
          for (int k = 0; k < Tile::DEPTH; ++k) {
            T y[Tile::ACROSS], u[Tile::SIDE];
            operands(&ready.first[k][at.column], 4, y);
            operands(&ready.upstream[k][at.row], 4, u);
            GPU_UNROLL
            for (int i = 0; i < Tile::SIDE; ++i) {
              GPU_UNROLL
              for (int j = 0; j < Tile::ACROSS; ++j) {
                const T z = gpu::fma(y[j], r[i][j], -c[i][j]), term = u[i] * z;
                of_centre[i][j] += term;
                of_squares[i][j] = gpu::fma(term, z, of_squares[i][j]);
              }
            }
          }
        });
    GPU_UNROLL
    for (int i = 0; i < Tile::SIDE; ++i) {
      GPU_UNROLL
      for (int j = 0; j < Tile::ACROSS; ++j) {
        of_centre[i][j] = here(i) ? -of_centre[i][j] * r[i][j] : T(0);
        odd |= !(gpu::size(of_centre[i][j]) < gpu::infinity<T>());
      }
    }
  }
  store_square(in.d_x, in.component_start, in.M, at, in.E, in.add, of_centre);
  store_square(in.d_mu, in.component_start, in.M, at, in.E, in.add, of_centre);
  if (in.d_stds.data) {
    const auto own = [&](int i) {
      const int64_t m = at.first_row + at.row + i;
      return in.own_active && m < in.M && in.own_active[m * in.S + at.s] != 0;
    };
    const T own_eps = in.own_active ? static_cast<T>(in.own_eps.get(0)) : T(0);
    // Once more, from a cache: in registers it would cost the loop its warps.
    load_square(in.stds, in.component_start, at, in.E, [&](int i) { return here(i) || own(i); }, c);
    GPU_UNROLL
    for (int i = 0; i < Tile::SIDE; ++i) {
      const int64_t number = (at.first_row + at.row + i) * in.S + at.s;
      const T logs = here(i) && in.of_logs ? static_cast<T>(in.of_logs[number]) : T(0);
      const T of_own = own(i) ? static_cast<T>(in.of_own[number]) : T(0);
      GPU_UNROLL
      for (int j = 0; j < Tile::ACROSS; ++j) {
        const T sigma = c[i][j];
        T pull = 0;
        if (here(i)) pull = sigma * r[i][j] * ((logs - of_squares[i][j]) * r[i][j]);
        if (own(i) && at.first_e + at.column + j < in.E) {
          const T root = gpu::inverse_root(gpu::fma(sigma, sigma, own_eps));
          odd |= irregular_root(root);
          pull += sigma * root * (of_own * root);
        }
        odd |= !(gpu::size(pull) < gpu::infinity<T>());
        of_squares[i][j] = pull;
      }
    }
    store_square(in.d_stds, in.component_start, in.M, at, in.E, in.add, of_squares);
  }
  if (odd) gpu::raise(in.irregular);
}

}  // namespace fused_mi
