#include "thinwire/compressors/codecs/quantize.h"

#include "thinwire/compressors/codecs/codec_checks.h"
#include "thinwire/compressors/cuda/cuda_module.h"
#include "thinwire/compressors/kernels/piece_task.h"
#include "thinwire/compressors/kernels/quantize.h"

namespace thinwire {
namespace {

constexpr std::int64_t kLargestBucket = std::int64_t{1} << 24;

class Quantize final : public Codec {
 public:
  explicit Quantize(kernels::QuantizeConfig config) : config_(config) {}

  std::string spec() const override {
    constexpr const char* kNorms[] = {"minmax", "linf", "l2"};
    return concat("quantize(bits=", config_.bits, ", bucket=", config_.bucket,
                  ", norm=", kNorms[static_cast<int>(config_.norm)],
                  ", rounding=", config_.stochastic ? "stochastic" : "nearest", ")");
  }

  CodecTraits traits() const override {
    return {.summable = false,
            .unbiased = config_.stochastic,
            .lossless = false,
            .fixed_size = true,
            // Nearest rounding loses elements that stay below half a unit in every step.
            .needs_error_feedback = !config_.stochastic,
            .exact_on_constants = true};
  }

  CodecFacts facts() const override { return {.id = CodecId::kQuantize, .bits = config_.bits}; }

  std::int64_t block_size() const override { return config_.bucket; }

  std::optional<kernels::PieceFormat> piece_format() const override {
    return kernels::PieceFormat{.codec = kernels::PieceCodec::kQuantize,
                                .stochastic = config_.stochastic,
                                .bits = static_cast<std::uint8_t>(config_.bits),
                                .norm = config_.norm,
                                .tile = static_cast<std::uint32_t>(config_.bucket),
                                .tile_bytes = static_cast<std::uint32_t>(
                                    kernels::quantized_bytes(config_, config_.bucket))};
  }

  std::size_t max_compressed_bytes(std::int64_t numel, DType) const override {
    return kernels::quantized_bytes(config_, numel);
  }

  std::size_t compress(ConstTensorView input, const RandomKey& key,
                       std::span<std::byte> output) const override {
    return encode(input, key, output, nullptr);
  }

  std::size_t compress_and_reconstruct(ConstTensorView input, const RandomKey& key,
                                       std::span<std::byte> output,
                                       TensorView reconstruction) const override {
    check_same_kind(input, reconstruction);
    return encode(input, key, output, reconstruction.data);
  }

  std::size_t compress_and_subtract(TensorView values, const RandomKey& key,
                                    std::span<std::byte> output) const override {
    check_view("quantize", values);
    check_subtractable(values);
    const std::size_t bytes = kernels::quantized_bytes(config_, values.numel);
    check_output("quantize", output, bytes);
    kernels::quantize_and_subtract(config_, static_cast<float*>(values.data), values.numel,
                                   PhiloxStream::of(key), key.first_element, output.data());
    return bytes;
  }

  void decompress(std::span<const std::byte> input, const RandomKey&, TensorView output,
                  WriteMode mode) const override {
    check_view("quantize", output);
    const std::size_t expected = kernels::quantized_bytes(config_, output.numel);
    check_payload_size("quantize", input, expected, output.numel);
    if (output.device == Device::kCuda) {
      CudaModule::get().dequantize({.shape = shape_of(output.dtype, output.numel),
                                    .accumulate = mode == WriteMode::kAccumulate,
                                    .payload = input.data(),
                                    .output = output.data},
                                   output.stream);
      return;
    }
    kernels::dequantize(config_, input.data(), output.dtype, output.data, output.numel, mode);
  }

 private:
  kernels::QuantizeShape shape_of(DType dtype, std::int64_t numel) const {
    return {config_.bits, config_.norm, dtype, config_.bucket, numel};
  }

  std::size_t encode(ConstTensorView input, const RandomKey& key, std::span<std::byte> output,
                     void* reconstruction) const {
    check_view("quantize", input);
    const std::size_t bytes = kernels::quantized_bytes(config_, input.numel);
    check_output("quantize", output, bytes);
    if (input.device == Device::kCuda) {
      CudaModule::get().quantize({.shape = shape_of(input.dtype, input.numel),
                                  .stochastic = config_.stochastic,
                                  .first_element = key.first_element,
                                  .random = PhiloxStream::of(key),
                                  .input = input.data,
                                  .payload = output.data(),
                                  .reconstruction = reconstruction},
                                 input.stream);
      return bytes;
    }
    kernels::quantize(config_, input.dtype, input.data, input.numel, PhiloxStream::of(key),
                      key.first_element, output.data(), reconstruction);
    return bytes;
  }

  kernels::QuantizeConfig config_;
};

}  // namespace

CodecPtr make_quantize(const Spec& spec) {
  SpecReader read(spec);
  kernels::QuantizeConfig config;
  config.bits = static_cast<int>(read.integer("bits", 4, 1, 8));
  config.bucket = read.integer("bucket", 1024, 1, kLargestBucket);
  config.norm = static_cast<kernels::Norm>(read.choice("norm", {"minmax", "linf", "l2"}, 0));
  config.stochastic = read.choice("rounding", {"nearest", "stochastic"}, 0) == 1;
  read.finish();
  return std::make_shared<Quantize>(config);
}

}  // namespace thinwire
