#include "thinwire/compressors/codecs/ecsq.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/codec_checks.h"
#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/compressors/codecs/float_view.h"
#include "thinwire/compressors/codecs/sparse_values.h"
#include "thinwire/compressors/entropy/rate_model.h"
#include "thinwire/compressors/entropy/step_coder.h"
#include "thinwire/compressors/kernels/elementwise.h"

namespace thinwire {
namespace {

// Buffers of the calling thread, which keep their memory from call to call.
struct EcsqScratch {
  entropy::StepEncoder encoder;
  entropy::StepDecoder decoder;
  entropy::StepCodes codes;
  std::vector<float> input, values, lost;
  std::vector<std::byte> payload;
  std::vector<std::span<const float>> parts;
  std::vector<std::size_t> sizes;
};
EcsqScratch& ecsq_scratch() {
  thread_local EcsqScratch instance;
  return instance;
}

std::size_t parts_of(std::int64_t numel) {
  return static_cast<std::size_t>((numel + kEcsqPart - 1) / kEcsqPart);
}

// Room for a table and the coder's states, beside the bits that were asked for.
constexpr std::size_t kSlotMargin = 32;
// The estimate of the step is within 2 % of the bits.
constexpr double kSlotUse = 0.98;

class Ecsq final : public Codec {
 public:
  explicit Ecsq(EcsqOptions options) : options_(std::move(options)) {}

  const EcsqOptions& options() const { return options_; }

  std::string spec() const override {
    if (!options_.basis) return concat("ecsq(", goal(), ")");
    return concat("spectral(", goal(), ", directions=", options_.basis->directions,
                  ", every=", options_.basis->every, ")");
  }

  CodecTraits traits() const override {
    return {.fixed_size = options_.goal == EcsqOptions::Goal::kBits, .needs_error_feedback = true};
  }
  CodecFacts facts() const override {
    CodecFacts facts{.id = CodecId::kEcsq, .form = CodecFacts::Form::kSlots};
    if (options_.basis) {
      facts.id = CodecId::kSpectral;
      facts.directions = options_.basis->directions;
      facts.every = options_.basis->every;
    }
    return facts;
  }
  // A step is that of the whole tensor.
  std::int64_t block_size() const override { return 0; }

  std::size_t max_compressed_bytes(std::int64_t numel, DType) const override {
    if (numel == 0) return 0;
    const std::size_t least = entropy::StepEncoder::min_bytes(parts_of(numel)) + kSlotMargin;
    const double bits = options_.goal == EcsqOptions::Goal::kBits ? options_.value : kMostBits;
    return least + static_cast<std::size_t>(std::ceil(static_cast<double>(numel) * bits / 8));
  }

  std::size_t compress(ConstTensorView input, const RandomKey& key,
                       std::span<std::byte> output) const override {
    check_view(name(), input);
    check_on_cpu(name(), input);
    const std::size_t slot = max_compressed_bytes(input.numel, input.dtype);
    check_output(name(), output, slot);
    if (input.numel == 0) return 0;
    EcsqScratch& s = ecsq_scratch();
    const std::span<const float> values = as_floats(input, s.input);
    s.parts.clear();
    for (std::size_t at = 0; at < values.size(); at += kEcsqPart) {
      s.parts.push_back(values.subspan(at, std::min<std::size_t>(kEcsqPart, values.size() - at)));
    }
    const float step = step_of(values, input, key, slot);
    const entropy::Encoded encoded =
        s.encoder.encode(s.parts, options_.choice(step), output.first(slot), s.codes);
    return traits().fixed_size ? slot : encoded.bytes;
  }

  std::size_t compress_and_reconstruct(ConstTensorView input, const RandomKey& key,
                                       std::span<std::byte> output,
                                       TensorView reconstruction) const override {
    check_same_kind(input, reconstruction);
    const std::size_t bytes = compress(input, key, output);
    store_codes(reconstruction, WriteMode::kAssign);
    return bytes;
  }

  std::size_t compress_and_subtract(TensorView values, const RandomKey& key,
                                    std::span<std::byte> output) const override {
    check_subtractable(values);
    const std::size_t bytes = compress(as_const(values), key, output);
    if (values.numel > 0) {
      apply_codes(
          std::span(static_cast<float*>(values.data), static_cast<std::size_t>(values.numel)),
          entropy::Apply::kSubtract);
    }
    return bytes;
  }

  void decompress(std::span<const std::byte> input, const RandomKey&, TensorView output,
                  WriteMode mode) const override {
    check_view(name(), output);
    check_on_cpu(name(), output);
    if (output.numel == 0) return check_payload_size(name(), input, 0, 0);
    check_payload_size(name(), input,
                       traits().fixed_size ? max_compressed_bytes(output.numel, output.dtype)
                                           : entropy::StepDecoder::payload_bytes(input),
                       output.numel);
    EcsqScratch& s = ecsq_scratch();
    s.sizes.clear();
    for (std::int64_t at = 0; at < output.numel; at += kEcsqPart) {
      s.sizes.push_back(static_cast<std::size_t>(std::min(kEcsqPart, output.numel - at)));
    }
    s.decoder.decode(input, s.sizes, s.codes);
    store_codes(output, mode);
  }

 private:
  // Where no number of bits is given; what would take more gets a coarser step.
  static constexpr double kMostBits = 16;

  std::string goal() const {
    switch (options_.goal) {
      case EcsqOptions::Goal::kBits:
        return concat("bits=", number_text(options_.value));
      case EcsqOptions::Goal::kStep:
        return concat("step=", number_text(options_.value));
      case EcsqOptions::Goal::kError:
        return concat("error=", number_text(options_.value));
      case EcsqOptions::Goal::kAs:
        break;
    }
    return concat("as=", options_.as->spec());
  }

