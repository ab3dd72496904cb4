#!/usr/bin/env bash
# The kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer; one at a time,
# for together they take GCC several times as long to compile.
set -euo pipefail
cd "$(dirname "$0")/.."
CXX=${CXX:-g++}
KERNELS="variance moments moments_backward pairs pairs_backward logsumexp"
OUT=$(mktemp -d)
trap 'rm -rf "$OUT"' EXIT

declare -A PATHS=([plain]="")
if [ "$(uname -m)" = x86_64 ]; then
  PATHS[avx2]="-mavx2 -mfma -mf16c"
  PATHS[avx512]="-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c"
fi

run() {
  local flags="-std=c++20 -O1 -g1 -Wall -Wextra -ffp-contract=off -fno-omit-frame-pointer $1"
  for kernel in $KERNELS; do
    for path in "${!PATHS[@]}"; do
      echo "$CXX $flags ${PATHS[$path]} -DFUSED_MI_PATH=$path -c cpu/$kernel.cpp -o $OUT/$kernel.$path.o"
    done
  done | xargs -P "$(nproc)" -I{} sh -c "{}"
  $CXX $flags tests/driver.cpp "$OUT"/*.o -pthread -o "$OUT/driver"
  "$OUT/driver"
}

for sanitizer in address undefined thread; do
  echo "$sanitizer:"
  run "-fsanitize=$sanitizer -fno-sanitize-recover=all"
done
