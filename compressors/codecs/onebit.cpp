#include "thinwire/compressors/codecs/onebit.h"

#include "thinwire/compressors/codecs/bucketed.h"
#include "thinwire/compressors/kernels/piece_task.h"
#include "thinwire/compressors/kernels/sign_planes.h"

namespace thinwire {
namespace {

class Onebit final : public Codec {
 public:
  explicit Onebit(std::int64_t bucket) : bucket_(static_cast<std::size_t>(bucket)) {}

  std::string spec() const override { return concat("onebit(bucket=", bucket_, ")"); }
  CodecTraits traits() const override { return {.fixed_size = true, .needs_error_feedback = true}; }
  CodecFacts facts() const override { return {.id = CodecId::kOnebit}; }
  std::int64_t block_size() const override { return static_cast<std::int64_t>(bucket_); }

  std::optional<kernels::PieceFormat> piece_format() const override {
    return kernels::PieceFormat{
        .codec = kernels::PieceCodec::kOnebit,
        .tile = static_cast<std::uint32_t>(bucket_),
        .tile_bytes = static_cast<std::uint32_t>(kernels::onebit_bytes(bucket_))};
  }

  std::size_t max_compressed_bytes(std::int64_t numel, DType) const override {
    return bucketed_bytes(numel, bucket_, kernels::onebit_bytes);
  }

  std::size_t compress(ConstTensorView input, const RandomKey&,
                       std::span<std::byte> output) const override {
    check_view("onebit", input);
    check_on_cpu("onebit", input);
    const std::size_t bytes = max_compressed_bytes(input.numel, input.dtype);
    check_output("onebit", output, bytes);
    encode_buckets(input, bucket_, kernels::onebit_bytes, output.data(),
                   [](const float* x, std::size_t count, std::size_t, std::byte* out) {
                     kernels::onebit_encode(x, count, out);
                   });
    return bytes;
  }

  std::size_t compress_and_subtract(TensorView values, const RandomKey&,
                                    std::span<std::byte> output) const override {
    check_view("onebit", values);
    check_subtractable(values);
    const std::size_t bytes = max_compressed_bytes(values.numel, values.dtype);
    check_output("onebit", output, bytes);
    auto* const floats = static_cast<float*>(values.data);
    encode_buckets(as_const(values), bucket_, kernels::onebit_bytes, output.data(),
                   [floats](const float* x, std::size_t count, std::size_t first, std::byte* out) {
                     kernels::onebit_encode(x, count, out);
                     kernels::onebit_subtract(out, count, floats + first);
                   });
    return bytes;
  }

  void decompress(std::span<const std::byte> input, const RandomKey&, TensorView output,
                  WriteMode mode) const override {
    check_view("onebit", output);
    check_on_cpu("onebit", output);
    check_payload_size("onebit", input, max_compressed_bytes(output.numel, output.dtype),
                       output.numel);
    decode_buckets(input.data(), bucket_, kernels::onebit_bytes, output, mode,
                   kernels::onebit_decode);
  }

 private:
  std::size_t bucket_;
};

}  // namespace

CodecPtr make_onebit(const Spec& spec) {
  SpecReader read(spec);
  const std::int64_t bucket = read.integer("bucket", 1024, kMinBucket, kMaxBucket);
  read.finish();
  check_bucket("onebit", bucket);
  return std::make_shared<Onebit>(bucket);
}

}  // namespace thinwire
