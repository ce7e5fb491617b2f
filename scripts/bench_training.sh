#!/usr/bin/env bash
# Measures training steps beside PyTorch's own hooks on two emulated hosts of one core each: of a model
# that sends much and computes little at 25 Mbit/s, and of one that computes much at 1 Gbit/s.
# Usage: bench_training.sh BUILD [ARGUMENT of tests/bench/bench_training.py...]
set -euo pipefail
cd "$(dirname "$0")/.."

build=${1:?usage: bench_training.sh BUILD [ARGUMENT...]}
shift
export OMP_NUM_THREADS=1 PYTHONPATH=$PWD/$build/python
for case in embedding:25mbit convolutions:1gbit; do
  printf '\n== %s\n\n' "${case#*:}"
  # Only rank 0 prints; its lines without their prefix. A failure's lines come from all ranks.
  tests/cluster/cluster.py --hosts 2 --pin --rate "${case#*:}" --launch torchrun-env --no-prefix \
    --timeout 1200 -- .venv/bin/python -B tests/bench/bench_training.py --model "${case%:*}" "$@"
done
