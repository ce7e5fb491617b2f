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
# One more than there are cores: a third of the tests' time is waiting for peers and for timeouts.
ctest --test-dir "$build" --parallel "$(($(nproc) + 1))" --output-on-failure --no-tests=error \
  --output-junit test-results/ctest.xml "$@" </dev/null
python3 scripts/test_summary.py --ctest "$results/ctest.xml" "$results"
