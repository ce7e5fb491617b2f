#!/usr/bin/env bash
# The main job: trains a small CNN on Fashion-MNIST on two ranks, uncompressed, with 4-bit gradients
# and with `auto`, and compares the three. Where this machine allows namespaces each rank has a host of
# its own, emulated, on a link of THINWIRE_RUN_RATE (100mbit); elsewhere, or with the rate "none", the
# ranks share this machine under mpirun, and nothing is gained by sending less.
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
rate=${THINWIRE_RUN_RATE:-100mbit}
mkdir -p results

source scripts/mpirun_options.sh
mpirun_options "$ranks"

why=""
if [[ $rate == none ]]; then
  why="as asked for by THINWIRE_RUN_RATE=none"
else
  why=$(python3 -B tests/support/emulated_hosts.py || true)
fi
if [[ -z $why ]]; then
  where="$ranks emulated hosts, links of $rate"
  # A core a host: ranks that see all cores start threads that take them from each other.
  start=(tests/cluster/cluster.py --hosts "$ranks" --pin --rate "$rate" --launch torchrun-env
    --timeout 3600 --no-prefix --)
else
  where="$ranks ranks on this machine"
  printf '\nThe ranks share this machine (%s): seconds show what coding costs, not what it gains.\n' \
    "$why"
  start=(mpirun "${MPIRUN_OPTIONS[@]}")
fi

train() {
  local label=$1 compression=$2
  shift 2
  printf '\n== %s: %s, %s epochs, compression %s\n' "$label" "$where" "$epochs" "$compression"
  rm -f "results/$label.jsonl"
  "${start[@]}" "$program" --backend auto --model cnn --epochs "$epochs" \
    --compression "$compression" --log "results/$label.jsonl" "$@" </dev/null
}

train dense identity "$@"
train quantize4 "quantize(bits=4)" "$@"
train auto auto "$@"

printf '\n== side by side (%s)\n' "$where"
python3 scripts/compare_runs.py results/dense.jsonl results/quantize4.jsonl results/auto.jsonl
