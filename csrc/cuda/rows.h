// Lists of the rows that contribute, of a part of the batch at one position.
#pragma once

#include "jensen.h"

namespace fused_mi {

constexpr int kListed = 512;  // most rows of a part: the rounding error of a running sum grows with them
constexpr int kGroup = 4;     // rows that a thread holds at once

struct Entry {
  static constexpr unsigned SAMPLE = 1u << 14, COMPONENT = 1u << 15;
  uint16_t bits = 0;

  GPU_DEVICE int row() const { return bits & (SAMPLE - 1); }
  GPU_DEVICE bool sample() const { return bits & SAMPLE; }
  GPU_DEVICE bool component() const { return bits & COMPONENT; }
};

struct RowList {
  int warps[32];
  gpu::Vector<Entry, kGroup> groups[kListed / kGroup];
};

// The rows of [begin, end) of which `roles` (bits of an Entry) is not 0, in their order; how many. A call
// for the whole block.
template <int THREADS, class Roles>
GPU_DEVICE int list_rows(RowList& list, int begin, int end, Roles roles) {
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  Entry* entries = list.groups[0].at;
  int listed = 0;
  for (int first = begin; first < end; first += THREADS) {
    const unsigned bits = first + thread < end ? roles(first + thread) : 0;
    const unsigned votes = gpu::ballot(bits != 0);
    gpu::barrier();  // what was listed, or counted, before has been read
    if (lane == 0) list.warps[warp] = gpu::count_bits(votes);
    gpu::barrier();
    int before = listed;
    GPU_UNROLL
    for (int w = 0; w < THREADS / 32; ++w) {
      before += w < warp ? list.warps[w] : 0;
      listed += list.warps[w];
    }
    if (bits != 0) {
      const unsigned row = static_cast<unsigned>(first + thread - begin);
      entries[before + gpu::count_bits(votes & ((1u << lane) - 1))].bits =
          static_cast<uint16_t>(row | bits);
    }
  }
  gpu::barrier();
  return listed;
}

// A group of a list: where its rows begin, and which are there; FULL: all, in every role that is asked for.
template <bool FULL>
struct Group {
  gpu::Vector<Entry, kGroup> entries;
  int count;

  GPU_DEVICE int row(int i) const { return entries.at[FULL || i < count ? i : 0].row(); }
  GPU_DEVICE bool here(int i) const { return FULL || i < count; }
  GPU_DEVICE bool sample(int i) const { return FULL || (i < count && entries.at[i].sample()); }
  GPU_DEVICE bool component(int i) const { return FULL || (i < count && entries.at[i].component()); }
};

// Calls `add(entries, how many there are)` with each group of the threads of one of several streams.
template <class Add>
GPU_DEVICE void for_groups(
    const RowList& list, int count, int stream, int streams, const Add& add) {
  for (int g = stream; g * kGroup < count; g += streams) {
    const int left = count - g * kGroup;
    add(list.groups[g], left < kGroup ? left : kGroup);
  }
}

// The same with groups of four apart, in a loop of their own: `full(entries)`, and one `rest(entries, how
// many there are)` of one of the streams.
template <class Full, class Rest>
GPU_DEVICE void for_groups(
    const RowList& list, int count, int stream, int streams, const Full& full, const Rest& rest) {
  const int groups = count / kGroup;
  for (int g = stream; g < groups; g += streams) full(list.groups[g]);
  if (groups * kGroup < count && groups % streams == stream) {
    rest(list.groups[groups], count - groups * kGroup);
  }
}

// The columns of a thread, a vector of them, and its rows.
struct Place {
  int64_t s, e, column;  // column: of (S, E)
  bool inside;
  int thread, stream, streams;  // thread: along the features

  template <int THREADS, int V>
  static GPU_DEVICE Place of(const Jensen& in, int64_t tile, int64_t s) {
    Place p;
    p.thread = threadIdx.x % in.columns;
    p.stream = threadIdx.x / in.columns;
    p.streams = THREADS / in.columns;
    p.s = s;
    p.e = (tile * in.columns + p.thread) * V;
    p.inside = p.e < in.E;
    p.column = s * in.E + p.e;
    return p;
  }
};

}  // namespace fused_mi
