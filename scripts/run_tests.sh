#!/usr/bin/env bash
# Runs every test of a build folder and prints, as the last line, how many passed.
# Usage: run_tests.sh BUILD [CTEST_ARGUMENT...]
set -uo pipefail
cd "$(dirname "$0")/.."

build=${1:?usage: run_tests.sh BUILD [CTEST_ARGUMENT...]}
shift
results=$build/test-results
most_again=5 # more failures than that are no accident
rm -rf "$results"
mkdir -p "$results"

printf '\n== test %s\n' "$build"
# One more than there are cores: a third of the tests' time is waiting for peers and for timeouts.
ctest --test-dir "$build" --parallel "$(($(nproc) + 1))" --output-on-failure --no-tests=error \
  --output-junit test-results/ctest.xml "$@" </dev/null
code=$?

# Tests with many processes can fail where others take the processor from them. A few that failed run
# again, alone; the summary names those that pass only then. What they said first is in first/.
failed=$build/Testing/Temporary/LastTestsFailed.log
again=()
if ((code != 0)) && [[ -e $failed ]] && (($(wc -l <"$failed") <= most_again)); then
  mkdir "$results/first"
  while IFS=: read -r _ name; do
    find "$results" -maxdepth 1 -name "$name.xml" -exec mv {} "$results/first" \;
    find "$results" -maxdepth 1 -name "$name.*.xml" -exec mv {} "$results/first" \;
  done <"$failed"
  printf '\n== again, alone: what failed\n'
  ctest --test-dir "$build" --rerun-failed --output-on-failure \
    --output-junit test-results/again.xml </dev/null
  again=(--again "$results/again.xml" --first "$results/first")
fi
python3 scripts/test_summary.py --ctest "$results/ctest.xml" "${again[@]}" "$results"
