#include "thinwire/compressors/peft/ternary_planes.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <new>

#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/float_bits.h"

namespace thinwire::peft {
namespace {

// The 64 bits of `plane` from entry `at` on; zero past the end.
std::uint64_t bits_from(std::span<const std::uint64_t> plane, std::int64_t at) {
  const auto w = static_cast<std::size_t>(at / 64);
  const auto shift = static_cast<unsigned>(at % 64);
  std::uint64_t bits = w < plane.size() ? plane[w] >> shift : 0;
  if (shift != 0 && w + 1 < plane.size()) bits |= plane[w + 1] << (64 - shift);
  return bits;
}

// Calls visit(i, negative) for every non-zero entry begin + i with i < count, in order.
template <typename Visit>
void for_each_nonzero(PlanesView planes, std::int64_t begin, std::int64_t count, Visit visit) {
  for (std::int64_t first = 0; first < count; first += 64) {
    std::uint64_t mask = bits_from(planes.mask, begin + first);
    const std::int64_t rest = count - first;
    if (rest < 64) mask &= (std::uint64_t{1} << rest) - 1;
    if (mask == 0) continue;
    const std::uint64_t sign = bits_from(planes.sign, begin + first);
    for (; mask != 0; mask &= mask - 1) {
      const int bit = std::countr_zero(mask);
      visit(first + bit, (sign >> bit & 1) != 0);
    }
  }
}

void check_range(PlanesView planes, std::int64_t begin, std::int64_t count) {
  check(begin >= 0 && count >= 0 && count <= planes.numel - begin, "entries [", begin, ", ",
        begin + count, ") are not inside planes of ", planes.numel);
}

template <DType kType>
void add_to(float scale, PlanesView planes, std::int64_t begin, const TensorView& target) {
  auto* data = static_cast<std::byte*>(target.data);
  for_each_nonzero(planes, begin, target.numel, [&](std::int64_t i, bool negative) {
    detail::store_float(data, i, kType,
                        detail::load_float(data, i, kType) + (negative ? -scale : scale));
  });
}

}  // namespace

PlanesView PlanesView::slice(std::int64_t begin, std::int64_t count) const {
  check_range(*this, begin, count);
  check(begin % 64 == 0 && (count % 64 == 0 || begin + count == numel),
        "a slice of planes must start and end at words, got [", begin, ", ", begin + count, ")");
  const auto first = static_cast<std::size_t>(begin / 64);
  const auto words = static_cast<std::size_t>(words_for(count));
  return {mask.subspan(first, words), sign.subspan(first, words), count};
}

// calloc() of a large size hands out pages of zeros that the system fills when they are written.
ZeroedWords::ZeroedWords(std::size_t size) : size_(size) {
  if (size == 0) return;
  words_.reset(static_cast<std::uint64_t*>(std::calloc(size, sizeof(std::uint64_t))));
  if (!words_) throw std::bad_alloc();
}

ZeroedWords::ZeroedWords(const ZeroedWords& other) : ZeroedWords(other.size_) {
  std::copy_n(other.words_.get(), size_, words_.get());
}

void ZeroedWords::Free::operator()(std::uint64_t* words) const {
  std::free(words);
}

TernaryPlanes::TernaryPlanes(std::int64_t numel) : numel_(numel) {
  check(numel >= 0, "planes cannot have ", numel, " entries");
  mask_ = ZeroedWords(static_cast<std::size_t>(words_for(numel)));
  sign_ = ZeroedWords(static_cast<std::size_t>(words_for(numel)));
}

TernaryPlanes extract(PlanesView planes, std::int64_t begin, std::int64_t count) {
  check_range(planes, begin, count);
  TernaryPlanes out(count);
  for (std::size_t w = 0; w < out.mask().size(); ++w) {
    const auto at = static_cast<std::int64_t>(64 * w);
    std::uint64_t keep = ~std::uint64_t{0};
    if (count - at < 64) keep >>= 64 - (count - at);
    out.mask()[w] = bits_from(planes.mask, begin + at) & keep;
    out.sign()[w] = bits_from(planes.sign, begin + at) & keep;
  }
  return out;
}

std::int64_t count_nonzero(PlanesView planes) {
  return detail::popcount_words(planes.mask);
}

std::int64_t dot(PlanesView a, PlanesView b) {
  check(a.numel == b.numel, "the vectors have ", a.numel, " and ", b.numel, " entries");
  return detail::dot_words(a.mask, a.sign, b.mask, b.sign);
}

double cosine(PlanesView a, PlanesView b) {
  check(a.numel == b.numel, "the vectors have ", a.numel, " and ", b.numel, " entries");
  // A stretch at a time, so that the norms find the masks in the first-level cache.
  constexpr std::size_t kStretch = 1024;
  std::int64_t product = 0, a_ones = 0, b_ones = 0;
  for (std::size_t w = 0; w < a.mask.size(); w += kStretch) {
    const std::size_t n = std::min(kStretch, a.mask.size() - w);
    const auto a_mask = a.mask.subspan(w, n), b_mask = b.mask.subspan(w, n);
    product += detail::dot_words(a_mask, a.sign.subspan(w, n), b_mask, b.sign.subspan(w, n));
    a_ones += detail::popcount_words(a_mask);
    b_ones += detail::popcount_words(b_mask);
  }
  const double norms = static_cast<double>(a_ones) * static_cast<double>(b_ones);
  return norms > 0 ? static_cast<double>(product) / std::sqrt(norms) : 0;
}

double norm(PlanesView planes, double scale) {
  return std::fabs(scale) * std::sqrt(static_cast<double>(count_nonzero(planes)));
}

void axpy(float scale, PlanesView planes, std::int64_t begin, TensorView target) {
  check_range(planes, begin, target.numel);
  check(target.device == Device::kCpu, "axpy takes tensors in the memory of the host");
  switch (target.dtype) {
    case DType::kFloat32:
      return add_to<DType::kFloat32>(scale, planes, begin, target);
    case DType::kFloat16:
      return add_to<DType::kFloat16>(scale, planes, begin, target);
    case DType::kBFloat16:
      return add_to<DType::kBFloat16>(scale, planes, begin, target);
    case DType::kFloat64:
      throw InvalidArgument("axpy takes float32, float16 and bfloat16 tensors, got float64");
  }
}

void expand(float scale, float constant, PlanesView planes, std::int64_t begin,
            std::span<float> out) {
  const auto count = static_cast<std::int64_t>(out.size());
  check_range(planes, begin, count);
  std::fill(out.begin(), out.end(), constant);
  for_each_nonzero(planes, begin, count, [&](std::int64_t i, bool negative) {
    out[static_cast<std::size_t>(i)] = constant + (negative ? -scale : scale);
  });
}

}  // namespace thinwire::peft
