#!/usr/bin/env bash
# The kernels and their driver, without torch: under AddressSanitizer together with
# UndefinedBehaviorSanitizer, and under ThreadSanitizer. With the argument `aarch64`: cross-compiled as
# they are installed, in an emulator.
set -euo pipefail
cd "$(dirname "$0")/.."
KERNELS="variance moments moments_backward merge pairs pairs_backward logsumexp online"
OUT=$(mktemp -d)
trap 'rm -rf "$OUT"' EXIT

declare -A PATHS=([plain]="")
if [ "${1:-$(uname -m)}" = x86_64 ]; then
  PATHS[avx2]="-mavx2 -mfma -mf16c"
  PATHS[avx512]="-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c"
fi

# Unoptimised, every access and every sum of the source is there to be checked, and GCC compiles both
# checks in less than half the time. For races one access of each kind is enough; -O1 runs faster.
declare -A BUILDS=(
  [address]="-O0 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"
  [thread]="-O1 -g1 -fsanitize=thread"
)
RUN=()
if [ "${1:-}" = aarch64 ]; then
  CXX=${CXX:-aarch64-linux-gnu-g++}
  BUILDS=([aarch64]="-O3 -fno-math-errno -fno-trapping-math")
  RUN=(qemu-aarch64 -L /usr/aarch64-linux-gnu)
elif setarch -R true 2> /dev/null; then
  RUN=(setarch -R)  # ThreadSanitizer finds no room between addresses that are randomised widely
fi

for build in "${!BUILDS[@]}"; do
  compile="${CXX:-g++} -std=c++20 -Wall -Wextra -ffp-contract=off ${BUILDS[$build]}"
  for kernel in $KERNELS; do
    for path in "${!PATHS[@]}"; do
      echo "$compile ${PATHS[$path]} -DFUSED_MI_PATH=$path -c cpu/$kernel.cpp -o $OUT/$build.$kernel.$path.o"
    done
  done
  echo "$compile -O1 -c tests/driver.cpp -o $OUT/$build.driver.o"  # naive loops: most of the run
done | xargs -d '\n' -P "$(nproc)" -I{} sh -c "{}"

for build in "${!BUILDS[@]}"; do
  ${CXX:-g++} ${BUILDS[$build]} "$OUT/$build".*.o -pthread -o "$OUT/$build"
  echo "${RUN[@]} $OUT/$build 2>&1 | sed 's/^/$build: /'"
done | xargs -d '\n' -P "$(nproc)" -I{} bash -o pipefail -c "{}"
