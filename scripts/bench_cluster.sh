#!/usr/bin/env bash
# Measures compressed collectives on two and four emulated hosts of one core each, in turns of this
# machine's, at 1 Gbit/s and 100 Mbit/s, over Gloo and MPI, keeps the rows in results/ and prints how
# much faster each codec is than Gloo uncompressed.
# Usage: bench_cluster.sh BUILD [ARGUMENT of `thinwire bench all_reduce`...]
#
# THINWIRE_BENCH_HOSTS, THINWIRE_BENCH_RATES and THINWIRE_BENCH_BACKENDS override the setting;
# "local" among the rates is a link as fast as the machine, where the strategy is automatic.
set -euo pipefail
cd "$(dirname "$0")/.."

build=${1:?usage: bench_cluster.sh BUILD [ARGUMENT...]}
shift
read -ra hosts <<<"${THINWIRE_BENCH_HOSTS:-2 4}"
read -ra rates <<<"${THINWIRE_BENCH_RATES:-1gbit 100mbit local}"
read -ra backends <<<"${THINWIRE_BENCH_BACKENDS:-gloo mpi}"
codecs="cast(bf16);quantize(bits=4);topk(density=0.01);powersgd(rank=4);onebit"
mkdir -p results

# The hosts share this machine's cores: more threads a rank would only take them from each other.
export OMP_NUM_THREADS=1
measure() { # HOSTS RATE BACKEND [ARGUMENT...]
  local hosts=$1 rate=$2 backend=$3 launch=torchrun-env
  shift 3
  # A run of a slow link is long and repeats well; medians need few of them.
  local link=(--rate "$rate") options=(-n 9 -w 2)
  case $rate in
    100mbit) options=(-n 3 -w 1) ;;
    local)
      link=()
      options=(-n 21 -w 3 --strategy auto)
      ;;
  esac
  if [[ $backend == mpi ]]; then launch=mpirun; fi
  printf '\n== %s hosts, %s, %s\n' "$hosts" "$rate" "$backend"
  # Only rank 0 prints; its lines without their prefix. A failure's lines come from all ranks.
  tests/cluster/cluster.py --hosts "$hosts" --pin "${link[@]}" --launch "$launch" --no-prefix -- \
    "$build/bin/thinwire" bench all_reduce -b 32M -e 32M --backend "$backend" \
    --codec "$codecs" "${options[@]}" --json "results/all_reduce_${hosts}x${rate}_$backend.json" "$@"
}

for count in "${hosts[@]}"; do
  for rate in "${rates[@]}"; do
    files=()
    for backend in "${backends[@]}"; do
      measure "$count" "$rate" "$backend" "$@"
      files+=("results/all_reduce_${count}x${rate}_$backend.json")
    done
    printf '\n%s hosts\n' "$count"
    python3 -B scripts/bench_ratios.py "$rate" "${files[@]}"
  done
done
