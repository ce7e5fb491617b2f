#include "thinwire/compressors/ternary.h"

#include <cmath>
#include <cstring>
#include <optional>

#include "thinwire/compressors/codec_checks.h"
#include "thinwire/compressors/float_view.h"
#include "thinwire/compressors/index_coder.h"
#include "thinwire/compressors/kernels/host_device.h"
#include "thinwire/compressors/kernels/topk.h"
#include "thinwire/compressors/sparse_values.h"

namespace thinwire {
namespace {

// Unbiased, of all elements; sums in order of the elements.
double standard_deviation(std::span<const float> values) {
  if (values.size() < 2) return 0;
  double sum = 0;
  for (const float value : values) sum += value;
  const double mean = sum / static_cast<double>(values.size());
  double squares = 0;
  for (const float value : values) squares += (value - mean) * (value - mean);
  return std::sqrt(squares / static_cast<double>(values.size() - 1));
}

class Ternary final : public Codec {
 public:
  Ternary(double density, std::optional<double> alpha) : density_(density), alpha_(alpha) {}

  std::string spec() const override {
    return concat("ternary(density=", number_text(density_),
                  alpha_ ? concat(", scale=std, alpha=", number_text(*alpha_)) : "", ")");
  }
  CodecTraits traits() const override { return {.needs_error_feedback = true}; }
  std::int64_t block_size() const override { return 0; }

  std::size_t max_compressed_bytes(std::int64_t numel, DType) const override {
    check(numel >= 0 && numel <= kMaxSparseNumel, "ternary takes tensors of at most ",
          kMaxSparseNumel, " elements, got ", numel);
    if (numel == 0) return 0;
    const std::uint64_t k = kept(numel);
    return sizeof(float) + max_index_bytes(static_cast<std::uint64_t>(numel), k) + (k + 7) / 8;
  }

  std::size_t compress(ConstTensorView input, const RandomKey&,
                       std::span<std::byte> output) const override {
    check_view("ternary", input);
    check_on_cpu("ternary", input);
    check_output("ternary", output, max_compressed_bytes(input.numel, input.dtype));
    return encode(as_floats(input, sparse_scratch().input), output);
  }

  // Only the elements that were sent change.
  std::size_t compress_and_subtract(TensorView values, const RandomKey&,
                                    std::span<std::byte> output) const override {
    check_view("ternary", values);
    check_subtractable(values);
    check_output("ternary", output, max_compressed_bytes(values.numel, values.dtype));
    const std::span rest(static_cast<float*>(values.data), static_cast<std::size_t>(values.numel));
    const std::size_t bytes = encode(rest, output);
    if (bytes == 0) return 0;
    float scale;
    std::memcpy(&scale, output.data(), sizeof scale);
    const kernels::TopkSelection& selection = sparse_scratch().selection;
    if (!kernels::is_finite(scale)) {
      poison(values);
    } else {
      for (std::size_t j = 0; j < selection.indices.size(); ++j) {
        rest[selection.indices[j]] -= std::copysign(scale, selection.values[j]);
      }
    }
    return bytes;
  }

  void decompress(std::span<const std::byte> input, const RandomKey&, TensorView output,
                  WriteMode mode) const override {
    check_view("ternary", output);
    check_on_cpu("ternary", output);
    SparseScratch& s = sparse_scratch();
    if (!read(input, output.numel, s.indices, s.values)) return poison(output);
    if (output.numel > 0) scatter(s.indices, s.values, output, mode);
  }

  bool decompress_entries(std::span<const std::byte> input, std::int64_t numel,
                          SparseEntries& entries) const override {
    if (!read(input, numel, entries.indices, entries.values)) poison(numel, entries);
    return true;
  }

 private:
  std::size_t encode(std::span<const float> x, std::span<std::byte> output) const {
    if (x.empty()) return 0;
    SparseScratch& s = sparse_scratch();
    kernels::select_topk(x, kept(static_cast<std::int64_t>(x.size())), s.selection);
    const auto& values = s.selection.values;

    double sum = 0;
    for (const float value : values) sum += std::abs(static_cast<double>(value));
    const auto scale = static_cast<float>(alpha_ ? *alpha_ * standard_deviation(x)
                                                 : sum / static_cast<double>(values.size()));
    std::memcpy(output.data(), &scale, sizeof scale);
    std::size_t size = sizeof scale;
    size += encode_indices(s.selection.indices, x.size(), output.subspan(size));
    const auto signs = output.subspan(size, (values.size() + 7) / 8);
    std::memset(signs.data(), 0, signs.size());
    for (std::size_t j = 0; j < values.size(); ++j) {
      signs[j / 8] |= static_cast<std::byte>(unsigned{std::signbit(values[j])} << (j % 8));
    }
    return size + signs.size();
  }

  // The entries of a payload, checked before anything is written. False where the scale says that
  // the tensor was not finite.
  bool read(std::span<const std::byte> input, std::int64_t numel,
            std::vector<std::uint32_t>& indices, std::vector<float>& values) const {
    indices.clear();
    values.clear();
    if (numel == 0) {
      check_payload_size("ternary", input, 0, 0);
      return true;
    }
    const std::size_t k = kept(numel);
    const std::size_t sign_bytes = (k + 7) / 8;
    float scale;
    if (input.size() < sizeof scale + min_index_bytes(k) + sign_bytes) {
      throw FrameError("ternary payload is truncated");
    }
    std::memcpy(&scale, input.data(), sizeof scale);
    input = input.subspan(sizeof scale);
    indices.resize(k);
    values.resize(k);
    const std::size_t index_bytes =
        decode_indices(input, static_cast<std::uint64_t>(numel), indices);
    check_payload_size("ternary", input.subspan(index_bytes), sign_bytes, numel);
    const auto signs = input.subspan(index_bytes);
    if (k % 8 != 0 && (std::to_integer<unsigned>(signs.back()) >> (k % 8)) != 0) {
      throw FrameError("ternary payload has padding bits that are not zero");
    }
    if (!kernels::is_finite(scale)) return false;
    for (std::size_t j = 0; j < k; ++j) {
      const bool negative = (std::to_integer<unsigned>(signs[j / 8]) >> (j % 8) & 1u) != 0;
      values[j] = negative ? -scale : scale;
    }
    return true;
  }

  std::size_t kept(std::int64_t numel) const {
    return static_cast<std::size_t>(kept_count(density_, numel));
  }

  double density_;
  std::optional<double> alpha_;  // nullopt: the mean magnitude of the kept
};

}  // namespace

CodecPtr make_ternary(const Spec& spec) {
  SpecReader read(spec);
  const double density = read.number("density", 0.01, 0, 1, true);
  const bool by_deviation = read.choice("scale", {"mean", "std"}, 0) == 1;
  const double alpha = read.number("alpha", 1, 0, 1e6, true);
  check(by_deviation || !read.has("alpha"), "'", spec.str(),
        "': alpha counts standard deviations, so it needs scale=std");
  read.finish();
  return std::make_shared<Ternary>(density, by_deviation ? std::optional(alpha) : std::nullopt);
}

}  // namespace thinwire
