// Cutting the layers of one exchange into slices: which rank owns which elements, and in which
// order they are sent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "thinwire/compressors/codecs/codec.h"

namespace thinwire::comm {

// A run of elements of one layer, coded by itself.
struct Piece {
  std::size_t layer = 0;   // index in the list that was cut
  std::int64_t begin = 0;  // first element within the layer
  std::int64_t numel = 0;
  std::size_t bytes = 0;  // size of its payload
};

// What one rank owns of one chunk; its payload is the payloads of its pieces, one after another.
struct Slice {
  std::vector<Piece> pieces;
  std::int64_t numel = 0;
  std::size_t payload_bytes = 0;

  // Bytes of the slice on the wire: nothing for an empty slice, else header and payload.
  std::size_t frame_bytes() const;
};

struct PartitionLayer {
  std::int64_t numel;
  const Codec* codec;
};

// Of all of them.
std::int64_t total_numel(std::span<const PartitionLayer> layers);

// In how many chunks a bucket of so many bytes of float32, which are so many bytes of payload, is
// best averaged: of at most `chunk_bytes` of float32, with messages of at most 512 KiB, and in four
// where messages then have 64 KiB or more, so that means travel while slices still come. A pure
// function.
int chunk_count(double dense_bytes, double payload_bytes, int world, double chunk_bytes);

// Slices in the order of memory: chunk by chunk, and within a chunk owner by owner. Slices are
// within one codec block of equal size in bytes; every element is in exactly one slice.
class Partition {
 public:
  // Elements of the largest piece. Three buffers of it fit a core's second-level cache, so that the
  // passes over a piece but the first do not reach memory.
  static constexpr std::int64_t kCachedPiece = 32 * 1024;
  // For slices that are to be coded as a whole: one piece a layer.
  static constexpr std::int64_t kWholePiece = std::numeric_limits<std::int64_t>::max();

  // Cuts `layers` for `world` ranks into as many chunks as chunk_count() says. Every
  // codec must have fixed_size payloads and a block_size() of at least 1. A pure function: equal
  // arguments give equal partitions on all ranks.
  Partition(std::span<const PartitionLayer> layers, int world, std::size_t chunk_bytes);
  // The same with a given number of chunks, at least 1, and pieces of about `piece` elements.
  static Partition in_chunks(std::span<const PartitionLayer> layers, int world, int chunks,
                             std::int64_t piece = kCachedPiece);

  // How many chunks the constructor makes, by chunk_count().
  static int chunks_for(std::span<const PartitionLayer> layers, int world, std::size_t chunk_bytes);

  int chunks() const { return chunks_; }
  int world() const { return world_; }
  const Slice& slice(int chunk, int owner) const {
    return slices_[static_cast<std::size_t>(chunk) * static_cast<std::size_t>(world_) +
                   static_cast<std::size_t>(owner)];
  }

 private:
  struct Chunks {
    int count;
    std::int64_t piece;
  };
  Partition(std::span<const PartitionLayer> layers, int world, Chunks chunks);

  int world_;
  int chunks_;
  std::vector<Slice> slices_;
};

}  // namespace thinwire::comm
