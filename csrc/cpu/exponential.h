// exp of a vector of float64, to about one unit in the last place.
#pragma once

#include "vector.h"

namespace fused_mi::FUSED_MI_PATH {

// Every double: 0 at -inf and wherever exp underflows, denormal above that, inf beyond 709.8, NaN.
FUSED_MI_INLINE V<double> exponential(V<double> x) {
  typedef uint64_t Words64 __attribute__((vector_size(kBytes)));
  constexpr double kLog2E = 1.4426950408889634, kRound = 0x1.8p52;
  constexpr double kLn2High = 0x1.62e42fefa38p-1, kLn2Low = 0x1.ef35793c7673p-45;
  // exp is 0 and inf from there on, and NaN compares false.
  x = x < -746.0 ? all<double>(-746) : x;
  x = x > 710.0 ? all<double>(710) : x;
  // exp(x) = 2^n exp(r) with |r| <= ln 2 / 2: the sum has n, rounded, in its last bits.
  V<double> sum = x * kLog2E + kRound, n = sum - kRound;
  V<double> r = (x - n * kLn2High) - n * kLn2Low;
  // Taylor's series, in even and odd powers: two short chains of operations.
  V<double> r2 = r * r;
  V<double> even = all<double>(1.0 / 479001600), odd = all<double>(1.0 / 6227020800);  // 12!, 13!
  even = even * r2 + 1.0 / 3628800, odd = odd * r2 + 1.0 / 39916800;                    // 10!, 11!
  even = even * r2 + 1.0 / 40320, odd = odd * r2 + 1.0 / 362880;                        // 8!, 9!
  even = even * r2 + 1.0 / 720, odd = odd * r2 + 1.0 / 5040;                            // 6!, 7!
  even = even * r2 + 1.0 / 24, odd = odd * r2 + 1.0 / 120;                              // 4!, 5!
  even = even * r2 + 1.0 / 2, odd = odd * r2 + 1.0 / 6;                                 // 2!, 3!
  V<double> power = 1.0 + (r + r2 * (even + r * odd));
  // 2^n in two factors, as n may be beyond the exponents of a double: denormals round once.
  Words64 exponent = (Words64)sum - (uint64_t)0x4338000000000000 + 2046;
  Words64 half = exponent >> 1, rest = exponent - half;
  return power * (V<double>)(half << 52) * (V<double>)(rest << 52);
}

}  // namespace fused_mi::FUSED_MI_PATH
