#include "thinwire/common/crc32c.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string_view>
#include <vector>

namespace thinwire {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// One bit at a time, from the definition.
std::uint32_t by_definition(std::span<const std::byte> bytes, std::uint32_t previous) {
  std::uint32_t crc = ~previous;
  for (const std::byte byte : bytes) {
    crc ^= std::to_integer<std::uint32_t>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? 0x82F63B78u : 0u);
  }
  return ~crc;
}

std::vector<std::byte> random_bytes(std::size_t size) {
  std::mt19937 random(7);
  std::vector<std::byte> bytes(size);
  for (auto& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

// RFC 3720 (iSCSI), appendix B.4, and the check value of the CRC catalogue.
TEST(Crc32c, KnownAnswers) {
  EXPECT_EQ(crc32c(bytes_of("123456789")), 0xE3069283u);
  EXPECT_EQ(crc32c({}), 0u);
  EXPECT_EQ(crc32c(std::vector<std::byte>(32, std::byte{0})), 0x8A9136AAu);
  EXPECT_EQ(crc32c(std::vector<std::byte>(32, std::byte{0xFF})), 0x62A8AB43u);
  std::vector<std::byte> counting(32);
  for (std::size_t i = 0; i < 32; ++i) counting[i] = static_cast<std::byte>(i);
  EXPECT_EQ(crc32c(counting), 0x46DD794Eu);
  for (std::size_t i = 0; i < 32; ++i) counting[i] = static_cast<std::byte>(31 - i);
  EXPECT_EQ(crc32c(counting), 0x113FDB5Cu);
}

// Every remainder of the loops of 1, 8, 256, 3 * 256 and 3 * 8192 bytes, at every alignment.
TEST(Crc32c, ImplementationsFollowTheDefinition) {
  const auto bytes = random_bytes(3 * 8192 * 2 + 3 * 256 + 64);
  std::vector<std::size_t> sizes;
  for (std::size_t size = 0; size <= 40; ++size) sizes.push_back(size);
  for (const std::size_t block :
       {3u * 256, 4u * 256, 5u * 256, 7u * 256, 3u * 8192, 3u * 8192 + 3u * 256, 2u * 3u * 8192}) {
    for (std::size_t size = block - 9; size <= block + 9; ++size) sizes.push_back(size);
  }
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const auto part = std::span(bytes).subspan(i % 8, sizes[i]);
    const auto previous = static_cast<std::uint32_t>(0x9E3779B9u * i);
    const std::uint32_t expected = by_definition(part, previous);
    EXPECT_EQ(detail::crc32c_table(part, previous), expected) << sizes[i];
    if (detail::crc32c_has_hardware()) {
      EXPECT_EQ(detail::crc32c_hardware(part, previous), expected) << sizes[i];
    }
    if (detail::crc32c_has_folding()) {
      EXPECT_EQ(detail::crc32c_folding(part, previous), expected) << sizes[i];
    }
  }
}

// Every length up to 4096 bytes, from every place in a line of the cache: whole
// turns of folding, what is left of them, and loads across lines.
TEST(Crc32c, EveryLengthAtEveryAlignment) {
  constexpr std::size_t kLongest = 4096, kLine = 64;
  const auto bytes = random_bytes(kLine + kLongest);
  for (std::size_t start = 0; start < kLine; ++start) {
    const auto from = std::span(bytes).subspan(start, kLongest);
    std::uint32_t expected = by_definition({}, 0);
    for (std::size_t size = 0; size <= kLongest; ++size) {
      if (size > 0) expected = by_definition(from.subspan(size - 1, 1), expected);
      const auto part = from.first(size);
      if (start == 0) {
        ASSERT_EQ(detail::crc32c_table(part, 0), expected) << size;
      }
      if (detail::crc32c_has_hardware()) {
        ASSERT_EQ(detail::crc32c_hardware(part, 0), expected) << size << " from " << start;
      }
      if (detail::crc32c_has_folding()) {
        ASSERT_EQ(detail::crc32c_folding(part, 0), expected) << size << " from " << start;
      }
    }
  }
}

TEST(Crc32c, CutAnywhere) {
  const auto bytes = random_bytes(4096);
  const auto all = std::span(bytes);
  const std::uint32_t whole = by_definition(bytes, 0);
  for (std::size_t cut = 0; cut <= bytes.size(); ++cut) {
    ASSERT_EQ(crc32c(all.subspan(cut), crc32c(all.first(cut))), whole) << cut;
  }
}

TEST(Crc32c, GoesOnFromAPreviousPart) {
  const auto bytes = random_bytes(100'003);
  const std::uint32_t whole = crc32c(bytes);
  for (const std::size_t cut : {0u, 1u, 7u, 4096u, 50'000u, 100'003u}) {
    const auto all = std::span(bytes);
    EXPECT_EQ(crc32c(all.subspan(cut), crc32c(all.first(cut))), whole) << cut;
  }
}

TEST(Crc32c, EverySingleBitMatters) {
  auto bytes = random_bytes(97);
  const std::uint32_t right = crc32c(bytes);
  for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    const auto mask = static_cast<std::byte>(1u << (bit % 8));
    bytes[bit / 8] ^= mask;
    EXPECT_NE(crc32c(bytes), right) << bit;
    bytes[bit / 8] ^= mask;
  }
}

}  // namespace
}  // namespace thinwire
