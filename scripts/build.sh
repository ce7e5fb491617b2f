#!/usr/bin/env bash
# Configures a preset where needed and builds it.
# Usage: build.sh PRESET JOBS [--configure-only | TARGET...]
set -euo pipefail
cd "$(dirname "$0")/.."

preset=${1:?usage: build.sh PRESET JOBS [--configure-only | TARGET...]}
jobs=${2:?usage: build.sh PRESET JOBS [--configure-only | TARGET...]}
shift 2

# Ninja configures again by itself when a CMake file changes. Another LibTorch than the one that
# was configured, a change of the preset, or an nvcc that came since needs a configure from here.
folder=build/$preset
configured=$folder/configured.stamp
nvcc=$(compgen -G ".venv/lib/python*/site-packages/nvidia/cu*/bin/nvcc" || true)
key=$({ cat CMakePresets.json requirements.txt; echo "$nvcc"; } | sha256sum | cut -c1-64)
if [[ ! -f $folder/build.ninja || ! -f $configured || $(<"$configured") != "$key" ]]; then
  printf '\n== configure %s\n' "$preset"
  cmake --preset "$preset"
  echo "$key" >"$configured"
fi
if [[ ${1:-} == --configure-only ]]; then
  exit 0
fi

printf '\n== build %s\n' "$preset"
cmake --build "$folder" --parallel "$jobs" ${1:+--target "$@"}
