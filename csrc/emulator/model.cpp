// Compiled without ThreadSanitizer, which shall see the kernels alone; EMULATE_FOR_THREADS tells it what
// they do.
#include "model.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>

#ifdef EMULATE_FOR_THREADS
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_read_range(const void* at, unsigned long bytes);
extern "C" void __tsan_write_range(void* at, unsigned long bytes);
#define THREADS(...) __VA_ARGS__
#else
#define THREADS(...)
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define ADDRESS(...) __VA_ARGS__
#else
#define ADDRESS(...)
#endif

namespace emulator {

const Here* here = nullptr;
unsigned seed = 0;
Site left_out;
std::vector<Site> sites;

namespace {

constexpr size_t kWarp = 32;
constexpr size_t kStack = 64 << 10;
constexpr size_t kMostSites = 1000;

// All that have not ended wait for each other.
struct Meeting {
  int expected = 0, arrived = 0;
  unsigned phase = 0;
  char order[2] = {};  // addresses by which ThreadSanitizer knows who waited for whom
};

struct Warp {
  Meeting meeting;
  uint64_t values[2][kWarp];
};

struct Copy {
  void* to;
  const void* from;
  int bytes;
  bool valid;
};

struct Thread {
  Here here;
  Warp* warp = nullptr;
  size_t warp_begin = 0, warp_size = 0;
  bool done = false, waits = false;
  ucontext_t context;
  char* stack = nullptr;
  std::vector<std::vector<Copy>> committed;
  std::vector<Copy> issued;
  void *fiber = nullptr, *fake_stack = nullptr;
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Meeting meeting;
};

const std::function<void()>* kernel;
Block* block;
Thread* now;
ucontext_t scheduler;
[[maybe_unused]] void *scheduler_fiber, *scheduler_fake_stack;
[[maybe_unused]] const void* scheduler_bottom;
[[maybe_unused]] size_t scheduler_extent;
[[maybe_unused]] char end_of_launch;

void switch_to(Thread& t) {
  now = &t;
  here = &t.here;
  ADDRESS(__sanitizer_start_switch_fiber(&scheduler_fake_stack, t.stack, kStack);)
  THREADS(__tsan_switch_to_fiber(t.fiber, 1);)  // 1: this orders nothing
  swapcontext(&scheduler, &t.context);
  ADDRESS(__sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);)
}

void leave(Thread& t) {
  ADDRESS(__sanitizer_start_switch_fiber(
      t.done ? nullptr : &t.fake_stack, scheduler_bottom, scheduler_extent);)
  THREADS(__tsan_switch_to_fiber(scheduler_fiber, 1);)
  swapcontext(&t.context, &scheduler);
  ADDRESS(__sanitizer_finish_switch_fiber(t.fake_stack, nullptr, nullptr);)
}

void release_if_full(Meeting& m, Thread* first, size_t count) {
  if (m.arrived < m.expected || m.arrived == 0) return;
  m.arrived = 0;
  ++m.phase;
  for (size_t i = 0; i < count; ++i) first[i].waits = false;
}

void wait_at(Meeting& m, Thread* first, size_t count, [[maybe_unused]] bool orders) {
  Thread& t = *now;
  [[maybe_unused]] char* order = &m.order[m.phase & 1];
  THREADS(if (orders) __tsan_release(order);)
  t.waits = true;
  ++m.arrived;
  release_if_full(m, first, count);
  while (t.waits) leave(t);
  THREADS(if (orders) __tsan_acquire(order);)
}

void entry() {
  ADDRESS(__sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_extent);)
  Thread& t = *now;
  (*kernel)();
  for (const auto& group : t.committed) {
    const auto valid = [](const Copy& c) { return c.valid; };
    if (std::any_of(group.begin(), group.end(), valid)) fail("a copy that nobody waited for");
  }
  if (!t.issued.empty()) fail("a copy that was not committed");
  t.done = true;
  --t.warp->meeting.expected;
  release_if_full(t.warp->meeting, block->threads.data() + t.warp_begin, t.warp_size);
  --block->meeting.expected;
  if (block->meeting.arrived) fail("a thread ended while others wait for it at a barrier");
  THREADS(__tsan_release(&end_of_launch);)
  leave(t);
}

bool skipped(Site site) {
  if (const char* slash = std::strrchr(site.file, '/')) site.file = slash + 1;
  if (std::find(sites.begin(), sites.end(), site) == sites.end()) {
    if (sites.empty()) sites.reserve(kMostSites);  // it never moves: a sanitizer would look at that
    if (sites.size() == kMostSites) fail("more barriers and waits than there is room for");
    sites.push_back(site);
  }
  return site == left_out;
}

void prepare(Block& own, Dim at, Dim grid, Dim size, char* shared) {
  const size_t count = own.threads.size();
  own.meeting = {};
  own.meeting.expected = static_cast<int>(count);
  for (Warp& warp : own.warps) warp.meeting = {};
  for (size_t i = 0; i < count; ++i) {
    Thread& t = own.threads[i];
    const unsigned n = static_cast<unsigned>(i);
    t.here.thread = {n % size.x, n / size.x % size.y, n / size.x / size.y};
    t.here.block = at;
    t.here.block_size = size;
    t.here.grid = grid;
    t.here.lane = static_cast<int>(i % kWarp);
    t.here.shared = shared;
    t.warp = &own.warps[i / kWarp];
    t.warp_begin = i / kWarp * kWarp;
    t.warp_size = std::min(kWarp, count - t.warp_begin);
    ++t.warp->meeting.expected;
    t.done = t.waits = false;
    t.committed.clear();
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = t.stack;
    t.context.uc_stack.ss_size = kStack;
    t.context.uc_link = nullptr;
    makecontext(&t.context, entry, 0);
    THREADS(t.fiber = __tsan_create_fiber(0);)
  }
}

