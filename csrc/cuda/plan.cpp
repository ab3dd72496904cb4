// Grids of the kernels of a Jensen loss.
#include "jensen_launch.h"
#include "settle.h"

#include "finish.h"
#include "rows.h"
#include "accumulate.h"
#include "prepare.h"

#include <algorithm>

namespace fused_mi {
namespace {

constexpr int64_t kMostLeast = 1024;   // blocks of a role: each block that follows reads what they found
constexpr int64_t kMostSplits = 512;   // of a batch
constexpr int64_t kLeastGroups = 2;    // of rows of a thread: fewer, and parts are as much as the rows

// The least power of two that is no less.
int64_t power_of_two(int64_t n) {
  int64_t found = 1;
  while (found < n) found *= 2;
  return found;
}

template <int WIDTH = 4>
int width_of(std::initializer_list<const View*> views, int64_t E, bool wide) {
  int width = 1;
  with_format<WIDTH>(views, E, wide, [&](auto format) {
    width = decltype(format)::V;
    return static_cast<const char*>(nullptr);
  });
  return width;
}

}  // namespace

void plan_least(Jensen& in, int multiprocessors) {
  int64_t most = 0;
  for (int r = 0; r < in.roles; ++r) most = std::max<int64_t>(most, in.role[r].rows);
  const int64_t useful = ceil_div(most * in.S, kPrepare / 32);
  in.least_parts = std::clamp<int64_t>(useful, 1, std::min<int64_t>(kMostLeast, 8 * multiprocessors));
}

void plan_jensen(Jensen& in, int multiprocessors) {
  plan_least(in, multiprocessors);
  const std::initializer_list<const View*> inputs = {&in.y, &in.x, &in.mu, &in.stds};
  const int V = in.alone ? width_of<kAloneWidth>(inputs, in.E, in.wide) : width_of(inputs, in.E, in.wide);
  const int64_t vectors = ceil_div(in.E, V);
  in.columns = static_cast<int>(std::min<int64_t>(power_of_two(vectors), kAccumulate));
  in.tiles = ceil_div(vectors, in.columns);
  const int64_t block = kGroup * (kAccumulate / in.columns);  // rows at once
  const int64_t rows = std::max(in.N, in.M), programs = in.tiles * in.S * in.mixtures;
  const int64_t fill = ceil_div(12 * multiprocessors, std::max<int64_t>(programs, 1));
  const int64_t wanted = std::min({fill, kMostSplits, ceil_div(rows, kLeastGroups * block)});
  const int64_t splits = std::max(wanted, ceil_div(rows, kListed));
  const int64_t per_split = ceil_div(ceil_div(rows, std::max<int64_t>(splits, 1)), block) * block;
  in.splits = static_cast<int>(std::max<int64_t>(ceil_div(rows, std::min<int64_t>(per_split, kListed)), 1));
  in.samples_per_split = static_cast<int>(ceil_div(in.N, in.splits));
  in.components_per_split = static_cast<int>(ceil_div(in.M, in.splits));
  in.accumulated = in.tiles * in.S * in.splits;
  in.looks = ceil_div(in.E, kLook);
  in.finished = in.looks * in.S;
}

void plan_gradient(Gradient& in, int multiprocessors) {
  const Jensen& of = in.of;
  const int V = width_of(
      {&of.y, &of.x, &of.mu, &of.stds, &in.d_y, &in.d_x, &in.d_mu, &in.d_stds}, of.E, of.wide);
  const int64_t vectors = ceil_div(of.E, V);
  in.columns = static_cast<int>(std::min<int64_t>(power_of_two(vectors), kGradient));
  in.tiles = ceil_div(vectors, in.columns);
  in.looks = ceil_div(of.E, kLook);
  const int64_t streams = kGradient / in.columns, programs = in.tiles * of.S;
  for (Pass& pass : in.pass) {
    const int64_t fill = ceil_div(8 * multiprocessors, std::max<int64_t>(programs, 1));
    const int64_t of_rows = ceil_div(pass.rows, 32 * streams);
    const int64_t blocks = std::max(of_rows, std::min(fill, ceil_div(pass.rows, 4 * streams)));
    pass.rows_per_block = static_cast<int>(ceil_div(pass.rows, std::max<int64_t>(blocks, 1)));
    pass.blocks = pass.rows ? programs * ceil_div(pass.rows, pass.rows_per_block) : 0;
  }
}

Bytes::Bytes(const Jensen& in) {
  const int64_t number = bytes_of_number(in), plane = in.S * in.E;
  const int64_t parts_of_all = in.splits > 1 ? static_cast<int64_t>(in.mixtures) * in.splits : 0;
  least = in.roles * in.least_parts * number;
  parts = parts_of_all * (in.alone ? kAlonePlanes : kHalvesPlanes) * plane * number;
  samples = parts_of_all * in.S * number;
  sums = in.mixtures * in.accumulated * 3 * 8;
  merged = in.mixtures * in.finished * 3 * 8;
}

}  // namespace fused_mi
