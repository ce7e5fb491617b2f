// Bit packing for the block codec, compiled once for every SIMD target.
#if defined(THINWIRE_PEFT_BLOCK_BITS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_PEFT_BLOCK_BITS_INL_H
#undef THINWIRE_PEFT_BLOCK_BITS_INL_H
#else
#define THINWIRE_PEFT_BLOCK_BITS_INL_H
#endif

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace thinwire::peft::HWY_NAMESPACE {

static_assert(std::endian::native == std::endian::little, "words are read as little-endian bytes");

// The bits of `value` under `mask`, moved together at the low end.
HWY_INLINE std::uint64_t ExtractBits(std::uint64_t value, std::uint64_t mask) {
#if HWY_ARCH_X86_64 && HWY_TARGET <= HWY_AVX2
  return _pext_u64(value, mask);
#else
  std::uint64_t out = 0;
  for (unsigned i = 0; mask != 0; mask &= mask - 1, ++i)
    out |= (value >> std::countr_zero(mask) & 1) << i;
  return out;
#endif
}

// The inverse: low bits of `value` moved to the set bits of `mask`.
HWY_INLINE std::uint64_t DepositBits(std::uint64_t value, std::uint64_t mask) {
#if HWY_ARCH_X86_64 && HWY_TARGET <= HWY_AVX2
  return _pdep_u64(value, mask);
#else
  std::uint64_t out = 0;
  for (; mask != 0; mask &= mask - 1, value >>= 1) out |= (value & 1) << std::countr_zero(mask);
  return out;
#endif
}

// Appends bits, low ones first. The memory must hold all bits that are put, rounded up to bytes.
class BitWriter {
 public:
  explicit BitWriter(std::byte* out) : out_(out) {}

  // `bits` has no bit set from `count` on; count <= 64.
  HWY_INLINE void Put(std::uint64_t bits, unsigned count) {
    held_ |= bits << fill_;
    if (fill_ + count < 64) {
      fill_ += count;
      return;
    }
    std::memcpy(out_, &held_, 8);
    out_ += 8;
    held_ = fill_ == 0 ? 0 : bits >> (64 - fill_);
    fill_ = fill_ + count - 64;
  }

  std::byte* Finish() {
    const unsigned bytes = (fill_ + 7) / 8;
    std::memcpy(out_, &held_, bytes);
    return out_ + bytes;
  }

 private:
  std::byte* out_;
  std::uint64_t held_ = 0;
  unsigned fill_ = 0;  // bits held, below 64
};

// Reads bits, low ones first; past the end there are zeros.
class BitReader {
 public:
  explicit BitReader(std::span<const std::byte> in) : in_(in) {}

  // At least 57 bits from the current position on.
  HWY_INLINE std::uint64_t Peek() const {
    const std::size_t byte = position_ / 8;
    std::uint64_t bits = 0;
    if (byte + 8 <= in_.size()) [[likely]] {
      std::memcpy(&bits, in_.data() + byte, 8);
    } else if (byte < in_.size()) {
      std::memcpy(&bits, in_.data() + byte, in_.size() - byte);
    }
    return bits >> (position_ % 8);
  }
  HWY_INLINE void Skip(std::size_t count) { position_ += count; }
  // Exactly `count` <= 64 bits.
  HWY_INLINE std::uint64_t Get(unsigned count) {
    std::uint64_t bits = Peek();
    const std::size_t shift = position_ % 8;
    const std::size_t ninth = position_ / 8 + 8;
    if (shift + count > 64 && ninth < in_.size())
      bits |= std::to_integer<std::uint64_t>(in_[ninth]) << (64 - shift);
    position_ += count;
    return count == 64 ? bits : bits & ((std::uint64_t{1} << count) - 1);
  }
  std::size_t Position() const { return position_; }
  std::size_t SizeInBits() const { return 8 * in_.size(); }
  // Nothing but zero padding of less than a byte follows.
  bool AtEnd() const {
    return position_ <= SizeInBits() && SizeInBits() - position_ < 8 && Peek() == 0;
  }

 private:
  std::span<const std::byte> in_;
  std::size_t position_ = 0;
};

// The signs of the set entries, packed.
inline std::byte* PackSigns(std::span<const std::uint64_t> mask,
                            std::span<const std::uint64_t> sign, std::byte* out) {
  BitWriter writer(out);
  for (std::size_t w = 0; w < mask.size(); ++w) {
    if (mask[w] == 0) continue;
    writer.Put(ExtractBits(sign[w], mask[w]), static_cast<unsigned>(std::popcount(mask[w])));
  }
  return writer.Finish();
}

// False unless `in` is used up. The caller has checked that it holds a bit for every set entry.
inline bool UnpackSigns(std::span<const std::byte> in, std::span<const std::uint64_t> mask,
                        std::span<std::uint64_t> sign) {
  BitReader reader(in);
  for (std::size_t w = 0; w < mask.size(); ++w) {
    sign[w] = 0;
    if (mask[w] == 0) continue;
    const auto count = static_cast<unsigned>(std::popcount(mask[w]));
    sign[w] = DepositBits(reader.Get(count), mask[w]);
  }
  return reader.AtEnd();
}

}  // namespace thinwire::peft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
