// Cutting layers between owners so that every owner has the same share of every layer.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "thinwire/comm/average/reduce/partition.h"

namespace thinwire::comm {

// Slices by chunk, and within a chunk by owner. A chunk is a run of elements of all layers in a
// row; of each layer's part in it every owner gets an equal run, or one of them all where the part
// is small: then the one that has least so far. Payloads whose bits vary from layer to layer then
// take about as many bytes from each owner. Piece::bytes and Slice::payload_bytes are 0. A pure
// function.
std::vector<std::vector<Slice>> owner_slices(std::span<const std::int64_t> layers, int world,
                                             int chunks);

}  // namespace thinwire::comm
