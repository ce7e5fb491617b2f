#include "thinwire/comm/average/reduce/partition.h"

#include <algorithm>

#include "thinwire/comm/wire/frame.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

// More chunks than this only add headers.
constexpr double kMostChunks = 16;
// Slices and means of a single chunk follow each other, and the link rests while ranks wait for the
// last of them: in four chunks a bfloat16 average of 2 MB takes two thirds of the time. Shorter
// messages than these cost more than they hide.
constexpr double kFullPipeline = 4, kLeastMessage = 64 << 10;
// Longer ones fill the buffers of slow links, and what overflows is sent again.
constexpr double kLongestMessage = 512 << 10;

// A place between two elements.
struct Cut {
  std::size_t layer = 0;
  std::int64_t element = 0;
};

std::size_t payload_bytes(const PartitionLayer& layer) {
  return layer.codec->max_compressed_bytes(layer.numel, DType::kFloat32);
}

}  // namespace

std::int64_t total_numel(std::span<const PartitionLayer> layers) {
  std::int64_t numel = 0;
  for (const auto& layer : layers) numel += layer.numel;
  return numel;
}

std::size_t Slice::frame_bytes() const {
  return numel == 0 ? 0 : kFrameHeaderBytes + payload_bytes;
}

int chunk_count(double dense_bytes, double payload_bytes, int world, double chunk_bytes) {
  THINWIRE_ASSERT(world >= 1 && chunk_bytes >= 1);
  const double message = payload_bytes / world;
  const double chunks = std::max({dense_bytes / chunk_bytes, message / kLongestMessage,
                                  std::min(kFullPipeline, message / kLeastMessage)});
  return static_cast<int>(std::clamp(chunks, 1.0, kMostChunks));
}

int Partition::chunks_for(std::span<const PartitionLayer> layers, int world,
                          std::size_t chunk_bytes) {
  double payload = 0;
  for (const PartitionLayer& layer : layers) {
    payload += static_cast<double>(thinwire::comm::payload_bytes(layer));
  }
  return chunk_count(static_cast<double>(total_numel(layers)) * sizeof(float), payload, world,
                     static_cast<double>(chunk_bytes));
}

Partition::Partition(std::span<const PartitionLayer> layers, int world, std::size_t chunk_bytes)
    : Partition(layers, world, Chunks{chunks_for(layers, world, chunk_bytes), kCachedPiece}) {}

Partition Partition::in_chunks(std::span<const PartitionLayer> layers, int world, int chunks,
                               std::int64_t piece) {
  return Partition(layers, world, Chunks{chunks, piece});
}

Partition::Partition(std::span<const PartitionLayer> layers, int world, Chunks chunks)
    : world_(world), chunks_(chunks.count) {
  THINWIRE_ASSERT(world >= 1 && chunks_ >= 1);
  std::size_t total_bytes = 0;
  for (const auto& layer : layers) {
    THINWIRE_ASSERT(layer.codec->traits().fixed_size && layer.codec->block_size() >= 1);
    total_bytes += thinwire::comm::payload_bytes(layer);
  }
  const int parts = chunks_ * world_;

  // The k-th cut is where k / parts of the payload bytes lie before it, moved to the nearest block.
  std::vector<Cut> cuts(static_cast<std::size_t>(parts) + 1);
  cuts.back() = {layers.size(), 0};
  std::size_t layer = 0;
  std::size_t before = 0;  // payload bytes of the layers before `layer`
  for (int k = 1; k < parts; ++k) {
    const std::size_t target =
        total_bytes / static_cast<std::size_t>(parts) * static_cast<std::size_t>(k) +
        total_bytes % static_cast<std::size_t>(parts) * static_cast<std::size_t>(k) /
            static_cast<std::size_t>(parts);
    while (layer < layers.size() &&
           before + thinwire::comm::payload_bytes(layers[layer]) <= target) {
      before += thinwire::comm::payload_bytes(layers[layer++]);
    }
    Cut cut{layer, 0};
    if (layer < layers.size()) {
      const auto bytes = thinwire::comm::payload_bytes(layers[layer]);
      const auto block = layers[layer].codec->block_size();
      const double fraction = static_cast<double>(target - before) / static_cast<double>(bytes);
      const auto blocks = static_cast<std::int64_t>(
          fraction * static_cast<double>(layers[layer].numel) / static_cast<double>(block) + 0.5);
      cut.element = blocks * block;
      if (cut.element >= layers[layer].numel) cut = {layer + 1, 0};
    }
    const Cut& last = cuts[static_cast<std::size_t>(k) - 1];
    if (cut.layer < last.layer || (cut.layer == last.layer && cut.element < last.element))
      cut = last;
    cuts[static_cast<std::size_t>(k)] = cut;
  }

  slices_.resize(static_cast<std::size_t>(parts));
  for (std::size_t k = 0; k < slices_.size(); ++k) {
    Slice& slice = slices_[k];
    for (Cut at = cuts[k]; at.layer < layers.size();) {
      const Cut& end = cuts[k + 1];
      const std::int64_t stop = at.layer == end.layer ? end.element : layers[at.layer].numel;
      const Codec& codec = *layers[at.layer].codec;
      const std::int64_t block = codec.block_size();
      const std::int64_t most = std::max(block, chunks.piece / block * block);
      for (std::int64_t begin = at.element; begin < stop;) {
        const std::int64_t numel = std::min(most, stop - begin);
        const auto bytes = codec.max_compressed_bytes(numel, DType::kFloat32);
        slice.pieces.push_back({at.layer, begin, numel, bytes});
        slice.numel += numel;
        slice.payload_bytes += bytes;
        begin += numel;
      }
      if (at.layer == end.layer) break;
      at = {at.layer + 1, 0};
    }
  }
}

}  // namespace thinwire::comm
