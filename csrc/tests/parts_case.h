// Rows in three parts, as of ranks: told apart, merged, and pulled by what the others told, against the kernels
// of the whole batch, which naive loops check.
#pragma once

#include "../cpu/moments_launch.h"
#include "arrays.h"

#include <array>

namespace {

// The rows [start, stop) of a batch.
struct Part {
  MomentsInputs in;
  std::vector<Mixture> mixtures;
  std::vector<Pass> passes;

  Part(const MomentsInputs& whole, const std::vector<Pass>& of_whole, Rows rows) : in(whole) {
    for (View* view : {&in.y, &in.x, &in.mu, &in.stds}) view->data = view->at(rows.start, 0, 0);
    for (Mask* mask : {&in.sample_mask, &in.component_mask}) mask->data += rows.start * mask->row;
    for (int64_t d = 0; d < whole.count; ++d) {
      Mixture m = whole.mixtures[d];
      m.samples = inside(m.samples, rows), m.components = inside(m.components, rows);
      mixtures.push_back(m);
    }
    in.mixtures = mixtures.data();
    for (Pass pass : of_whole) {
      pass.rows = inside(pass.rows, rows);
      passes.push_back(pass);
    }
  }
  Part(const Part&) = delete;  // `in` points into it

  static Rows inside(Rows range, Rows rows) {
    auto clip = [&](int64_t row) {
      return (row < rows.start ? rows.start : row > rows.stop ? rows.stop : row) - rows.start;
    };
    return {clip(range.start), clip(range.stop)};
  }
};

void run_parts(
    const MomentsInputs& in, const std::vector<Pass>& passes, const Array& y,
    const std::vector<double>& upstream, const double* sums, double scale,
    const std::array<std::vector<char>, 4>& gradients, Path path) {
  const int64_t rows = y.rows, S = in.S, E = in.E, D = in.count, plane = 6 * S * E;
  std::vector<int64_t> partners(D * 2 * S);
  for (int64_t d = 0; d < D; ++d) {
    const Mixture& m = in.mixtures[d];
    for (int64_t s = 0; s < S; ++s) {
      for (int64_t l = m.components.start; l < m.components.stop; ++l) {
        partners[2 * d * S + s] += in.component_mask.at(l, s);
      }
      for (int64_t i = m.samples.start; i < m.samples.stop; ++i) {
        partners[(2 * d + 1) * S + s] += in.sample_mask.at(i, s);
      }
    }
  }
  const bool wide = in.wide || scale != 1;  // of what is told: float32 has no room for 1 / v
  const int64_t size = wide ? 8 : 4;
  const Rows parts[] = {{0, rows / 3}, {rows / 3, rows / 3}, {rows / 3, rows}};  // one has none
  constexpr int64_t kParts = 3;
  for (int threads : {1, 3}) {
    std::vector<char> planes(D * kParts * plane * size);
    std::vector<int64_t> counts(D * kParts * S);
    std::vector<double> total(D * 3);
    for (int64_t p = 0; p < kParts; ++p) {
      Part part(in, passes, parts[p]);
      part.in.partners = partners.data(), part.in.partners_row = S;
      std::vector<char> told(D * plane * size);
      std::vector<double> said(D * 3);
      const bool done =
          launch_parts(part.in, told.data(), wide, said.data(), path, Threads{threads});
      check("parts: done", done, true, 0, 0);
      auto positions = positions_of(part.in);
      moments_kernels(path).positions(part.in, positions.get(), 0, S);
      for (int64_t d = 0; d < D; ++d) {
        std::memcpy(
            planes.data() + (d * kParts + p) * plane * size, told.data() + d * plane * size,
            plane * size);
        for (int64_t s = 0; s < S; ++s) {
          counts[(d * kParts + p) * S + s] = positions[d * S + s].samples;
        }
        for (int j = 0; j < 3; ++j) total[3 * d + j] += said[3 * d + j];
      }
    }
    Merge merge;
    merge.planes = planes.data(), merge.wide = wide, merge.counts = counts.data();
    merge.count = D, merge.sets = kParts, merge.n = S * E, merge.positions = S, merge.features = E;
    std::vector<char> merged(D * plane * size);
    merge.merged = merged.data();
    std::vector<double> of_q(D);
    check("merge: room", launch_merge(merge, of_q.data(), path, Threads{threads}), true, 0, 0);
    for (int64_t d = 0; d < D; ++d) {
      total[3 * d] += of_q[d];
      const double most = std::fabs(sums[3 * d]) + std::fabs(sums[3 * d + 1]) + std::fabs(sums[3 * d + 2]);
      for (int j = 0; j < 3; ++j) {
        check("parts: sum", total[3 * d + j], sums[3 * d + j], most, in.wide ? 1e-12 : 4e-6);
      }
    }
    // Every part meets all others, and not itself: as many sets, other numbers.
    merge.apart = true;
    std::vector<char> others(D * kParts * plane * size);
    merge.merged = others.data();
    check("merge: room", launch_merge(merge, of_q.data(), path, Threads{threads}), true, 0, 0);

    std::vector<double> told(D * plane);
    for (int64_t i = 0; i < D * plane; ++i) {
      float single = 0;
      if (wide) {
        std::memcpy(&told[i], merged.data() + i * 8, 8);
      } else {
        std::memcpy(&single, merged.data() + i * 4, 4);
        told[i] = single;
      }
    }
    for (int64_t p = 0; p < kParts; ++p) {
      const int64_t own = parts[p].count();
      if (own == 0) continue;
      Part part(in, passes, parts[p]);
      part.in.partners = partners.data(), part.in.partners_row = S;
      std::array<Array, 4> found = {
          Array(own, S, E, y.type, false), Array(own, S, E, y.type, false),
          Array(own, S, E, y.type, false), Array(own, S, E, y.type, false)};
      MomentsBackward call;
      call.in = part.in;
      call.state = reinterpret_cast<const char*>(told.data());
      call.upstream = upstream.data();
      call.passes = part.passes.data(), call.pass_count = static_cast<int64_t>(part.passes.size());
      call.d_y = found[0].view(), call.d_x = found[1].view();
      call.d_mu = found[2].view(), call.d_stds = found[3].view();
      check("pull: done", launch_pull(call, path, Threads{threads}), true, 0, 0);
      for (int which = 0; which < 4; ++which) {
        Array whole(rows, S, E, y.type, false);
        whole.data = gradients[which];
        double largest = 0;
        for (int64_t i = 0; i < rows * S * E; ++i) {
          largest = std::fmax(largest, std::fabs(whole.get(i / (S * E), i / E % S, i % E)));
        }
        for (int64_t i = 0; i < own * S * E; ++i) {
          const int64_t b = i / (S * E), s = i / E % S, e = i % E;
          check(
              "pull: gradient", scale * found[which].get(b, s, e),
              scale * whole.get(parts[p].start + b, s, e), scale * largest,
              precision_of(y.type, in.wide));
        }
      }
    }
  }
}

}  // namespace
