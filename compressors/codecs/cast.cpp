#include "thinwire/compressors/codecs/cast.h"

#include <algorithm>
#include <bit>

#include "thinwire/compressors/codecs/codec_checks.h"
#include "thinwire/compressors/kernels/cast.h"
#include "thinwire/compressors/kernels/elementwise.h"
#include "thinwire/compressors/kernels/fp8.h"
#include "thinwire/compressors/kernels/piece_task.h"

namespace thinwire {
namespace {

// Formats with a scale start a new block at every step of conversion.
static_assert(kernels::kConvertBlock % kernels::kFp8Block == 0);

template <typename Pointer>
bool is_float_array(const BasicTensorView<Pointer>& view) {
  return view.dtype == DType::kFloat32 &&
         std::bit_cast<std::uintptr_t>(view.data) % alignof(float) == 0;
}

class Cast final : public Codec {
 public:
  explicit Cast(const kernels::CastFormat& format) : format_(format) {}

  std::string spec() const override { return concat("cast(format=", format_.name, ")"); }

  CodecTraits traits() const override {
    // Not summable although it is elementwise: sums would round at every rank. comm/average
    // sends casts narrow and adds them in float32.
    return {.fixed_size = true, .needs_error_feedback = format_.element_bytes == 1};
  }

  CodecFacts facts() const override { return {.id = CodecId::kCast}; }

  std::int64_t block_size() const override { return static_cast<std::int64_t>(format_.block); }

  std::optional<kernels::PieceFormat> piece_format() const override {
    constexpr auto kFirst = static_cast<std::ptrdiff_t>(kernels::PieceCodec::kBFloat16);
    const std::ptrdiff_t row = &format_ - kernels::cast_formats().data();
    return kernels::PieceFormat{
        .codec = static_cast<kernels::PieceCodec>(kFirst + row),
        .tile = kernels::kTileElements,
        .tile_bytes = static_cast<std::uint32_t>(format_.bytes(kernels::kTileElements))};
  }

  std::size_t max_compressed_bytes(std::int64_t numel, DType) const override {
    return format_.bytes(static_cast<std::size_t>(numel));
  }

  std::size_t compress(ConstTensorView input, const RandomKey&,
                       std::span<std::byte> output) const override {
    check_view("cast", input);
    check_on_cpu("cast", input);
    const std::size_t bytes = max_compressed_bytes(input.numel, input.dtype);
    check_output("cast", output, bytes);
    const auto count = static_cast<std::size_t>(input.numel);
    if (is_float_array(input)) {
      format_.encode(static_cast<const float*>(input.data), count, output.data());
      return bytes;
    }
    float block[kernels::kConvertBlock];
    for (std::size_t first = 0; first < count; first += kernels::kConvertBlock) {
      const std::size_t elements = std::min(kernels::kConvertBlock, count - first);
      kernels::load_floats(input.dtype, input.data, first, elements, block);
      format_.encode(block, elements, output.data() + format_.bytes(first));
    }
    return bytes;
  }

  void decompress(std::span<const std::byte> input, const RandomKey&, TensorView output,
                  WriteMode mode) const override {
    check_view("cast", output);
    check_on_cpu("cast", output);
    check_payload_size("cast", input, max_compressed_bytes(output.numel, output.dtype),
                       output.numel);
    const auto count = static_cast<std::size_t>(output.numel);
    if (format_.valid != nullptr && !format_.valid(input.data(), count)) {
      throw FrameError(concat(format_.name, " payload has a scale that no encoder writes: ",
                              wrong_scale(input, count)));
    }
    if (mode == WriteMode::kAssign && is_float_array(output)) {
      return format_.decode(input.data(), count, static_cast<float*>(output.data));
    }
    float block[kernels::kConvertBlock];
    for (std::size_t first = 0; first < count; first += kernels::kConvertBlock) {
      const std::size_t elements = std::min(kernels::kConvertBlock, count - first);
      format_.decode(input.data() + format_.bytes(first), elements, block);
      kernels::store_floats(output.dtype, output.data, first, elements, block, mode);
    }
  }

 private:
  // Of the first block that is not valid.
  std::string wrong_scale(std::span<const std::byte> input, std::size_t count) const {
    std::size_t first = 0;
    const auto block = [&] { return input.subspan(format_.bytes(first)); };
    while (format_.valid(block().data(), std::min(format_.block, count - first))) {
      first += format_.block;
    }
    return concat(std::to_integer<int>(block().front()), " at byte ", format_.bytes(first));
  }

  const kernels::CastFormat& format_;
};

}  // namespace

CodecPtr make_cast(const Spec& spec) {
  SpecReader read(spec);
  std::vector<std::string_view> names;
  for (const auto& format : kernels::cast_formats()) names.push_back(format.name);
  const std::size_t chosen = read.choice("format", names, 0);
  read.finish();
  return std::make_shared<Cast>(kernels::cast_formats()[chosen]);
}

}  // namespace thinwire
