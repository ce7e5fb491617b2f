#include "thinwire/compressors/codecs/index_coder.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "thinwire/common/error.h"
#include "thinwire/compressors/kernels/elias_fano.h"

static_assert(std::endian::native == std::endian::little, "payloads are little-endian");

namespace thinwire {
namespace {

constexpr unsigned kBitmap = 254, kFixed = 255, kMaxRice = 31;

std::uint64_t bytes_for(std::uint64_t bits) {
  return (bits + 7) / 8;
}

// The most bits of Golomb-Rice: the gaps sum to at most n − k, and quotients of a sum bound the sum
// of quotients.
std::uint64_t max_rice_bits(std::uint64_t n, std::uint64_t k, unsigned b) {
  return k * (b + 1) + ((n - k) >> b);
}

unsigned best_rice_bound(std::uint64_t n, std::uint64_t k) {
  unsigned best = 0;
  for (unsigned b = 1; b <= kMaxRice; ++b) {
    if (max_rice_bits(n, k, b) < max_rice_bits(n, k, best)) best = b;
  }
  return best;
}

unsigned fixed_width(std::uint64_t n) {
  return n <= 1 ? 0 : static_cast<unsigned>(std::bit_width(n - 1));
}

class BitWriter {
 public:
  explicit BitWriter(std::byte* at) : at_(at) {}

  // The low `count` bits of `bits`, whose others are zero; count <= 32.
  void put(std::uint64_t bits, unsigned count) {
    held_ |= bits << used_;
    used_ += count;
    if (used_ >= 32) {
      const auto word = static_cast<std::uint32_t>(held_);
      std::memcpy(at_, &word, sizeof word);
      at_ += sizeof word;
      held_ >>= 32;
      used_ -= 32;
    }
  }

  void zeros(std::uint64_t count) {
    for (; count >= 32; count -= 32) put(0, 32);
    put(0, static_cast<unsigned>(count));
  }

  // Writes what is held and returns the end.
  std::byte* finish() {
    for (; used_ > 0; used_ -= std::min(used_, 8u), held_ >>= 8)
      *at_++ = static_cast<std::byte>(held_);
    return at_;
  }

 private:
  std::byte* at_;
  std::uint64_t held_ = 0;
  unsigned used_ = 0;
};

class BitReader {
 public:
  explicit BitReader(std::span<const std::byte> bytes) : bytes_(bytes), end_(bytes.size() * 8) {}

  // The next 56 bits; zeros after the end.
  std::uint64_t peek() const {
    const std::size_t byte = position_ / 8;
    std::uint64_t word = 0;
    if (byte + 8 <= bytes_.size()) {
      std::memcpy(&word, bytes_.data() + byte, 8);
    } else if (byte < bytes_.size()) {
      std::memcpy(&word, bytes_.data() + byte, bytes_.size() - byte);
    }
    return (word >> (position_ % 8)) & ((std::uint64_t{1} << 56) - 1);
  }

  void skip(std::uint64_t bits) {
    position_ += bits;
    if (position_ > end_) [[unlikely]]
      throw FrameError("index payload is truncated");
  }

  std::uint64_t take(unsigned bits) {
    const std::uint64_t value = peek() & ((std::uint64_t{1} << bits) - 1);
    skip(bits);
    return value;
  }

  // Number of zero bits before the next one bit, which is consumed too.
  std::uint64_t unary() {
    std::uint64_t zeros = 0;
    std::uint64_t word = peek();
    while (word == 0) {
      skip(56);
      zeros += 56;
      word = peek();
    }
    const auto last = static_cast<unsigned>(std::countr_zero(word));
    skip(last + 1);
    return zeros + last;
  }

  bool rest_is_zero() const {
    if (position_ >= end_) return true;
    const std::size_t byte = position_ / 8;
    return (std::to_integer<unsigned>(bytes_[byte]) >> (position_ % 8)) == 0 &&
           std::ranges::all_of(bytes_.subspan(byte + 1),
                               [](std::byte b) { return b == std::byte{0}; });
  }

  // Bytes read; throws where the padding of the last one is not zero.
  std::size_t finish() const {
    const unsigned used = position_ % 8;
    if (used != 0 && (std::to_integer<unsigned>(bytes_[position_ / 8]) >> used) != 0) {
      throw FrameError("index payload has padding bits that are not zero");
    }
    return (position_ + 7) / 8;
  }

