#include "thinwire/compressors/codecs/ternary.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "thinwire/compressors/codecs/codec_checks.h"
#include "thinwire/compressors/codecs/index_coder.h"
#include "thinwire/compressors/codecs/sparse_codec.h"
#include "thinwire/compressors/codecs/sparse_values.h"
#include "thinwire/compressors/kernels/sparse_task.h"
#include "thinwire/compressors/kernels/topk.h"

namespace thinwire {
namespace {

// Of the magnitudes; of runs of 256 first, so that a GPU may take the same sum.
double sum_of_magnitudes(std::span<const float> values) {
  constexpr std::size_t kRun = 256;
  double sum = 0;
  for (std::size_t begin = 0; begin < values.size(); begin += kRun) {
    double of_run = 0;
    for (const float value : values.subspan(begin, std::min(kRun, values.size() - begin))) {
      of_run += std::abs(static_cast<double>(value));
    }
    sum += of_run;
  }
  return sum;
}

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

class Ternary final : public SparseCodec {
 public:
  explicit Ternary(const TernaryOptions& options) : SparseCodec("ternary"), options_(options) {}

  std::string spec() const override {
    return concat("ternary(density=", number_text(options_.density),
                  options_.alpha ? concat(", scale=std, alpha=", number_text(*options_.alpha)) : "",
                  ")");
  }

  CodecFacts facts() const override {
    return {.id = CodecId::kTernary,
            .form = CodecFacts::Form::kSparse,
            .density = options_.density,
            .values = ValueType::kCoded,
            .alpha = options_.alpha};
  }

  std::optional<kernels::EntryForm> entry_form() const override {
    if (options_.alpha) return std::nullopt;
    return kernels::EntryForm::kSigns;
  }

  CodecPtr with_density(double density) const override {
    TernaryOptions changed = options_;
    changed.density = density;
    return std::make_shared<Ternary>(changed);
  }

  std::size_t max_compressed_bytes(std::int64_t numel, DType) const override {
    check_numel(numel);
    if (numel == 0) return 0;
    const std::uint64_t k = kept(numel);
    return sizeof(float) + max_index_bytes(static_cast<std::uint64_t>(numel), k) + (k + 7) / 8;
  }

 protected:
  std::size_t encode(std::span<const float> x, const RandomKey&, kernels::TopkSelection& sent,
                     std::span<std::byte> output) const override {
    kernels::select_topk(x, kept(static_cast<std::int64_t>(x.size())), sent);
    auto& values = sent.values;
    auto scale = static_cast<float>(options_.alpha ? *options_.alpha * standard_deviation(x)
                                                   : sum_of_magnitudes(values) /
                                                         static_cast<double>(values.size()));
    if (std::isnan(scale)) scale = kernels::float_of(kernels::kFloatNanBits);
    std::memcpy(output.data(), &scale, sizeof scale);
    std::size_t size = sizeof scale;
    size += encode_indices(sent.indices, x.size(), output.subspan(size));
    const auto signs = output.subspan(size, (values.size() + 7) / 8);
    std::memset(signs.data(), 0, signs.size());
    for (std::size_t j = 0; j < values.size(); ++j) {
      signs[j / 8] |= static_cast<std::byte>(unsigned{std::signbit(values[j])} << (j % 8));
      values[j] = std::copysign(scale, values[j]);
    }
    return size + signs.size();
  }

  void decode(std::span<const std::byte> input, std::int64_t numel,
              SparseEntries& entries) const override {
    const std::size_t k = kept(numel);
    const std::size_t sign_bytes = (k + 7) / 8;
    float scale;
    const std::size_t least = sizeof scale + min_index_bytes(k) + sign_bytes;
    if (input.size() < least) {
      throw FrameError(concat("ternary payload is truncated: ", input.size(), " bytes, at least ",
                              least, " are needed"));
    }
    std::memcpy(&scale, input.data(), sizeof scale);
    input = input.subspan(sizeof scale);
    entries.resize(k);
    const std::size_t index_bytes =
        decode_indices(input, static_cast<std::uint64_t>(numel), entries.indices);
    check_payload_size("ternary", input.subspan(index_bytes), sign_bytes, numel);
    const auto signs = input.subspan(index_bytes);
    if (k % 8 != 0 && (std::to_integer<unsigned>(signs.back()) >> (k % 8)) != 0) {
      throw FrameError("ternary payload has padding bits that are not zero");
    }
    for (std::size_t j = 0; j < k; ++j) {
      const bool negative = (std::to_integer<unsigned>(signs[j / 8]) >> (j % 8) & 1u) != 0;
      entries.values[j] = negative ? -scale : scale;
    }
  }

 private:
  std::size_t kept(std::int64_t numel) const {
    return static_cast<std::size_t>(kept_count(options_.density, numel));
  }

  TernaryOptions options_;
};

}  // namespace

TernaryOptions ternary_options(const Spec& spec) {
  SpecReader read(spec);
  TernaryOptions options;
  options.density = read.number("density", options.density, 0, 1, true);
  const bool by_deviation = read.choice("scale", {"mean", "std"}, 0) == 1;
  const double alpha = read.number("alpha", 1, 0, 1e6, true);
  check(by_deviation || !read.has("alpha"), "'", spec.str(),
        "': alpha counts standard deviations, so it needs scale=std");
  read.finish();
  if (by_deviation) options.alpha = alpha;
  return options;
}

CodecPtr make_ternary(const Spec& spec) {
  return std::make_shared<Ternary>(ternary_options(spec));
}

}  // namespace thinwire
