# Sourced: mpirun_options RANKS sets the array MPIRUN_OPTIONS for a job on this machine alone.
# shellcheck shell=bash
mpirun_options() {
  local ranks=$1
  # Every rank gets its share of the cores: with Open MPI's own binding to one core the rank's
  # communication thread would compete with its computation even where cores are idle.
  local threads=$(($(nproc) / ranks))
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
  # Loopback and shared memory only. Containers often forbid reading another process's memory,
  # which Open MPI's shared-memory transport would try first and complain about.
  MPIRUN_OPTIONS=(-np "$ranks" --oversubscribe --bind-to none
    -mca btl "self,vader" -mca btl_vader_single_copy_mechanism none
    -mca oob_tcp_if_include lo)
  if ((EUID == 0)); then
    MPIRUN_OPTIONS+=(--allow-run-as-root)
  fi
}