void execute(Block& own, std::mt19937& random) {
  block = &own;
  std::vector<size_t> order(own.threads.size());
  std::iota(order.begin(), order.end(), 0);
  for (size_t left = order.size(); left > 0;) {
    if (seed) std::shuffle(order.begin(), order.end(), random);
    bool moved = false;
    for (size_t i : order) {
      Thread& t = own.threads[i];
      if (t.done || t.waits) continue;
      switch_to(t);
      moved = true;
      left -= t.done;
    }
    if (!moved) fail("deadlock: threads of a block wait at different barriers");
  }
}

}  // namespace

void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s (block %u, thread %u)\n", what, here->block.x, here->thread.x);
  std::abort();
}

void barrier(Site site) {
  if (skipped(site)) return;
  wait_at(block->meeting, block->threads.data(), block->threads.size(), true);
}

const uint64_t* publish(uint64_t value) {
  Thread& t = *now;
  // The values of the exchange before may still be read.
  uint64_t* values = t.warp->values[t.warp->meeting.phase & 1];
  values[t.here.lane] = value;
  wait_at(t.warp->meeting, block->threads.data() + t.warp_begin, t.warp_size, false);
  return values;
}

void copy_async(void* to, const void* from, int bytes, bool valid) {
  if (reinterpret_cast<uintptr_t>(to) % bytes || reinterpret_cast<uintptr_t>(from) % bytes) {
    fail("an asynchronous copy that is not aligned");
  }
  auto overlaps = [&](const Copy& c) {
    return to < static_cast<char*>(c.to) + c.bytes && c.to < static_cast<char*>(to) + bytes;
  };
  for (const auto& group : now->committed) {
    if (std::any_of(group.begin(), group.end(), overlaps)) fail("two copies on their way to one place");
  }
  THREADS(__tsan_write_range(to, bytes);)
  std::memset(to, 0xff, bytes);
  now->issued.push_back({to, from, bytes, valid});
}

void commit() {
  now->committed.push_back(std::move(now->issued));
  now->issued.clear();
}

void wait(int left, Site site) {
  if (skipped(site)) return;
  auto& all = now->committed;
  while (static_cast<int>(all.size()) > left) {
    for (const Copy& c : all.front()) {
      THREADS(if (c.valid) __tsan_read_range(c.from, c.bytes); __tsan_write_range(c.to, c.bytes);)
      if (c.valid) {
        std::memcpy(c.to, c.from, c.bytes);
      } else {
        std::memset(c.to, 0, c.bytes);
      }
    }
    all.erase(all.begin());
  }
}

void run(Dim grid, Dim size, size_t shared_bytes, const std::function<void()>& call) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  kernel = &call;
  const size_t count = static_cast<size_t>(size.x) * size.y * size.z;
  const size_t padded = (shared_bytes + 127) / 128 * 128;
  std::mt19937 random(seed);
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::unique_ptr<char, decltype(&std::free)>> memory;
  auto allocate = [&](size_t bytes) {
    bytes = std::max<size_t>(bytes, 128);
    memory.emplace_back(static_cast<char*>(std::aligned_alloc(128, bytes)), &std::free);
    return memory.back().get();
  };
  char* shared = nullptr;
  THREADS(scheduler_fiber = __tsan_get_current_fiber();)
  for (size_t g = 0; g < static_cast<size_t>(grid.x) * grid.y * grid.z; ++g) {
    // To ThreadSanitizer, memory that is used anew would be memory that two blocks share, and a fiber
    // in the place of another one the same thread: there, each block has its own until all have ended.
#ifndef EMULATE_FOR_THREADS
    if (blocks.empty())
#endif
    {
      blocks.emplace_back(new Block);
      blocks.back()->threads = std::vector<Thread>(count);
      blocks.back()->warps = std::vector<Warp>((count + kWarp - 1) / kWarp);
      for (Thread& t : blocks.back()->threads) t.stack = allocate(kStack);
      shared = allocate(padded);
    }
    std::memset(shared, 0xff, shared_bytes);  // NaN
    ADDRESS(__asan_poison_memory_region(shared + shared_bytes, padded - shared_bytes);)
    const unsigned n = static_cast<unsigned>(g);
    const Dim at = {n % grid.x, n / grid.x % grid.y, n / grid.x / grid.y};
    prepare(*blocks.back(), at, grid, size, shared);
    execute(*blocks.back(), random);
    ADDRESS(__asan_unpoison_memory_region(shared, padded);)
  }
  THREADS(for (auto& b : blocks) for (Thread& t : b->threads) __tsan_destroy_fiber(t.fiber);)
  THREADS(__tsan_acquire(&end_of_launch);)
}

}  // namespace emulator
