#!/usr/bin/env bash
# Measures compressed collectives on four emulated hosts at 1 Gbit/s and 100 Mbit/s and keeps the
# rows in results/.
# Usage: bench_cluster.sh BUILD [ARGUMENT of `thinwire bench all_reduce`...]
#
# THINWIRE_BENCH_HOSTS, THINWIRE_BENCH_RATES and THINWIRE_BENCH_BACKENDS override the setting.
set -euo pipefail
cd "$(dirname "$0")/.."

build=${1:?usage: bench_cluster.sh BUILD [ARGUMENT...]}
shift
hosts=${THINWIRE_BENCH_HOSTS:-4}
read -ra rates <<<"${THINWIRE_BENCH_RATES:-1gbit 100mbit}"
read -ra backends <<<"${THINWIRE_BENCH_BACKENDS:-gloo mpi}"
codecs="cast(bf16);quantize(bits=4);topk(density=0.01);onebit;powersgd(rank=4)"
mkdir -p results

# The hosts share this machine's cores: more threads a rank would only take them from each other.
export OMP_NUM_THREADS=1
for rate in "${rates[@]}"; do
  for backend in "${backends[@]}"; do
    launch=torchrun-env
    if [[ $backend == mpi ]]; then launch=mpirun; fi
    printf '\n== %s hosts, %s, %s\n' "$hosts" "$rate" "$backend"
    tests/cluster/cluster.py --hosts "$hosts" --rate "$rate" --launch "$launch" --no-prefix -- \
      "$build/bin/thinwire" bench all_reduce -b 32M -e 32M --backend "$backend" \
      --codec "$codecs" --json "results/all_reduce_${hosts}x${rate}_$backend.json" "$@"
  done
done
