#include "thinwire/common/crc32c.h"

#include <array>
#include <bit>
#include <boost/endian/conversion.hpp>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace thinwire {
namespace {

// Checksums are polynomials over GF(2) modulo P, with the coefficient of x^0 in bit 31. Appending n
// zero bytes to a message multiplies its checksum by x^(8n); appending anything else also adds the
// checksum of what is appended. Both implementations, and the joining of the hardware's three
// strands, rest on this alone.
constexpr std::uint32_t kPolynomial = 0x82F63B78;
constexpr std::uint32_t kOne = 1u << 31;

constexpr std::uint32_t times_x(std::uint32_t a) {
  return (a & 1) ? (a >> 1) ^ kPolynomial : a >> 1;
}

constexpr std::uint32_t multiply(std::uint32_t a, std::uint32_t b) {
  std::uint32_t product = 0;
  for (std::uint32_t coefficient = kOne; coefficient != 0; coefficient >>= 1) {
    if (a & coefficient) product ^= b;
    b = times_x(b);
  }
  return product;
}

constexpr std::uint32_t x_to_the(std::size_t exponent) {
  std::uint32_t result = kOne;
  for (std::uint32_t square = times_x(kOne); exponent != 0; exponent >>= 1) {
    if (exponent & 1) result = multiply(result, square);
    square = multiply(square, square);
  }
  return result;
}

// table[k][b]: the checksum of byte b followed by k zero bytes, from a zero start.
using ByteTables = std::array<std::array<std::uint32_t, 256>, 8>;

constexpr ByteTables make_byte_tables() {
  ByteTables tables{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t crc = byte;
    for (auto& table : tables) {
      for (int bit = 0; bit < 8; ++bit) crc = times_x(crc);
      table[byte] = crc;
    }
  }
  return tables;
}

constexpr ByteTables kByteTables = make_byte_tables();

#if defined(__x86_64__)

// Multiplies by x^(8 * bytes) with one look-up a byte of the checksum.
class ZeroBytes {
 public:
  constexpr explicit ZeroBytes(std::size_t bytes) {
    const std::uint32_t factor = x_to_the(8 * bytes);
    for (std::uint32_t place = 0; place < 4; ++place) {
      for (std::uint32_t byte = 0; byte < 256; ++byte) {
        tables_[place][byte] = multiply(byte << (8 * place), factor);
      }
    }
  }

  std::uint32_t append_to(std::uint32_t crc) const {
    return tables_[0][crc & 0xFF] ^ tables_[1][(crc >> 8) & 0xFF] ^ tables_[2][(crc >> 16) & 0xFF] ^
           tables_[3][crc >> 24];
  }

 private:
  std::array<std::array<std::uint32_t, 256>, 4> tables_{};
};

std::uint64_t load(const std::byte* at) {
  std::uint64_t word;
  std::memcpy(&word, at, sizeof(word));
  return word;
}

// The instruction takes one word a cycle but answers after three, so three strands of kStrand bytes
// run side by side and are joined. Joining costs eight look-ups: strands much shorter than 256
// bytes would spend their gain on it. Long strands make it vanish, but leave a longer rest.
template <std::size_t kStrand>
__attribute__((target("sse4.2"))) std::uint32_t three_strands(const std::byte*& at,
                                                              const std::byte* end,
                                                              std::uint32_t start) {
  static constexpr ZeroBytes kAppend(kStrand);
  std::uint64_t first = start;
  while (static_cast<std::size_t>(end - at) >= 3 * kStrand) {
    std::uint64_t second = 0, third = 0;
    for (const std::byte* stop = at + kStrand; at != stop; at += 8) {
      first = _mm_crc32_u64(first, load(at));
      second = _mm_crc32_u64(second, load(at + kStrand));
      third = _mm_crc32_u64(third, load(at + 2 * kStrand));
    }
    first = kAppend.append_to(static_cast<std::uint32_t>(first)) ^ second;
    first = kAppend.append_to(static_cast<std::uint32_t>(first)) ^ third;
    at += 2 * kStrand;
  }
  return static_cast<std::uint32_t>(first);
}

#endif

}  // namespace

namespace detail {

// Eight bytes a turn: each byte's part is looked up in the table of as many zero bytes as follow
// it.
std::uint32_t crc32c_table(std::span<const std::byte> bytes, std::uint32_t previous) {
  std::uint32_t crc = ~previous;
  const auto* at = reinterpret_cast<const unsigned char*>(bytes.data());
  std::size_t left = bytes.size();
  for (; left >= 8; at += 8, left -= 8) {
    const std::uint64_t word = boost::endian::load_little_u64(at) ^ crc;
    crc = 0;
    for (std::size_t i = 0; i < 8; ++i) crc ^= kByteTables[7 - i][(word >> (8 * i)) & 0xFF];
  }
  for (; left > 0; ++at, --left) crc = kByteTables[0][(crc ^ *at) & 0xFF] ^ (crc >> 8);
  return ~crc;
}

#if defined(__x86_64__)

bool crc32c_has_hardware() {
  return __builtin_cpu_supports("sse4.2");
}

__attribute__((target("sse4.2"))) std::uint32_t crc32c_hardware(std::span<const std::byte> bytes,
                                                                std::uint32_t previous) {
  const std::byte* at = bytes.data();
  const std::byte* const end = at + bytes.size();
  std::uint32_t crc = three_strands<8192>(at, end, ~previous);
  crc = three_strands<256>(at, end, crc);
  for (; end - at >= 8; at += 8) crc = static_cast<std::uint32_t>(_mm_crc32_u64(crc, load(at)));
  for (; at != end; ++at) crc = _mm_crc32_u8(crc, static_cast<unsigned char>(*at));
  return ~crc;
}

#else

bool crc32c_has_hardware() {
  return false;
}

std::uint32_t crc32c_hardware(std::span<const std::byte> bytes, std::uint32_t previous) {
  return crc32c_table(bytes, previous);
}

#endif

}  // namespace detail

std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t previous) {
  static const bool hardware = detail::crc32c_has_hardware();
  return hardware ? detail::crc32c_hardware(bytes, previous)
                  : detail::crc32c_table(bytes, previous);
}

}  // namespace thinwire
