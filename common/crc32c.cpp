#include "thinwire/common/crc32c.h"

#include <array>
#include <bit>
#include <boost/endian/conversion.hpp>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
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

// Folding moves 16 bytes of the message past those that follow them, with no table: what bits i of
// a 128-bit lane stand for, x^(127 − i), times x^kDistance modulo P, is the sum of the carry-less
// products of its halves with two constants, whose products are one power of x too high.
// (V. Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ", Intel 2009.)
constexpr std::uint64_t fold_constant(std::size_t exponent) {
  return std::uint64_t{x_to_the(exponent)} << 32;
}

constexpr std::size_t kFolded = 256;  // bytes a turn, in four vectors
// From here on the turns make good for the checksum of the four vectors at the end.
constexpr std::size_t kWorthFolding = 4 * kFolded;

#define THINWIRE_FOLDS __attribute__((target("avx512f,vpclmulqdq,sse4.2")))

// Leaves the checksum of all whole turns from `start` on in four vectors that stand for the
// message's last 256 bytes, and moves `at` behind them.
THINWIRE_FOLDS void fold(const std::byte*& at, const std::byte* end, std::uint32_t start,
                         std::byte* last) {
  constexpr std::size_t kDistance = 8 * kFolded;
  const __m512i by = _mm512_broadcast_i32x4(
      _mm_set_epi64x(static_cast<std::int64_t>(fold_constant(kDistance - 1)),
                     static_cast<std::int64_t>(fold_constant(kDistance + 63))));
  __m512i part[4];
  for (std::size_t i = 0; i < 4; ++i) part[i] = _mm512_loadu_si512(at + 64 * i);
  part[0] = _mm512_xor_si512(
      part[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<std::int32_t>(start))));
  for (at += kFolded; static_cast<std::size_t>(end - at) >= kFolded; at += kFolded) {
    for (std::size_t i = 0; i < 4; ++i) {
      constexpr int kXorOfThree = 0x96;
      part[i] = _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(part[i], by, 0x00),
                                          _mm512_clmulepi64_epi128(part[i], by, 0x11),
                                          _mm512_loadu_si512(at + 64 * i), kXorOfThree);
    }
  }
  for (std::size_t i = 0; i < 4; ++i) _mm512_storeu_si512(last + 64 * i, part[i]);
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

bool crc32c_has_folding() {
  return crc32c_has_hardware() && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("vpclmulqdq");
}

std::uint32_t crc32c_folding(std::span<const std::byte> bytes, std::uint32_t previous) {
  if (bytes.size() < kWorthFolding) return crc32c_hardware(bytes, previous);
  const std::byte* at = bytes.data();
  const std::byte* const end = at + bytes.size();
  std::array<std::byte, kFolded> last;
  fold(at, end, ~previous, last.data());
  // Folded in is what the checksum started from: the vectors are summed up from nothing.
  const std::uint32_t turns = crc32c_hardware(last, ~std::uint32_t{0});
  return crc32c_hardware({at, end}, turns);
}

#else

bool crc32c_has_folding() {
  return false;
}

std::uint32_t crc32c_folding(std::span<const std::byte> bytes, std::uint32_t previous) {
  return crc32c_table(bytes, previous);
}

bool crc32c_has_hardware() {
  return false;
}

std::uint32_t crc32c_hardware(std::span<const std::byte> bytes, std::uint32_t previous) {
  return crc32c_table(bytes, previous);
}

#endif

Crc32c crc32c_chosen() {
  static const Crc32c chosen = crc32c_has_folding()    ? crc32c_folding
                               : crc32c_has_hardware() ? crc32c_hardware
                                                       : crc32c_table;
  return chosen;
}

}  // namespace detail

std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t previous) {
  return detail::crc32c_chosen()(bytes, previous);
}

}  // namespace thinwire