 private:
  std::span<const std::byte> bytes_;
  std::uint64_t end_;
  std::uint64_t position_ = 0;
};

std::uint32_t checked_index(std::uint64_t index, std::uint64_t n) {
  if (index >= n) [[unlikely]] {
    throw FrameError(concat("index payload holds index ", index, " of a tensor of ", n));
  }
  return static_cast<std::uint32_t>(index);
}

void decode_rice(BitReader& bits, unsigned b, std::uint64_t n, std::span<std::uint32_t> indices) {
  std::uint64_t next = 0;  // the smallest index that may follow
  for (auto& index : indices) {
    const std::uint64_t quotient = bits.unary();
    checked_index(quotient > (n >> b) ? n : next, n);
    index = checked_index(next + ((quotient << b) | bits.take(b)), n);
    next = std::uint64_t{index} + 1;
  }
}

void decode_fixed(BitReader& bits, std::uint64_t n, std::span<std::uint32_t> indices) {
  const unsigned width = fixed_width(n);
  std::uint64_t next = 0;
  for (auto& index : indices) {
    index = checked_index(bits.take(width), n);
    if (index < next) throw FrameError(concat("index payload is not ascending at ", index));
    next = std::uint64_t{index} + 1;
  }
}

std::size_t decode_bitmap(std::span<const std::byte> in, std::uint64_t n,
                          std::span<std::uint32_t> indices) {
  const std::size_t bytes = bytes_for(n);
  if (in.size() < bytes) throw FrameError("index payload is truncated");
  std::size_t count = 0;
  for (std::size_t base = 0; base < bytes; base += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, in.data() + base, std::min<std::size_t>(8, bytes - base));
    if (count + static_cast<std::size_t>(std::popcount(word)) > indices.size()) {
      throw FrameError(concat("index bitmap has more than ", indices.size(), " bits set"));
    }
    for (; word != 0; word &= word - 1) {
      indices[count++] =
          checked_index(base * 8 + static_cast<std::uint64_t>(std::countr_zero(word)), n);
    }
  }
  if (count != indices.size()) {
    throw FrameError(concat("index bitmap has ", count, " bits set instead of ", indices.size()));
  }
  return bytes;
}

// The words of form 253, from after its byte and the three zeros.
struct EliasFanoPlaces {
  kernels::EliasFano shape;
  std::size_t directory, low, upper, end;
};
EliasFanoPlaces places_of(std::uint64_t n, std::uint64_t k) {
  const auto shape = kernels::EliasFano::of(n, k);
  const auto words = [](std::uint32_t count) { return std::size_t{4} * count; };
  const std::size_t low = words(shape.directory_words);
  const std::size_t upper = low + words(shape.low_words);
  return {shape, 0, low, upper, upper + words(shape.upper_words)};
}

// The directory says of every run of words how many bits were set before it, and nothing else.
void check_directory(std::span<const std::byte> in, const EliasFanoPlaces& at) {
  std::uint32_t ones = 0;
  for (std::uint32_t w = 0; w < at.shape.upper_words; ++w) {
    std::uint32_t told, word;
    if (w % kernels::kDirectoryRun == 0) {
      std::memcpy(&told, in.data() + at.directory + w / kernels::kDirectoryRun * 4, sizeof told);
      if (told != ones) {
        throw FrameError(concat("the index payload's directory says ", told, " for word ", w,
                                ", before which are ", ones));
      }
    }
    std::memcpy(&word, in.data() + at.upper + std::size_t{4} * w, sizeof word);
    ones += static_cast<std::uint32_t>(std::popcount(word));
  }
}

std::size_t decode_elias_fano(std::span<const std::byte> in, std::uint64_t n,
                              std::span<std::uint32_t> indices) {
  constexpr std::size_t kZeros = 3;
  if (indices.empty() || indices.size() > n) throw FrameError("index payload of no or too many");
  const EliasFanoPlaces at = places_of(n, indices.size());
  if (in.size() < kZeros + at.end) throw FrameError("index payload is truncated");
  if (std::ranges::any_of(in.first(kZeros), [](std::byte b) { return b != std::byte{0}; })) {
    throw FrameError("index payload has padding bits that are not zero");
  }
  in = in.subspan(kZeros, at.end);
  check_directory(in, at);
  BitReader low(in.subspan(at.low, at.upper - at.low)), upper(in.subspan(at.upper));
  std::uint64_t zeros = 0, next = 0;
  for (auto& index : indices) {
    zeros += upper.unary();
    checked_index(zeros > (n >> at.shape.low_bits) ? n : next, n);
    const std::uint64_t found = zeros << at.shape.low_bits | low.take(at.shape.low_bits);
    if (found < next) throw FrameError(concat("index payload is not ascending at ", found));
    index = checked_index(found, n);
    next = found + 1;
  }
  for (const BitReader* part : {&low, &upper}) {
    if (!part->rest_is_zero()) {
      throw FrameError("index payload has padding bits that are not zero");
    }
  }
  return kZeros + at.end;
}

}  // namespace

std::size_t elias_fano_bytes(std::uint64_t n, std::uint64_t k) {
  THINWIRE_ASSERT(k >= 1 && k <= n);
  return 4 + places_of(n, k).end;
}