  const char* name() const { return options_.basis ? "spectral" : "ecsq"; }

  static void apply_codes(std::span<float> values, entropy::Apply apply) {
    const entropy::StepCodes& codes = ecsq_scratch().codes;
    for (std::size_t p = 0; p < codes.parts(); ++p) {
      const std::size_t first = p * kEcsqPart;
      codes.apply(p, apply,
                  values.subspan(first, std::min<std::size_t>(kEcsqPart, values.size() - first)));
    }
  }

  static void store_codes(TensorView output, WriteMode mode) {
    if (output.numel == 0) return;
    const auto numel = static_cast<std::size_t>(output.numel);
    const bool assign = mode == WriteMode::kAssign;
    if (output.dtype == DType::kFloat32 &&
        reinterpret_cast<std::uintptr_t>(output.data) % alignof(float) == 0) {
      return apply_codes(std::span(static_cast<float*>(output.data), numel),
                         assign ? entropy::Apply::kAssign : entropy::Apply::kAdd);
    }
    EcsqScratch& s = ecsq_scratch();
    if (s.values.size() < numel) s.values.resize(numel);
    apply_codes(std::span(s.values).first(numel), entropy::Apply::kAssign);
    kernels::store_floats(output.dtype, output.data, 0, numel, s.values.data(), mode);
  }

  float step_of(std::span<const float> values, const ConstTensorView& input, const RandomKey& key,
                std::size_t slot) const {
    if (options_.goal == EcsqOptions::Goal::kStep) return static_cast<float>(options_.value);
    const std::array classes = {entropy::MagnitudeCounts(values)};
    if (options_.goal == EcsqOptions::Goal::kBits) {
      const std::size_t others = entropy::StepEncoder::min_bytes(parts_of(input.numel));
      return entropy::step_for_bits(classes, kSlotUse * 8 * static_cast<double>(slot - others),
                                    options_.rounding());
    }
    double error = 0;
    if (options_.goal == EcsqOptions::Goal::kError) {
      for (const float value : values) error += static_cast<double>(value) * value;
      error *= options_.value * options_.value;
    } else {
      error = error_of_other(values, input, key);
    }
    return std::isfinite(error) ? entropy::step_for_error(classes, error, options_.rounding()) : 0;
  }

  double error_of_other(std::span<const float> values, const ConstTensorView& input,
                        const RandomKey& key) const {
    EcsqScratch& s = ecsq_scratch();
    s.lost.assign(values.begin(), values.end());
    s.payload.resize(options_.as->max_compressed_bytes(input.numel, DType::kFloat32));
    TensorView view = view_of(std::span(s.lost));
    view.shape = input.shape;
    options_.as->compress_and_subtract(view, key, s.payload);
    double error = 0;
    for (const float value : s.lost) error += static_cast<double>(value) * value;
    return error;
  }

  EcsqOptions options_;
};

}  // namespace

double EcsqOptions::rounding() const {
  if (basis) return 0.5;  // from where each class finds its own
  if (goal != Goal::kBits) return 0.42;
  struct Point {
    double bits, rounding;
  };
  constexpr std::array kPoints = {Point{0.25, 0.15}, Point{0.5, 0.25}, Point{1, 0.35},
                                  Point{2, 0.42}, Point{3, 0.5}};
  if (value <= kPoints.front().bits) return kPoints.front().rounding;
  for (std::size_t i = 1; i < kPoints.size(); ++i) {
    const Point& a = kPoints[i - 1];
    const Point& b = kPoints[i];
    if (value <= b.bits) {
      return a.rounding + (b.rounding - a.rounding) * (value - a.bits) / (b.bits - a.bits);
    }
  }
  return kPoints.back().rounding;
}

entropy::StepChoice EcsqOptions::choice(float step) const {
  return {.step = step,
          .rounding = static_cast<float>(rounding()),
          .rounding_by_part = basis.has_value(),
          .fill = goal == Goal::kBits};
}

CodecPtr make_ecsq(const Spec& spec) {
  SpecReader read(spec);
  EcsqOptions options;
  const bool has_step = read.has("step"), has_error = read.has("error"), has_as = read.has("as");
  check(int{read.has("bits")} + int{has_step} + int{has_error} + int{has_as} <= 1, "'", spec.str(),
        "': a codec follows one of bits, step, error and as");
  options.value = read.number("bits", options.value, 0.02, 16);
  const double step = read.number("step", 1, 0, 1e30, true);
  const double error = read.number("error", 0.1, 0, 1, true);
  const std::string as = read.text("as", "");
  read.finish();
  if (has_step) options = {.goal = EcsqOptions::Goal::kStep, .value = step};
  if (has_error) options = {.goal = EcsqOptions::Goal::kError, .value = error};
  if (has_as) {
    options = {.goal = EcsqOptions::Goal::kAs, .as = make_codec(as)};
    check(!ecsq_options(*options.as), "'", spec.str(),
          "': as names another codec than ecsq and spectral");
  }
  return make_step_codec(std::move(options));
}

CodecPtr make_step_codec(EcsqOptions options) {
  return std::make_shared<Ecsq>(std::move(options));
}

const EcsqOptions* ecsq_options(const Codec& codec) {
  const auto* ecsq = dynamic_cast<const Ecsq*>(&codec);
  return ecsq ? &ecsq->options() : nullptr;
}

}  // namespace thinwire
