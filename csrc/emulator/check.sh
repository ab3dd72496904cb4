#!/usr/bin/env bash
# The CUDA kernels in the emulator, without torch: their values, under AddressSanitizer together with
# UndefinedBehaviorSanitizer, and under ThreadSanitizer. Then every barrier and every wait of the
# sources is left out in turn, which must be found: by wrong values, by the emulator or by
# ThreadSanitizer.
set -euo pipefail
cd "$(dirname "$0")/../cuda"
OUT=$(mktemp -d)
trap 'rm -rf "$OUT"' EXIT
export TSAN_OPTIONS="exitcode=66 report_bugs=1"
ALONE=()
setarch -R true 2> /dev/null && ALONE=(setarch -R)  # it finds no room between widely random addresses

declare -A BUILDS=(
  [plain]="-O1"
  [address]="-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"
  [thread]="-O1 -g1 -fsanitize=thread"
)
compile() {
  echo "${CXX:-g++} -std=c++20 -Wall -Wextra -Wno-unknown-pragmas -Wno-clobbered -ffp-contract=off ${BUILDS[$1]}"
}
for build in "${!BUILDS[@]}"; do
  mkdir "$OUT/$build"
  for source in *.cu plan.cpp ../emulator/driver.cpp; do
    echo "$(compile "$build") -x c++ -c $source -o $OUT/$build/$(basename "$source").o"
  done
  # ThreadSanitizer looks at the kernels alone: what orders them, the model tells it.
  own=$([ "$build" = thread ] && echo "-fno-sanitize=thread -DEMULATE_FOR_THREADS" || true)
  echo "$(compile "$build") $own -c ../emulator/model.cpp -o $OUT/$build/model.o"
done | xargs -d '\n' -P "$(nproc)" -I{} sh -c "{}"
for build in "${!BUILDS[@]}"; do
  ${CXX:-g++} ${BUILDS[$build]} "$OUT/$build"/*.o -o "$OUT/$build/driver"
done

for seed in 0 1 2; do echo "plain: seed $seed: $("$OUT/plain/driver" $seed)"; done
echo "address: $("$OUT/address/driver" 1)"
for name in halves alone pairs logsumexp online; do
  echo "thread: $name: $("${ALONE[@]}" "$OUT/thread/driver" 0 $name)"
done

# Which cases show most of what is in a file, for ThreadSanitizer takes seconds for one.
declare -A CASES=(
  [elements.h]="halves, float64" [rows.h]="alone, few" [prepare.h]="halves, float64"
  [accumulate.h]="halves, splits" [accumulate_alone.h]="alone, splits" [finish.h]="halves, lost"
  [pairs_tile.h]="pairs, small" [pairs_gradient.h]="pairs, small"
  [sum_weights.h]="online, positions"
)
found=0 missed=0
for site in $("$OUT/plain/driver" sites | grep :); do
  name=${CASES[${site%:*}]}
  how=""
  { "$OUT/plain/driver" without "$site" > "$OUT/log" 2>&1; } 2> /dev/null || how="values, or a crash"
  grep -q "^emulator:" "$OUT/log" && how="the emulator"
  if [ -z "$how" ]; then
    "${ALONE[@]}" "$OUT/thread/driver" without "$site" "$name" > "$OUT/log" 2>&1 || how="ThreadSanitizer"
  fi
  line=$(sed -n "${site#*:}p" "${site%:*}")
  if [ -n "$how" ]; then
    found=$((found + 1))
    echo "without $site: found by $how"
  elif [[ "$line" =~ redundant:\ (.*) ]]; then
    echo "without $site: redundant: ${BASH_REMATCH[1]}"
  else
    missed=$((missed + 1))
    echo "without $site: NOT FOUND"
  fi
done
for fault in index align; do
  if "$OUT/address/driver" plant $fault > "$OUT/log" 2>&1; then
    missed=$((missed + 1))
    echo "planted $fault: NOT FOUND"
  else
    found=$((found + 1))
    echo "planted $fault: found"
  fi
done
echo "$found faults found, $missed missed"
[ "$missed" = 0 ] && [ "$found" -ge 15 ]