void encode_elias_fano(std::span<const std::uint32_t> indices, std::uint64_t n,
                       std::span<std::byte> out) {
  const EliasFanoPlaces at = places_of(n, indices.size());
  THINWIRE_ASSERT(out.size() >= 4 + at.end);
  std::memset(out.data(), 0, 4 + at.end);
  out[0] = static_cast<std::byte>(kernels::kEliasFanoForm);
  out = out.subspan(4);
  BitWriter low(out.data() + at.low);
  const auto upper = out.subspan(at.upper);
  const std::uint32_t mask = (std::uint32_t{1} << at.shape.low_bits) - 1;
  for (std::size_t j = 0; j < indices.size(); ++j) {
    low.put(indices[j] & mask, at.shape.low_bits);
    const std::size_t bit = (indices[j] >> at.shape.low_bits) + j;
    upper[bit / 8] |= static_cast<std::byte>(1u << (bit % 8));
  }
  low.finish();
  std::uint32_t ones = 0;
  for (std::uint32_t w = 0; w < at.shape.upper_words; ++w) {
    if (w % kernels::kDirectoryRun == 0) {
      std::memcpy(out.data() + at.directory + w / kernels::kDirectoryRun * 4, &ones, sizeof ones);
    }
    std::uint32_t word;
    std::memcpy(&word, upper.data() + std::size_t{4} * w, sizeof word);
    ones += static_cast<std::uint32_t>(std::popcount(word));
  }
}

std::size_t max_index_bytes(std::uint64_t n, std::uint64_t k) {
  THINWIRE_ASSERT(k <= n);
  const std::uint64_t rice = max_rice_bits(n, k, best_rice_bound(n, k));
  return 1 + bytes_for(std::min({n, k * fixed_width(n), rice}));
}

std::size_t min_index_bytes(std::uint64_t k) {
  return 1 + k / 8;
}

std::size_t encode_indices(std::span<const std::uint32_t> indices, std::uint64_t n,
                           std::span<std::byte> out) {
  const std::uint64_t k = indices.size();
  THINWIRE_ASSERT(k <= n && out.size() >= max_index_bytes(n, k));
  // Four parameters are tried: the one with the best bound, which keeps the promise of
  // max_index_bytes(), and three around ln 2 times the mean gap.
  std::array<unsigned, 4> tried{best_rice_bound(n, k), 0, 1, 2};
  if (k > 0) {
    const double mean =
        static_cast<double>(indices.back() + std::uint64_t{1} - k) / static_cast<double>(k);
    const auto near =
        static_cast<unsigned>(std::bit_width(static_cast<std::uint64_t>(0.69 * mean)));
    for (unsigned j = 0; j < 3; ++j)
      tried[j + 1] = std::min(near + j - std::min(near, 1u), kMaxRice);
  }
  std::array<std::uint64_t, 4> bits{};
  std::uint32_t next = 0;
  for (const std::uint32_t index : indices) {
    for (std::size_t j = 0; j < 4; ++j) bits[j] += (index - next) >> tried[j];
    next = index + 1;
  }
  for (std::size_t j = 0; j < 4; ++j) bits[j] += k * (tried[j] + 1);
  const std::size_t best =
      static_cast<std::size_t>(std::min_element(bits.begin(), bits.end()) - bits.begin());

  const std::uint64_t fixed_bits = k * fixed_width(n);
  const std::uint64_t least = std::min({bits[best], n, fixed_bits});
  if (bits[best] == least) {
    const unsigned b = tried[best];
    out[0] = static_cast<std::byte>(b);
    BitWriter writer(out.data() + 1);
    next = 0;
    for (const std::uint32_t index : indices) {
      const std::uint32_t gap = index - next;
      next = index + 1;
      const std::uint32_t quotient = gap >> b;
      if (quotient > 0) writer.zeros(quotient);
      writer.put(1 | std::uint64_t{gap & ((std::uint32_t{1} << b) - 1)} << 1, b + 1);
    }
    return static_cast<std::size_t>(writer.finish() - out.data());
  }
  if (n == least) {
    out[0] = static_cast<std::byte>(kBitmap);
    const auto map = out.subspan(1, bytes_for(n));
    std::memset(map.data(), 0, map.size());
    for (const std::uint32_t index : indices) {
      map[index / 8] |= static_cast<std::byte>(1u << (index % 8));
    }
    return 1 + map.size();
  }
  out[0] = static_cast<std::byte>(kFixed);
  BitWriter writer(out.data() + 1);
  for (const std::uint32_t index : indices) writer.put(index, fixed_width(n));
  return static_cast<std::size_t>(writer.finish() - out.data());
}

std::size_t decode_indices(std::span<const std::byte> in, std::uint64_t n,
                           std::span<std::uint32_t> indices) {
  if (in.empty()) throw FrameError("index payload is empty");
  const auto form = std::to_integer<unsigned>(in[0]);
  const auto body = in.subspan(1);
  if (form == kBitmap) return 1 + decode_bitmap(body, n, indices);
  if (form == kernels::kEliasFanoForm) return 1 + decode_elias_fano(body, n, indices);
  BitReader bits(body);
  if (form == kFixed) {
    decode_fixed(bits, n, indices);
  } else if (form <= kMaxRice) {
    decode_rice(bits, form, n, indices);
  } else {
    throw FrameError(concat("index payload has unknown form ", form));
  }
  return 1 + bits.finish();
}

}  // namespace thinwire
