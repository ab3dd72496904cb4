// Huge pages for large outputs: fresh memory costs more in page faults than the kernels cost.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fused_mi {

constexpr int64_t kHugePage = 1 << 21;

// FUSED_MI_HUGE_PAGES=0 leaves memory as it is.
inline bool huge_pages() {
  static const bool wanted = [] {
    const char* value = std::getenv("FUSED_MI_HUGE_PAGES");
    return value == nullptr || std::strcmp(value, "0") != 0;
  }();
  return wanted;
}

// Let the kernel back the whole huge pages of this memory by huge pages when it is first touched;
// does nothing where the system never gives any, or always does.
inline void prefer_huge_pages(char* data, int64_t bytes) {
#if defined(__linux__)
  if (bytes < 2 * kHugePage || !huge_pages()) return;
  uintptr_t begin = reinterpret_cast<uintptr_t>(data), end = begin + bytes;
  begin = (begin + kHugePage - 1) / kHugePage * kHugePage;
  end = end / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace fused_mi
