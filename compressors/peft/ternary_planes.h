// A vector over {-1, 0, +1} as two bit planes, the form in which ComPEFT deltas are compared,
// merged and applied. Bit i % 64 of word i / 64 of `mask` says that entry i is not zero, the same
// bit of `sign` that it is negative.
//
// Yadav et al., "ComPEFT: Compression for Communicating Parameter Efficient Updates via
// Sparsification and Quantization", arXiv 2311.13171, section 2.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "thinwire/compressors/view/tensor_view.h"

namespace thinwire::peft {

constexpr std::int64_t words_for(std::int64_t numel) {
  return (numel + 63) / 64;
}

// Planes that someone else owns. Both spans hold words_for(numel) words; bits past numel are zero
// and `sign` is a subset of `mask`.
struct PlanesView {
  std::span<const std::uint64_t> mask;
  std::span<const std::uint64_t> sign;
  std::int64_t numel = 0;

  int trit(std::int64_t i) const {
    const auto w = static_cast<std::size_t>(i / 64);
    const auto bit = static_cast<unsigned>(i % 64);
    return static_cast<int>(mask[w] >> bit & 1) * (1 - 2 * static_cast<int>(sign[w] >> bit & 1));
  }
  // Entries [begin, begin + count); `begin` must be a multiple of 64, and `count` too unless the
  // slice reaches the end.
  PlanesView slice(std::int64_t begin, std::int64_t count) const;
};

// Words that are zero at first and take memory only where something is written: a file of a few
// kilobytes can describe gigabytes of empty blocks, and those must cost nothing.
class ZeroedWords {
 public:
  ZeroedWords() = default;
  explicit ZeroedWords(std::size_t size);  // std::bad_alloc where that is too much
  ZeroedWords(const ZeroedWords& other);
  ZeroedWords(ZeroedWords&& other) noexcept { swap(other); }
  ZeroedWords& operator=(ZeroedWords other) noexcept {
    swap(other);
    return *this;
  }

  std::span<std::uint64_t> span() { return {words_.get(), size_}; }
  std::span<const std::uint64_t> span() const { return {words_.get(), size_}; }

 private:
  struct Free {
    void operator()(std::uint64_t* words) const;
  };
  void swap(ZeroedWords& other) noexcept {
    std::swap(words_, other.words_);
    std::swap(size_, other.size_);
  }

  std::unique_ptr<std::uint64_t, Free> words_;
  std::size_t size_ = 0;
};

// Owning planes, all zero at first. Not thread-safe to change; the functions below only read.
class TernaryPlanes {
 public:
  TernaryPlanes() = default;
  explicit TernaryPlanes(std::int64_t numel);

  std::int64_t numel() const { return numel_; }
  std::span<std::uint64_t> mask() { return mask_.span(); }
  std::span<std::uint64_t> sign() { return sign_.span(); }
  std::span<const std::uint64_t> mask() const { return mask_.span(); }
  std::span<const std::uint64_t> sign() const { return sign_.span(); }
  PlanesView view() const { return {mask(), sign(), numel_}; }

  // `trit` in {-1, 0, +1}.
  void set(std::int64_t i, int trit) {
    const auto w = static_cast<std::size_t>(i / 64);
    const auto bit = std::uint64_t{1} << (i % 64);
    mask()[w] = trit != 0 ? mask()[w] | bit : mask()[w] & ~bit;
    sign()[w] = trit < 0 ? sign()[w] | bit : sign()[w] & ~bit;
  }

 private:
  std::int64_t numel_ = 0;
  ZeroedWords mask_;
  ZeroedWords sign_;
};

// A copy of entries [begin, begin + count), any of them.
TernaryPlanes extract(PlanesView planes, std::int64_t begin, std::int64_t count);

// Number of entries that are not zero.
std::int64_t count_nonzero(PlanesView planes);

// Sum of a[i] * b[i]; InvalidArgument unless both have the same numel.
std::int64_t dot(PlanesView a, PlanesView b);

// dot / sqrt(nonzero(a) nonzero(b)), the cosine of the two vectors whatever their scales; 0 where
// one of them is zero.
double cosine(PlanesView a, PlanesView b);

// |scale| * sqrt(nonzero): the L2 norm of scale times the vector.
double norm(PlanesView planes, double scale);

// target[i] += scale * trit(begin + i) for i < target.numel, in one pass over the planes. float32
// targets are added to in float32, float16 and bfloat16 ones with one rounding to nearest even.
// The target need not be aligned, and entries whose trit is zero are not touched.
void axpy(float scale, PlanesView planes, std::int64_t begin, TensorView target);

// out[i] = constant + scale * trit(begin + i) in float32.
void expand(float scale, float constant, PlanesView planes, std::int64_t begin,
            std::span<float> out);

namespace detail {
// dot() on words, for every SIMD target of the processor and as plain C++ (the oracle).
std::int64_t dot_words_reference(std::span<const std::uint64_t> a_mask,
                                 std::span<const std::uint64_t> a_sign,
                                 std::span<const std::uint64_t> b_mask,
                                 std::span<const std::uint64_t> b_sign);
std::int64_t dot_words(std::span<const std::uint64_t> a_mask, std::span<const std::uint64_t> a_sign,
                       std::span<const std::uint64_t> b_mask,
                       std::span<const std::uint64_t> b_sign);
std::int64_t popcount_words(std::span<const std::uint64_t> words);
}  // namespace detail

}  // namespace thinwire::peft
