#include "thinwire/compressors/codecs/terngrad.h"

#include "thinwire/compressors/codecs/bucketed.h"
#include "thinwire/compressors/codecs/sparse_values.h"
#include "thinwire/compressors/kernels/piece_task.h"
#include "thinwire/compressors/kernels/sign_planes.h"

namespace thinwire {
namespace {

class Terngrad final : public Codec {
 public:
  Terngrad(std::int64_t bucket, double clip)
      : bucket_(static_cast<std::size_t>(bucket)), clip_(clip) {}

  std::string spec() const override {
    return concat("terngrad(bucket=", bucket_, ", clip=", number_text(clip_), ")");
  }
  CodecTraits traits() const override {
    // All elements of a constant bucket are sent: |x| = s. Unless clipping cuts below it.
    return {.unbiased = clip_ == 0, .fixed_size = true, .exact_on_constants = clip_ == 0};
  }
  CodecFacts facts() const override { return {.id = CodecId::kTerngrad}; }
  std::int64_t block_size() const override { return static_cast<std::int64_t>(bucket_); }

  std::optional<kernels::PieceFormat> piece_format() const override {
    return kernels::PieceFormat{
        .codec = kernels::PieceCodec::kTerngrad,
        .stochastic = true,
        .clip = static_cast<float>(clip_),
        .tile = static_cast<std::uint32_t>(bucket_),
        .tile_bytes = static_cast<std::uint32_t>(kernels::terngrad_bytes(bucket_))};
  }

  std::size_t max_compressed_bytes(std::int64_t numel, DType) const override {
    return bucketed_bytes(numel, bucket_, kernels::terngrad_bytes);
  }

  std::size_t compress(ConstTensorView input, const RandomKey& key,
                       std::span<std::byte> output) const override {
    check_view("terngrad", input);
    check_on_cpu("terngrad", input);
    const std::size_t bytes = max_compressed_bytes(input.numel, input.dtype);
    check_output("terngrad", output, bytes);
    check(key.first_element % static_cast<std::uint64_t>(kMinBucket) == 0,
          "terngrad: a tensor is cut at multiples of ", bucket_, ", not at ", key.first_element);
    const PhiloxStream stream = PhiloxStream::of(key);
    encode_buckets(input, bucket_, kernels::terngrad_bytes, output.data(),
                   [&](const float* x, std::size_t count, std::size_t first, std::byte* out) {
                     kernels::terngrad_encode(x, count, static_cast<float>(clip_), stream,
                                              key.first_element + first, out);
                   });
    return bytes;
  }

  void decompress(std::span<const std::byte> input, const RandomKey&, TensorView output,
                  WriteMode mode) const override {
    check_view("terngrad", output);
    check_on_cpu("terngrad", output);
    check_payload_size("terngrad", input, max_compressed_bytes(output.numel, output.dtype),
                       output.numel);
    decode_buckets(input.data(), bucket_, kernels::terngrad_bytes, output, mode,
                   kernels::terngrad_decode);
  }

 private:
  std::size_t bucket_;
  double clip_;
};

}  // namespace

CodecPtr make_terngrad(const Spec& spec) {
  SpecReader read(spec);
  const std::int64_t bucket = read.integer("bucket", 1024, kMinBucket, kMaxBucket);
  const double clip = read.number("clip", 0, 0, 1e6);
  read.finish();
  check_bucket("terngrad", bucket);
  return std::make_shared<Terngrad>(bucket, clip);
}

}  // namespace thinwire
