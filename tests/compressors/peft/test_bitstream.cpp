#include <gtest/gtest.h>

#include <algorithm>

#include "peft_fixtures.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/bitstream.h"

namespace thinwire::peft {
namespace {

constexpr BlockMode kModes[] = {BlockMode::kEmpty,     BlockMode::kRice,   BlockMode::kRans,
                                BlockMode::kMaskSigns, BlockMode::kPlanes, BlockMode::kContexts};

std::vector<std::byte> encode(const TernaryPlanes& planes) {
  std::vector<std::byte> out(max_stream_bytes(planes.numel()));
  out.resize(encode_stream(planes.view(), out));
  return out;
}

bool equal(const TernaryPlanes& a, const TernaryPlanes& b) {
  return std::ranges::equal(a.mask(), b.mask()) && std::ranges::equal(a.sign(), b.sign());
}

double bound_bits(double k) {
  return -k * std::log2(k) - (k < 1 ? (1 - k) * std::log2(1 - k) : 0) + k;
}

TEST(Stream, RoundTripsEverySizeAndDensity) {
  for (const std::int64_t numel : {0L, 1L, 7L, 8L, 9L, 63L, 64L, 65L, 511L, 512L, 513L, 10007L,
                                   kBlockEntries - 1, kBlockEntries, 2 * kBlockEntries + 77}) {
    for (const double density : {0.0, 0.0001, 0.01, 0.05, 0.2, 0.5, 0.9, 1.0}) {
      const auto planes = test::random_planes(numel, density, 11);
      const auto bytes = encode(planes);
      TernaryPlanes decoded(numel);
      decode_stream(bytes, numel, decoded.mask(), decoded.sign());
      ASSERT_TRUE(equal(planes, decoded)) << numel << " at " << density;
    }
  }
}

TEST(Block, EveryModeRoundTripsAndTheChosenOneIsTheSmallest) {
  for (const std::int64_t numel : {1L, 64L, 100L, 5000L, 70001L, kBlockEntries}) {
    for (const double density : {0.0005, 0.01, 0.03, 0.1, 0.3, 0.5, 0.97, 1.0}) {
      const auto planes = test::random_planes(numel, density, 12);
      std::vector<std::byte> out(max_block_bytes(numel));
      std::size_t smallest = SIZE_MAX;
      for (const BlockMode mode : kModes) {
        const std::size_t used = encode_block_as(mode, planes.view(), out);
        if (used == 0) continue;
        TernaryPlanes decoded(numel);
        if (mode == BlockMode::kEmpty || count_nonzero(planes.view()) > 0) {
          decode_block(std::span(out).first(used), numel, decoded.mask(), decoded.sign());
          ASSERT_TRUE(equal(planes, decoded)) << name_of(mode) << numel << " at " << density;
          smallest = std::min(smallest, used);
        }
      }
      const std::size_t chosen = encode_block(planes.view(), out);
      // The choice between the two coders rests on estimates that are right to half a percent, and
      // the faster one is allowed half a percent more.
      EXPECT_LE(static_cast<double>(chosen), 1.01 * static_cast<double>(smallest) + 2)
          << numel << " at " << density;
    }
  }
}

TEST(Stream, IndependentEntriesTakeWithinOneAndAHalfPercentOfTheBound) {
  // The bound at the density that was drawn: it has no sampling error, so that 4 Mi entries tell as
  // much as more would. All costs of a file grow with the number of its (equal) blocks.
  const std::int64_t numel = 1 << 22;
  for (const double k : {0.01, 0.05, 0.1, 0.2, 0.3, 0.5}) {
    const auto planes = test::random_planes(numel, k, 13);
    const double bound =
        bound_bits(static_cast<double>(count_nonzero(planes.view())) / static_cast<double>(numel));
    // In a file every block has a directory entry of 8 bytes where the stream has 4.
    const double bits = 8.0 * static_cast<double>(encode(planes).size() + 4 * block_count(numel)) /
                        static_cast<double>(numel);
    EXPECT_LT(bits, 1.015 * bound) << k;
    EXPECT_GT(bits, 0.999 * bound) << k;
  }
}

TEST(Stream, NeverPassesTwoPlanesByMoreThanAThousandth) {
  for (const double density : {0.5, 0.8, 1.0}) {
    const auto planes = test::random_planes(1 << 20, density, 14);
    EXPECT_LT(static_cast<double>(encode(planes).size()), 1.001 * 2 * (1 << 20) / 8);
  }
}

TEST(Stream, ClusteredDensityTakesLessThanOneGlobalModel) {
  // Stretches of 4096 entries alternate between 0.5 % and 20 %, as rows of a matrix may.
  const std::int64_t numel = 1 << 20;
  TernaryPlanes planes(numel);
  const auto sparse = test::random_planes(numel, 0.005, 15);
  const auto dense = test::random_planes(numel, 0.2, 16);
  for (std::int64_t i = 0; i < numel; ++i)
    planes.set(i, ((i / 4096) % 2 != 0 ? dense : sparse).view().trit(i));
  const double k = static_cast<double>(count_nonzero(planes.view())) / static_cast<double>(numel);
  const double global = bound_bits(k) * static_cast<double>(numel) / 8;
  const double split = (bound_bits(0.005) + bound_bits(0.2)) / 2 * static_cast<double>(numel) / 8;
  const auto size = static_cast<double>(encode(planes).size());
  EXPECT_LT(size, 0.85 * global);
  EXPECT_LT(size, 1.03 * split);
}

// Entries whose density is the product of one for the row and one for the column.
TernaryPlanes uneven_planes(std::int64_t rows, std::int64_t columns, std::uint64_t seed) {
  const auto stream = PhiloxStream::of({.seed = seed});
  TernaryPlanes planes(rows * columns);
  for (std::int64_t i = 0; i < planes.numel(); ++i) {
    const double of_row = (i / columns) % 3 == 0 ? 2.4 : 0.3;
    const double of_column = (i % columns) % 4 == 1 ? 2.5 : 0.5;
    const std::uint32_t word = stream.word(static_cast<std::uint64_t>(i));
    if ((word >> 8) * 0x1p-24 < 0.05 * of_row * of_column) planes.set(i, word % 2 != 0 ? 1 : -1);
  }
  return planes;
}

TEST(Contexts, DensityByRowAndColumnTakesLess) {
  for (const auto& [rows, columns] : {std::pair{256L, 1024L}, {4096L, 16L}, {64L, 2048L}}) {
    const auto planes = uneven_planes(rows, columns, 31);
    const std::vector<BlockRows> lie = {{planes.numel(), columns, 0}};
    std::vector<std::byte> out(max_block_bytes(planes.numel()));
    const auto plain = static_cast<double>(encode_block(planes.view(), out));
    const std::size_t used = encode_block(planes.view(), out, lie);
    EXPECT_EQ(out[0], static_cast<std::byte>(BlockMode::kContexts));
    EXPECT_LT(static_cast<double>(used), 0.95 * plain) << rows;
    TernaryPlanes decoded(planes.numel());
    decode_block(std::span(out).first(used), planes.numel(), decoded.mask(), decoded.sign(), lie);
    EXPECT_TRUE(equal(planes, decoded));
  }
}

TEST(Contexts, EvenDensityIsLeftToTheOthers) {
  for (const double density : {0.001, 0.05, 0.5}) {
    const auto planes = test::random_planes(200000, density, 32);
    std::vector<std::byte> plain(max_block_bytes(planes.numel())), out = plain;
    plain.resize(encode_block(planes.view(), plain));
    out.resize(encode_block(planes.view(), out, std::vector<BlockRows>{{200000, 400, 0}}));
    EXPECT_EQ(plain, out) << density;
  }
}

TEST(Contexts, EveryLayoutOfRowsRoundTrips) {
  for (const double density : {0.0001, 0.05, 0.6, 1.0}) {
    const auto planes = test::random_planes(100003, density, 33);
    for (const std::vector<BlockRows>& rows :
         {std::vector<BlockRows>{{100003, 1, 0}},
          {{100003, 100003, 0}},
          {{100003, 300000000, 299999999}},
          {{0, 5, 0}, {3, 7, 6}, {50000, 64, 1}, {50000, 9, 0}}}) {
      std::vector<std::byte> out(max_block_bytes(planes.numel()));
      const std::size_t used = encode_block_as(BlockMode::kContexts, planes.view(), out, rows);
      ASSERT_GT(used, 0u);
      TernaryPlanes decoded(planes.numel());
      decode_block(std::span(out).first(used), planes.numel(), decoded.mask(), decoded.sign(),
                   rows);
      EXPECT_TRUE(equal(planes, decoded)) << density;
    }
  }
}

// The numbers that docs/peft-format.md lets a reader check an implementation with.
TEST(Contexts, BytesAreThoseOfTheFormat) {
  TernaryPlanes planes(64);
  for (const int i : {0, 3, 16, 19, 35, 51}) planes.set(i, i % 2 != 0 ? -1 : 1);
  const std::vector<BlockRows> rows = {{64, 16, 0}};
  std::vector<std::byte> out(64);
  std::string hex;
  const std::size_t used = encode_block_as(BlockMode::kContexts, planes.view(), out, rows);
  for (std::size_t i = 0; i < used; ++i) {
    constexpr const char* kDigits = "0123456789abcdef";
    hex += kDigits[std::to_integer<int>(out[i]) / 16];
    hex += kDigits[std::to_integer<int>(out[i]) % 16];
  }
  EXPECT_EQ(hex, "0500060000000e079ad4f56fec3a");
}

TEST(Stream, BlockwiseDecodingSeesEveryBlockOnce) {
  const std::int64_t numel = 3 * kBlockEntries + 1000;
  const auto planes = test::random_planes(numel, 0.05, 17);
  std::vector<std::uint64_t> mask(kBlockWords), sign(kBlockWords);
  std::int64_t next = 0;
  decode_stream_blockwise(encode(planes), numel, mask, sign,
                          [&](std::int64_t first, PlanesView block) {
                            EXPECT_EQ(first, next);
                            next += block.numel;
                            const auto expected = planes.view().slice(first, block.numel);
                            EXPECT_TRUE(std::ranges::equal(block.mask, expected.mask));
                            EXPECT_TRUE(std::ranges::equal(block.sign, expected.sign));
                          });
  EXPECT_EQ(next, numel);
}

// Decodes bytes that may be anything into buffers of exactly the right size; AddressSanitizer sees
// a step outside. Returns whether they were accepted.
bool survives(const std::vector<std::byte>& bytes, std::int64_t entries) {
  const auto words = static_cast<std::size_t>(words_for(entries));
  std::vector<std::uint64_t> mask(words), sign(words);
  try {
    decode_block(bytes, entries, mask, sign, std::vector<BlockRows>{{entries, 37, 5}});
  } catch (const FrameError&) {
    return false;
  }
  std::uint64_t outside = entries % 64 != 0 ? mask.back() >> (entries % 64) : 0;
  for (std::size_t w = 0; w < words; ++w) outside |= sign[w] & ~mask[w];
  EXPECT_EQ(outside, 0u) << "accepted planes break their invariants";
  return true;
}

TEST(Block, DamageIsRefusedOrHarmless) {
  const auto stream = PhiloxStream::of({.seed = 18});
  std::uint64_t draw = 0;
  for (const std::int64_t entries : {100L, 4096L, 20000L}) {
    const auto planes = test::random_planes(entries, 0.1, 19);
    for (const BlockMode mode : kModes) {
      std::vector<std::byte> bytes(max_block_bytes(entries));
      bytes.resize(
          encode_block_as(mode, planes.view(), bytes, std::vector<BlockRows>{{entries, 37, 5}}));
      if (bytes.empty()) continue;
      ASSERT_TRUE(survives(bytes, entries));
      for (std::size_t n = 0; n < bytes.size(); n += 1 + bytes.size() / 300)
        EXPECT_FALSE(survives({bytes.begin(), bytes.begin() + static_cast<long>(n)}, entries))
            << name_of(mode) << " cut to " << n;
      auto longer = bytes;
      longer.push_back(std::byte{0});
      EXPECT_FALSE(survives(longer, entries)) << name_of(mode);
      for (int i = 0; i < 400; ++i) {
        auto damaged = bytes;
        const std::uint32_t word = stream.word(draw++);
        damaged[word % damaged.size()] ^= static_cast<std::byte>(1u << (word >> 29));
        survives(damaged, entries);
      }
    }
  }
}

TEST(Block, RandomBytesNeverEscape) {
  const auto stream = PhiloxStream::of({.seed = 20});
  std::uint64_t draw = 0;
  for (int i = 0; i < 4000; ++i) {
    const std::int64_t entries = 1 + stream.word(draw++) % 3000;
    std::vector<std::byte> bytes(stream.word(draw++) % 600);
    for (auto& byte : bytes) byte = static_cast<std::byte>(stream.word(draw++));
    if (bytes.size() >= kBlockHeaderBytes) {
      bytes[0] = static_cast<std::byte>(i % 7);
      if (i % 3 != 0) bytes[1] = static_cast<std::byte>(stream.word(draw++) % 20);
      const std::uint32_t count = stream.word(draw++) % static_cast<std::uint32_t>(entries + 2);
      std::memcpy(&bytes[2], &count, 4);
    }
    survives(bytes, entries);
  }
}

TEST(Stream, NamesWhatIsWrong) {
  const auto planes = test::random_planes(1000, 0.1, 21);
  auto bytes = encode(planes);
  TernaryPlanes out(1000);
  const auto decode = [&](std::span<const std::byte> in, std::int64_t numel) {
    TernaryPlanes target(numel);
    decode_stream(in, numel, target.mask(), target.sign());
  };
  EXPECT_THROW(decode(std::span(bytes).first(3), 1000), FrameError);
  EXPECT_THROW(decode(std::span(bytes).first(bytes.size() - 1), 1000), FrameError);
  bytes.push_back(std::byte{});
  EXPECT_THROW(decode(bytes, 1000), FrameError);
  EXPECT_THROW(encode_stream(planes.view(), std::span(bytes).first(10)), InvalidArgument);
}

}  // namespace
}  // namespace thinwire::peft
