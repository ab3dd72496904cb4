// The execution model of CUDA on a CPU: what ../cuda/gpu.h needs of it; model.cpp has what it does.
//
// A fiber for each thread of a block, one block at a time. Fibers switch at barriers and exchanges
// alone, in an order that a seed decides. To ThreadSanitizer each is a thread, and what orders them
// are the barriers, not the switches: a missing barrier is found whatever the order was. Blocks are
// not ordered at all. Asynchronous copies write rubbish when they are issued, their values when they
// are waited for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

namespace emulator {

struct Dim {
  unsigned x = 1, y = 1, z = 1;
};

struct Here {  // of the thread that runs
  Dim thread, block, block_size, grid;
  int lane = 0;
  char* shared = nullptr;
};

// A call of `barrier` or `wait` in the sources of the kernels.
struct Site {
  const char* file = "";
  int line = 0;

  bool operator==(const Site& other) const {
    return line == other.line && !std::strcmp(file, other.file);
  }
};

extern const Here* here;
extern unsigned seed;  // of the order of the threads; 0: as they are numbered
extern Site left_out;  // it does nothing: for a test of the tests
extern std::vector<Site> sites;  // in the order in which they were met first

// Calls `kernel` in every thread; for one launch at a time in a process.
void run(Dim grid, Dim block, size_t shared_bytes, const std::function<void()>& kernel);

void barrier(Site site);
// The values of all lanes of a warp; orders no memory, as on a GPU.
const uint64_t* publish(uint64_t value);
void copy_async(void* to, const void* from, int bytes, bool valid);
void commit();
void wait(int left, Site site);
[[noreturn]] void fail(const char* what);

}  // namespace emulator
