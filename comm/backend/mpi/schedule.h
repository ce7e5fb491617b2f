// The collectives as stages of messages between pairs of ranks.
//
// Note [Own schedules]
//
// MPI's own collectives are not used. Between two messages MPI tells nothing: not which rank it
// waits for, not that a peer sent another size; it reduces in an order of its own choosing, knows
// neither bfloat16 nor float16, and counts in int. The schedules here are the classical ones that
// are good for a few dozens of ranks:
//
//   moving data   every pair exchanges its block directly: one stage, each byte travels once
//   broadcast     binomial tree while short; scatter, then all-gather when long
//   all-reduce    short: everybody gets everything and reduces it, one stage;
//                 long: piece by piece reduce-scatter, then all-gather; 2 (W - 1) / W of the
//                 tensor sent per rank
//   barrier       dissemination, log2(W) stages
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "thinwire/comm/backend/mpi/runtime.h"

namespace thinwire::comm::mpi {

struct Block {
  void* data;
  std::size_t bytes;
};

// Slice `index` of `count` of a tensor of `numel` elements: nearly equal parts, in order.
struct Portion {
  std::int64_t begin, count;
};
constexpr Portion portion_of(std::int64_t numel, int index, int count) {
  const std::int64_t part = numel / count, rest = numel % count;
  const std::int64_t extra = index < rest ? index : rest;
  return {index * part + extra, part + (index < rest ? 1 : 0)};
}

// Sends out[p] to every other rank p and receives in[p] from it. A rank's own blocks are left
// alone. Peers are visited from the next rank on, so that not all ranks address one at once.
Stage all_to_all(int rank, const std::vector<Block>& out, const std::vector<Block>& in);
// `block` of the root to everybody else's `block`. Bytes above `long_message` go by scatter and
// all-gather; they must be equal on all ranks.
std::vector<Stage> broadcast(int rank, int size, int root, Block block, std::size_t long_message);
// Returns when all ranks have entered.
std::vector<Stage> barrier(int rank, int size);
// Rank 0 hears from everybody, then lets everybody go.
std::vector<Stage> monitored_barrier(int rank, int size);

// Contributions, numel, result: reduces in rank order.
using Reduce =
    std::function<void(const std::vector<const void*>& contributions, std::int64_t numel, void*)>;

// In place on all ranks where root < 0, else on the root alone (elsewhere `data` stays as it is).
// `scratch` holds allreduce_scratch() bytes.
std::vector<Stage> allreduce(int rank, int size, int root, void* data, std::int64_t numel,
                             std::size_t element_size, std::size_t long_message, void* scratch,
                             Reduce reduce);
std::size_t allreduce_scratch(int rank, int size, std::int64_t numel, std::size_t element_size,
                              std::size_t long_message);

// Reduces in[rank] of all ranks into `out` of each. Every in[p] is as long as rank p's `out`.
// `scratch` holds `size` times the bytes of `out`.
std::vector<Stage> reduce_scatter(int rank, const std::vector<Block>& in, void* out,
                                  std::int64_t numel, std::size_t element_size, void* scratch,
                                  Reduce reduce);

}  // namespace thinwire::comm::mpi
