#include "thinwire/compressors/codecs/identity.h"

#include <cstring>

#include "thinwire/compressors/codecs/codec_checks.h"
#include "thinwire/compressors/kernels/elementwise.h"
#include "thinwire/compressors/kernels/piece_task.h"

namespace thinwire {
namespace {

class Identity final : public Codec {
 public:
  std::string spec() const override { return "identity"; }

  CodecTraits traits() const override {
    return {.summable = true,
            .unbiased = true,
            .lossless = true,
            .fixed_size = true,
            .needs_error_feedback = false,
            .exact_on_constants = true};
  }

  CodecFacts facts() const override { return {.id = CodecId::kIdentity}; }

  std::int64_t block_size() const override { return 1; }

  std::optional<kernels::PieceFormat> piece_format() const override {
    return kernels::PieceFormat{.codec = kernels::PieceCodec::kIdentity,
                                .tile = kernels::kTileElements,
                                .tile_bytes = kernels::kTileElements * sizeof(float)};
  }

  std::size_t max_compressed_bytes(std::int64_t numel, DType dtype) const override {
    return static_cast<std::size_t>(numel) * size_of(dtype);
  }

  std::size_t compress(ConstTensorView input, const RandomKey&,
                       std::span<std::byte> output) const override {
    check_view("identity", input);
    check_on_cpu("identity", input);
    check_output("identity", output, input.bytes());
    if (input.numel > 0) std::memcpy(output.data(), input.data, input.bytes());
    return input.bytes();
  }

  void decompress(std::span<const std::byte> input, const RandomKey&, TensorView output,
                  WriteMode mode) const override {
    check_view("identity", output);
    check_on_cpu("identity", output);
    check_payload_size("identity", input, output.bytes(), output.numel);
    if (output.numel == 0) return;
    if (mode == WriteMode::kAssign) {
      std::memcpy(output.data, input.data(), output.bytes());
    } else {
      kernels::add_elements(output.dtype, output.data, input.data(),
                            static_cast<std::size_t>(output.numel));
    }
  }
};

}  // namespace

CodecPtr make_identity(const Spec& spec) {
  SpecReader(spec).finish();
  return std::make_shared<Identity>();
}

}  // namespace thinwire
