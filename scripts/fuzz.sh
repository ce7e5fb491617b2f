#!/usr/bin/env bash
# Builds the fuzz targets with libFuzzer and AddressSanitizer and runs each for some seconds. What they
# learn is kept in build/fuzz/corpus; an input that ends a target is left in build/fuzz/findings.
# Usage: fuzz.sh SECONDS JOBS [TARGET...]
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:?usage: fuzz.sh SECONDS JOBS [TARGET...]}
jobs=${2:?usage: fuzz.sh SECONDS JOBS [TARGET...]}
shift 2
targets=("$@")
if ((${#targets[@]} == 0)); then
  mapfile -t targets < <(sed -nE 's/^thinwire_fuzz\((\w+).*/\1/p' tests/fuzz/CMakeLists.txt)
fi

scripts/build.sh fuzz "$jobs" "${targets[@]/#/fuzz_}"
mkdir -p build/fuzz/findings
for target in "${targets[@]}"; do
  printf '\n== fuzz %s: %s s\n' "$target" "$seconds"
  corpus=build/fuzz/corpus/$target
  mkdir -p "$corpus"
  kept=()
  if [[ -d tests/fuzz/findings/$target ]]; then kept=("tests/fuzz/findings/$target"); fi
  # The seeds are inputs as well: the target writes them once.
  THINWIRE_FUZZ_SEEDS=$corpus build/fuzz/bin/fuzz/"fuzz_$target" -runs=0 >/dev/null 2>&1 || true
  build/fuzz/bin/fuzz/"fuzz_$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
    -print_final_stats=1 -artifact_prefix="build/fuzz/findings/$target-" "$corpus" "${kept[@]}" \
    2>&1 | tail -n 25
done
