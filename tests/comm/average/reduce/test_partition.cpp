#include "thinwire/comm/average/reduce/partition.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "thinwire/comm/wire/frame.h"
#include "thinwire/compressors/codecs/codec_table.h"

namespace thinwire::comm {
namespace {

struct Case {
  std::vector<std::int64_t> numels;
  int world;
  std::size_t chunk_bytes;
};

class PartitionOf : public ::testing::TestWithParam<Case> {};

TEST_P(PartitionOf, CoversEveryElementOnceInOrderOfMemory) {
  const Case& c = GetParam();
  const CodecPtr quantize = make_codec("quantize(bits=4, bucket=64)");
  const CodecPtr cast = make_codec("cast(bf16)");
  std::vector<PartitionLayer> layers;
  for (std::size_t i = 0; i < c.numels.size(); ++i) {
    layers.push_back({c.numels[i], i % 2 == 0 ? quantize.get() : cast.get()});
  }
  const Partition partition(layers, c.world, c.chunk_bytes);

  std::vector<std::int64_t> reached(layers.size(), 0);
  std::size_t last_layer = 0;
  std::size_t total = 0, largest = 0, smallest = static_cast<std::size_t>(-1);
  for (int chunk = 0; chunk < partition.chunks(); ++chunk) {
    for (int owner = 0; owner < c.world; ++owner) {
      const Slice& slice = partition.slice(chunk, owner);
      std::size_t bytes = 0;
      std::int64_t numel = 0;
      for (const Piece& piece : slice.pieces) {
        const PartitionLayer& layer = layers[piece.layer];
        EXPECT_GE(piece.layer, last_layer);
        last_layer = piece.layer;
        EXPECT_EQ(piece.begin, reached[piece.layer]) << "a gap or an overlap";
        EXPECT_EQ(piece.begin % layer.codec->block_size(), 0);
        EXPECT_GT(piece.numel, 0);
        EXPECT_EQ(piece.bytes, layer.codec->max_compressed_bytes(piece.numel, DType::kFloat32));
        reached[piece.layer] += piece.numel;
        bytes += piece.bytes;
        numel += piece.numel;
      }
      EXPECT_EQ(slice.payload_bytes, bytes);
      EXPECT_EQ(slice.numel, numel);
      EXPECT_EQ(slice.frame_bytes(), numel == 0 ? 0 : bytes + kFrameHeaderBytes);
      total += bytes;
      largest = std::max(largest, bytes);
      smallest = std::min(smallest, bytes);
    }
  }
  for (std::size_t i = 0; i < layers.size(); ++i) EXPECT_EQ(reached[i], c.numels[i]);
  // One block of quantize(bits=4, bucket=64) is 40 bytes, and rounding may go either way twice.
  const auto parts = static_cast<std::size_t>(partition.chunks() * c.world);
  EXPECT_LE(largest, total / parts + 2 * 40 + 1);
}

INSTANTIATE_TEST_SUITE_P(Shapes, PartitionOf,
                         ::testing::Values(Case{{1}, 4, 1 << 20}, Case{{1000}, 1, 1 << 20},
                                           Case{{64, 64}, 2, 1 << 20}, Case{{100000}, 4, 1 << 20},
                                           Case{{100000, 7, 0, 3, 64001}, 3, 1 << 14},
                                           Case{{5, 5, 5, 5, 5, 5, 5}, 8, 1 << 10},
                                           Case{{1 << 20, 1, 1 << 18}, 5, 1 << 16}));

// Pieces are what stays in cache, unless a block is larger or the slice is asked for whole.
TEST(Partition, PiecesHaveTheSizeAskedFor) {
  const auto largest = [](const char* spec, std::int64_t piece) {
    const CodecPtr codec = make_codec(spec);
    const std::vector<PartitionLayer> layers = {{1'000'003, codec.get()}};
    std::int64_t numel = 0;
    const Partition partition = Partition::in_chunks(layers, 2, 1, piece);
    for (const Piece& part : partition.slice(0, 0).pieces) numel = std::max(numel, part.numel);
    return numel;
  };
  EXPECT_EQ(largest("quantize(bits=4)", Partition::kCachedPiece), Partition::kCachedPiece);
  EXPECT_EQ(largest("quantize(bits=4, bucket=1000)", Partition::kCachedPiece), 32000);
  EXPECT_EQ(largest("quantize(bits=4, bucket=100000)", Partition::kCachedPiece), 100000);
  EXPECT_EQ(largest("quantize(bits=4)", Partition::kWholePiece), 488 * 1024);
}

TEST(Partition, HasAsManyChunksAsTheSizeAsksFor) {
  const CodecPtr codec = make_codec("quantize(bits=4)");
  const std::vector<PartitionLayer> layers = {{1 << 17, codec.get()}};
  EXPECT_EQ(Partition(layers, 2, std::size_t{1} << 30).chunks(), 1);
  EXPECT_EQ(Partition(layers, 2, std::size_t{1} << 17).chunks(), 4);
  EXPECT_EQ(Partition(layers, 2, 1).chunks(), 16);
}

TEST(Partition, LongMessagesAreCut) {
  constexpr double kKiB = 1024, kMiB = 1024 * kKiB;
  // A bucket of 2 MiB in bfloat16 between two ranks: messages of 128 KiB instead of 512.
  EXPECT_EQ(chunk_count(2 * kMiB, 1 * kMiB, 2, 4 * kMiB), 4);
  // In 4 bits: two of 64 KiB.
  EXPECT_EQ(chunk_count(2 * kMiB, 256 * kKiB, 2, 4 * kMiB), 2);
  // In one bit they are short as it is, and between many ranks.
  EXPECT_EQ(chunk_count(2 * kMiB, 64 * kKiB, 2, 4 * kMiB), 1);
  EXPECT_EQ(chunk_count(2 * kMiB, 1 * kMiB, 16, 4 * kMiB), 1);
  // 32 MiB in bfloat16: messages of 512 KiB instead of pieces of 4 MiB.
  EXPECT_EQ(chunk_count(32 * kMiB, 16 * kMiB, 2, 4 * kMiB), 16);
  EXPECT_EQ(chunk_count(32 * kMiB, 16 * kMiB, 4, 4 * kMiB), 8);
  EXPECT_EQ(chunk_count(32 * kMiB, 4 * kMiB, 2, 4 * kMiB), 8);
  EXPECT_EQ(chunk_count(0, 0, 1, 1), 1);
}

}  // namespace
}  // namespace thinwire::comm
