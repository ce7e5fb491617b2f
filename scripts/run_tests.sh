#!/usr/bin/env bash
# Runs every test of a build folder and prints, as the last line, how many passed.
# Usage: run_tests.sh BUILD [CTEST_ARGUMENT...]
set -uo pipefail
cd "$(dirname "$0")/.."

build=${1:?usage: run_tests.sh BUILD [CTEST_ARGUMENT...]}
shift
results=$build/test-results
rm -rf "$results"
mkdir -p "$results"

printf '\n== test %s\n' "$build"
ctest --test-dir "$build" --parallel "$(nproc)" --output-on-failure --no-tests=error \
  --output-junit test-results/ctest.xml "$@" </dev/null
python3 scripts/test_summary.py --ctest "$results/ctest.xml" "$results"
