// The decoders of all codecs: any bytes as the payload of any codec.
//
// Input: u8 codec, u8 dtype, u16 number of elements, then the payload.
#include <limits>

#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/tests/fuzz/fuzz_target.h"

using namespace thinwire;  // NOLINT(google-build-using-namespace): a program of one file

namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64};
constexpr RandomKey kKey{.seed = 1, .step = 2, .layer = 3};
constexpr std::size_t kHeader = 4;

const std::vector<CodecPtr>& codecs() {
  static const std::vector<CodecPtr> all = [] {
    std::vector<CodecPtr> made;
    for (const char* spec : {"identity",
                             "cast(fp16)",
                             "cast(bf16)",
                             "cast(fp8_e4m3)",
                             "cast(fp8_e5m2)",
                             "quantize(bits=1)",
                             "quantize(bits=3, norm=linf, bucket=64)",
                             "quantize(bits=4, rounding=stochastic)",
                             "quantize(bits=8, norm=l2)",
                             "topk(density=0.05)",
                             "topk(density=0.3, values=fp16)",
                             "topk(density=0.01, values=bf16)",
                             "topk(density=0.2, values=coded)",
                             "randomk(density=0.1)",
                             "onebit",
                             "onebit(bucket=64)",
                             "terngrad",
                             "ternary(density=0.05)",
                             "powersgd(rank=2)",
                             "powersgd(rank=2, factors=int8)",
                             "powersgd(rank=2, factors=ecsq(bits=3))",
                             "ecsq(bits=2)",
                             "ecsq(step=0.5)",
                             "spectral(bits=1)"})
      made.push_back(make_codec(spec));
    return made;
  }();
  return all;
}

std::vector<std::int64_t> shape_of(std::int64_t numel) {
  return numel % 8 == 0 && numel > 0 ? std::vector<std::int64_t>{8, numel / 8}
                                     : std::vector<std::int64_t>{numel};
}

}  // namespace

std::vector<fuzz::Input> fuzz::seeds() {
  std::vector<Input> all;
  for (std::size_t codec = 0; codec < codecs().size(); ++codec) {
    for (const std::uint16_t numel : {std::uint16_t{1}, std::uint16_t{257}, std::uint16_t{1600}}) {
      std::vector<float> values(numel);
      for (std::size_t i = 0; i < numel; ++i)
        values[i] = static_cast<float>(static_cast<int>(i * 37 % 101) - 50) / 7;
      const auto shape = shape_of(numel);
      ConstTensorView view = view_of(std::span<const float>(values));
      view.shape = shape;
      Input input(kHeader + codecs()[codec]->max_compressed_bytes(numel, DType::kFloat32));
      input[0] = static_cast<std::uint8_t>(codec);
      input[1] = 0;
      std::memcpy(input.data() + 2, &numel, sizeof numel);
      const std::size_t bytes = codecs()[codec]->compress(
          view, kKey, std::as_writable_bytes(std::span(input)).subspan(kHeader));
      input.resize(kHeader + bytes);
      all.push_back(input);
    }
  }
  return all;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Reader read(fuzz::bytes_of(data, size));
  const Codec& codec = *codecs()[read.take<std::uint8_t>() % codecs().size()];
  const DType dtype = kDTypes[read.take<std::uint8_t>() % std::size(kDTypes)];
  const std::int64_t numel = read.take<std::uint16_t>() % 4096;
  const auto shape = shape_of(numel);
  // Memory of the exact size, so that a sanitizer sees the byte before and after.
  std::vector<std::byte> output(static_cast<std::size_t>(numel) * size_of(dtype));
  const TensorView view{output.data(), numel, dtype, shape, Device::kCpu, nullptr};
  const std::vector<std::byte> payload(read.rest().begin(), read.rest().end());
  for (const WriteMode mode : {WriteMode::kAssign, WriteMode::kAccumulate}) {
    fuzz::expect_taken_or_refused([&] { codec.decompress(payload, kKey, view, mode); });
  }
  fuzz::expect_taken_or_refused([&] {
    SparseEntries entries;
    if (!codec.decompress_entries(payload, numel, entries)) return;
    std::int64_t last = -1;
    for (const std::uint32_t index : entries.indices) {
      if (index <= last || index >= numel) throw InternalError("indices do not ascend within");
      last = index;
    }
  });
  return 0;
}
