#!/usr/bin/env bash
# Builds the tests of the core library under a sanitizer and runs them. The tests that load torch
# stay out: its libraries are not instrumented, so reports about them would mean nothing.
# Usage: run_sanitized.sh asan|tsan JOBS
set -euo pipefail
cd "$(dirname "$0")/.."

preset=${1:?usage: run_sanitized.sh asan|tsan JOBS}
jobs=${2:?usage: run_sanitized.sh asan|tsan JOBS}
scripts/build.sh "$preset" "$jobs" core_tests

export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1
scripts/run_tests.sh "build/$preset" --label-regex '^core$'
