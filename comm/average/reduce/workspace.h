// What the reductions of one bucket need while it is on its way, and leave to the next bucket.
#pragma once

#include <vector>

#include "thinwire/comm/wire/arena.h"
#include "thinwire/comm/wire/sparse_entries.h"
#include "thinwire/compressors/codecs/codec.h"
#include "thinwire/compressors/kernels/topk.h"

namespace thinwire::comm {

// Not thread-safe. Contents are those of one bucket; entries keep their memory, the arena is reset
// by the owner.
struct Workspace {
  Arena arena;
  std::vector<LayeredEntries> picked;   // SparseReduce: this rank's entries, by owner
  LayeredEntries means;                 // SparseReduce: of the own range
  std::vector<SparseEntries> received;  // GatherReduce: of one layer, by peer
  std::vector<std::size_t> next;        // GatherReduce: of these entries
  SparseEntries scratch;                // within one function
  kernels::TopkSelection chosen;        // SparseReduce: the means that it sends

  std::size_t bytes() const {
    std::size_t bytes = arena.size();
    const auto add = [&](const SparseEntries& entries) {
      bytes += entries.indices.capacity() * sizeof(entries.indices[0]) +
               entries.values.capacity() * sizeof(entries.values[0]);
    };
    const auto add_layers = [&](const LayeredEntries& entries) {
      add(entries);
      bytes += entries.ends.capacity() * sizeof(entries.ends[0]);
    };
    for (const LayeredEntries& entries : picked) add_layers(entries);
    add_layers(means);
    for (const SparseEntries& entries : received) add(entries);
    add(scratch);
    bytes +=
        (chosen.indices.capacity() + chosen.candidate_indices.capacity()) * sizeof(std::uint32_t);
    bytes +=
        (chosen.values.capacity() + chosen.candidate_values.capacity() + chosen.sample.capacity()) *
        sizeof(float);
    return bytes;
  }
};

}  // namespace thinwire::comm
