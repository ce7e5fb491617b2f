// What the frames of scatter_reduce say of themselves, in host memory and in a GPU's.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "thinwire/comm/average/reduce/partition.h"
#include "thinwire/comm/wire/frame.h"

namespace thinwire::comm {

// The two messages of a chunk are told apart by the frame's chunk number.
enum class Leg : std::uint32_t { kScatter = 0, kGather = 1 };

inline std::uint32_t frame_chunk(int chunk, Leg leg) {
  return static_cast<std::uint32_t>(2 * chunk) + static_cast<std::uint32_t>(leg);
}

// The codec's id for frames whose layers all have one codec, else kMixedCodecs. `codec_of` gives
// the codec of a layer by its index.
template <typename CodecOf>
std::uint16_t codec_id_of(const Slice& slice, const CodecOf& codec_of) {
  std::optional<std::uint16_t> id;
  for (const Piece& piece : slice.pieces) {
    const auto next = static_cast<std::uint16_t>(codec_of(piece.layer).facts().id);
    if (id && *id != next) return kMixedCodecs;
    id = next;
  }
  return id.value_or(kMixedCodecs);
}

// As many chunks, from the first on, as it takes to hear every other owner of anything.
// `numel_of(chunk, owner)` gives the size of a slice.
template <typename NumelOf>
int chunks_of_first_frames(int chunks, int world, int rank, const NumelOf& numel_of) {
  int needed = 0;
  for (int owner = 0; owner < world; ++owner) {
    int c = 0;
    while (c < chunks && numel_of(c, owner) == 0) ++c;
    if (owner != rank && c < chunks) needed = std::max(needed, c + 1);
  }
  return needed;
}

}  // namespace thinwire::comm
