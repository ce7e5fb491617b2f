#!/usr/bin/env bash
# Builds the test programs under a sanitizer and runs them, those that load torch as well. LibTorch,
# Open MPI and what they load are not instrumented: what is reported inside them is suppressed, each
# line with its reason in tests/support/*.supp.
# Usage: run_sanitized.sh asan|tsan JOBS [TEST_REGEX]
set -euo pipefail
cd "$(dirname "$0")/.."

preset=${1:?usage: run_sanitized.sh asan|tsan JOBS [TEST_REGEX]}
jobs=${2:?usage: run_sanitized.sh asan|tsan JOBS [TEST_REGEX]}
tests=${3:-.}
if [[ $tests == . ]]; then
  scripts/build.sh "$preset" "$jobs" core_tests torch_tests
else
  scripts/build.sh "$preset" "$jobs" --configure-only
  targets=$(ctest --test-dir "build/$preset" --show-only=json-v1 --tests-regex "$tests" \
    --label-regex '^(core|torch)$' | python3 -c 'import json, re, sys
print(*{re.sub(r"_np[0-9]+$", "", test["name"]) for test in json.load(sys.stdin)["tests"]})')
  # shellcheck disable=SC2086  # one word for each target
  scripts/build.sh "$preset" "$jobs" $targets
fi

support=$PWD/tests/support
export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1
export LSAN_OPTIONS=suppressions=$support/lsan.supp:print_suppressions=0
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
# Where a mutex is locked in a library that is not instrumented and unlocked through one that is, or
# the other way round, ThreadSanitizer takes it for misuse or for held for ever; races it still finds.
export TSAN_OPTIONS=report_mutex_bugs=0:detect_deadlocks=0:halt_on_error=1:second_deadlock_stack=1:suppressions=$support/tsan.supp:print_suppressions=0
scripts/run_tests.sh "build/$preset" --label-regex '^(core|torch)$' --tests-regex "$tests"
