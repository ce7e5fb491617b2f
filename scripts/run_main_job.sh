#!/usr/bin/env bash
# The main job: trains a small CNN on Fashion-MNIST on two ranks, once uncompressed and once with
# 4-bit gradients, and compares the two.
# Usage: run_main_job.sh BUILD [ARGUMENT of train_fashion_mnist...]
#
# THINWIRE_RUN_EPOCHS sets the number of epochs, THINWIRE_RUN_RANKS the number of ranks.
set -euo pipefail
cd "$(dirname "$0")/.."

build=${1:?usage: run_main_job.sh BUILD [ARGUMENT of train_fashion_mnist...]}
shift
program=$build/bin/train_fashion_mnist
epochs=${THINWIRE_RUN_EPOCHS:-3}
ranks=${THINWIRE_RUN_RANKS:-2}
mkdir -p results

source scripts/mpirun_options.sh
mpirun_options "$ranks"

train() {
  local label=$1 compression=$2
  shift 2
  printf '\n== %s: %s ranks, %s epochs, compression %s\n' "$label" "$ranks" "$epochs" "$compression"
  rm -f "results/$label.jsonl"
  mpirun "${MPIRUN_OPTIONS[@]}" "$program" --backend auto --model cnn --epochs "$epochs" \
    --compression "$compression" --log "results/$label.jsonl" "$@" </dev/null
}

train dense identity "$@"
train quantize4 "quantize(bits=4)" "$@"

printf '\n== uncompressed and 4-bit gradients side by side\n'
python3 scripts/compare_runs.py results/dense.jsonl results/quantize4.jsonl
