// Random tensors of any type and layout, for the comparison of MPI with Gloo.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include <ATen/ATen.h>

namespace thinwire::comm {

inline const std::vector<at::ScalarType>& every_type() {
  static const std::vector<at::ScalarType> types = {
      at::kFloat,  at::kDouble,      at::kHalf,         at::kBFloat16,     at::kByte,   at::kChar,
      at::kShort,  at::kInt,         at::kLong,         at::kBool,         at::kUInt16, at::kUInt32,
      at::kUInt64, at::kComplexHalf, at::kComplexFloat, at::kComplexDouble};
  return types;
}

// The tensor's bytes in logical order.
inline at::Tensor bytes_of(const at::Tensor& tensor) {
  // A copy: a single element counts as contiguous whatever its stride, yet has no view as bytes.
  const at::Tensor flat = at::empty({tensor.numel()}, tensor.options()).copy_(tensor.reshape({-1}));
  return flat.numel() == 0 ? at::empty({0}, at::kByte) : flat.view(at::kByte);
}

inline bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         at::equal(bytes_of(a), bytes_of(b));
}

// `shared` draws the same numbers on every rank, `own` others on each.
class Values {
 public:
  Values(int rank, int seed) : shared_(static_cast<unsigned>(seed)) {
    at::manual_seed(static_cast<std::uint64_t>(1000 * seed + rank));
  }

  std::int64_t below(std::int64_t limit) {
    return static_cast<std::int64_t>(shared_() % static_cast<std::uint64_t>(limit));
  }

  // None to three dimensions, small, now and then empty.
  std::vector<std::int64_t> shape() {
    std::vector<std::int64_t> sizes(static_cast<std::size_t>(below(4)));
    for (auto& size : sizes) size = below(9) == 0 ? 0 : 1 + below(14);
    return sizes;
  }

  // The same values in memory of another layout: contiguous, every second element, or transposed.
  at::Tensor lay_out(const at::Tensor& tensor) {
    const auto choice = below(3);
    if (tensor.dim() == 0 || choice == 0) return tensor.clone(at::MemoryFormat::Contiguous);
    if (choice == 1 || tensor.dim() == 1) {
      auto sizes = tensor.sizes().vec();
      sizes.back() *= 2;
      const at::Tensor wide = at::zeros(sizes, tensor.options());
      return wide.slice(-1, 0, sizes.back(), 2).copy_(tensor);
    }
    return tensor.transpose(0, 1).clone(at::MemoryFormat::Contiguous).transpose(0, 1);
  }

  // Any bits at all.
  at::Tensor any(at::IntArrayRef shape, at::ScalarType type) {
    if (type == at::kBool) return lay_out(at::randint(0, 2, shape, at::kLong).to(type));
    const at::Tensor empty = at::empty(shape, type);
    if (empty.numel() == 0) return lay_out(empty);  // draws as often as the other ranks do
    const auto bytes = static_cast<std::int64_t>(empty.nbytes());
    return lay_out(at::randint(0, 256, {bytes}, at::kByte).view(type).view(shape));
  }

  // Small whole numbers, which sum and multiply exactly in any order and in every type.
  at::Tensor small(at::IntArrayRef shape, at::ScalarType type, bool multiplies) {
    const auto part = [&] {
      at::Tensor whole = at::randint(multiplies ? 1 : 0, multiplies ? 3 : 8, shape, at::kLong);
      if (!at::isSignedType(type)) return whole;
      return whole * (2 * at::randint(0, 2, shape, at::kLong) - 1);
    };
    if (type == at::kBool) return lay_out(at::randint(0, 2, shape, at::kLong).to(type));
    if (!at::isComplexType(type)) return lay_out(part().to(type));
    return lay_out(at::complex(part().to(at::kDouble), part().to(at::kDouble)).to(type));
  }

 private:
  std::mt19937_64 shared_;
};

}  // namespace thinwire::comm
