// Where the elements of layers in bases go: those of like predicted size together, with an equal
// share of every class for every owner.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "thinwire/comm/average/reduce/partition.h"
#include "thinwire/compressors/spectral/matrix_basis.h"

namespace thinwire::comm {

// All layers lie in one array, chunk by chunk, within a chunk owner by owner, within what an owner
// has class by class and within a class layer by layer. A class holds the elements of some levels
// (spectral/level_order.h), half an octave of mean squares or more; the last one holds the rest.
struct ClassLayout {
  // Elements of one layer that follow one another both in the array and in the layer's level order.
  struct Run {
    std::size_t layer = 0;
    std::int64_t begin = 0;  // in the layer's level order
    std::int64_t numel = 0;
    std::int64_t first = 0;  // in the array
    int chunk = 0, owner = 0;
  };
  std::vector<Run> runs;  // in order of the array
  // Slices by chunk and owner: a piece for each class, of the array as the one layer.
  std::vector<std::vector<Slice>> slices;
  // By layer the place in the array of each element of the matrix.
  std::vector<std::vector<std::uint32_t>> places;
};

// A pure function of the bases' levels and the numbers. Fewer than 2^32 elements in all.
ClassLayout class_layout(std::span<const spectral::MatrixBasis* const> layers, int world,
                         int chunks);

}  // namespace thinwire::comm
