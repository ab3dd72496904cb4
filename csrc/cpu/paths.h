// The instruction paths: every kernel file is compiled once for each, into a namespace of its own.
//
// A path is chosen at run time. Code that runs before the choice (this header's users without
// FUSED_MI_PATH) is compiled for the baseline only; code of a path must not instantiate templates
// of the standard library, which the linker would share between the paths.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#define FUSED_MI_EACH_PATH(use) use(plain) use(avx2) use(avx512)
#else
#define FUSED_MI_EACH_PATH(use) use(plain)
#endif

namespace fused_mi {

enum class Path : int64_t { plain, avx2, avx512 };  // the last that is supported is the fastest

inline bool supported(Path path) {
  switch (path) {
    case Path::plain:
      return true;
#if defined(__x86_64__)
    case Path::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
          __builtin_cpu_supports("f16c");
    case Path::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
          supported(Path::avx2);
#endif
    default:
      return false;
  }
}

}  // namespace fused_mi

// `table(path)` of a kernel file that defines `const Type table` in the namespace of each path.
#define FUSED_MI_DECLARE_(path, Type, table) \
  namespace path {                           \
  extern const Type table;                   \
  }
#if defined(__x86_64__)
#define FUSED_MI_KERNELS(Type, table)                                            \
  FUSED_MI_DECLARE_(plain, Type, table)                                          \
  FUSED_MI_DECLARE_(avx2, Type, table)                                           \
  FUSED_MI_DECLARE_(avx512, Type, table)                                         \
  inline const Type& table(Path path) {                                          \
    return path == Path::avx512 ? avx512::table                                  \
        : path == Path::avx2    ? avx2::table                                    \
                                : plain::table;                                  \
  }
#else
#define FUSED_MI_KERNELS(Type, table)   \
  FUSED_MI_DECLARE_(plain, Type, table) \
  inline const Type& table(Path) {      \
    return plain::table;                \
  }
#endif
