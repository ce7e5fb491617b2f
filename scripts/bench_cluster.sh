#!/usr/bin/env bash
# Measures compressed collectives on four emulated hosts at 1 Gbit/s and 100 Mbit/s, over Gloo and
# MPI, keeps the rows in results/ and prints how much faster each codec is than Gloo uncompressed.
# Usage: bench_cluster.sh BUILD [ARGUMENT of `thinwire bench all_reduce`...]
#
# THINWIRE_BENCH_HOSTS, THINWIRE_BENCH_RATES and THINWIRE_BENCH_BACKENDS override the setting;
# "local" among the rates is a link as fast as the machine, where the strategy is automatic.
set -euo pipefail
cd "$(dirname "$0")/.."

build=${1:?usage: bench_cluster.sh BUILD [ARGUMENT...]}
shift
hosts=${THINWIRE_BENCH_HOSTS:-4}
read -ra rates <<<"${THINWIRE_BENCH_RATES:-1gbit 100mbit local}"
read -ra backends <<<"${THINWIRE_BENCH_BACKENDS:-gloo mpi}"
codecs="cast(bf16);quantize(bits=4);topk(density=0.01);powersgd(rank=4);onebit"
mkdir -p results

# The hosts share this machine's cores: more threads a rank would only take them from each other.
export OMP_NUM_THREADS=1
for rate in "${rates[@]}"; do
  # A run of a slow link is long and repeats well; medians need few of them.
  link=(--rate "$rate")
  options=(-n 9 -w 2)
  case $rate in
    100mbit) options=(-n 3 -w 1) ;;
    local)
      link=()
      options=(-n 21 -w 3 --strategy auto)
      ;;
  esac
  files=()
  for backend in "${backends[@]}"; do
    launch=torchrun-env
    if [[ $backend == mpi ]]; then launch=mpirun; fi
    file=results/all_reduce_${hosts}x${rate}_$backend.json
    files+=("$file")
    printf '\n== %s hosts, %s, %s\n' "$hosts" "$rate" "$backend"
    # Only rank 0 prints; its lines without their prefix. A failure's lines come from all ranks.
    tests/cluster/cluster.py --hosts "$hosts" "${link[@]}" --launch "$launch" --no-prefix -- \
      "$build/bin/thinwire" bench all_reduce -b 32M -e 32M --backend "$backend" \
      --codec "$codecs" "${options[@]}" --json "$file" "$@"
  done
  printf '\n'
  python3 -B scripts/bench_ratios.py "$rate" "${files[@]}"
done
