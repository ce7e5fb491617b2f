#include "thinwire/moe/row_codec.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include "thinwire/comm/tensor_bridge.h"
#include "thinwire/compressors/codec_table.h"

namespace thinwire::moe {
namespace {

// Rows that one task codes: enough to hide the start of a task.
constexpr std::int64_t kGrain = 16;

RandomKey key_of_row(RandomKey key, std::int64_t row, std::int64_t dim) {
  key.first_element += static_cast<std::uint64_t>(row * dim);
  return key;
}

}  // namespace

RowCodec::RowCodec(const std::string& spec) {
  if (spec.empty() || spec == "none") return;
  codec_ = make_codec(spec);
  check(codec_->traits().fixed_size, "rows need a codec of fixed size (cast, quantize, ...), but ",
        codec_->spec(), " writes payloads of varying size");
}

std::string RowCodec::spec() const {
  return active() ? codec_->spec() : "none";
}

std::int64_t RowCodec::row_bytes(std::int64_t dim, at::ScalarType dtype) const {
  if (!active()) return dim * static_cast<std::int64_t>(c10::elementSize(dtype));
  return static_cast<std::int64_t>(
      codec_->max_compressed_bytes(dim, comm::dtype_of(at::empty({0}, dtype))));
}

at::Tensor RowCodec::encode(const at::Tensor& input, const RandomKey& key) const {
  const at::Tensor rows = input.contiguous();
  if (!active()) return rows.view(at::kByte);
  check(rows.is_cpu(), "row codecs take rows in host memory, got ", rows.device().str());
  const std::int64_t count = rows.size(0);
  const std::int64_t dim = rows.size(1);
  const std::int64_t bytes = row_bytes(dim, rows.scalar_type());
  at::Tensor result = at::empty({count, bytes}, at::kByte);
  const auto* source = static_cast<const std::byte*>(rows.const_data_ptr());
  auto* target = static_cast<std::byte*>(result.mutable_data_ptr());
  const DType dtype = comm::dtype_of(rows);
  const auto stride = static_cast<std::size_t>(dim) * size_of(dtype);
  at::parallel_for(0, count, kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::size_t written = codec_->compress(
          {source + static_cast<std::size_t>(i) * stride, dim, dtype}, key_of_row(key, i, dim),
          {target + i * bytes, static_cast<std::size_t>(bytes)});
      THINWIRE_ASSERT(static_cast<std::int64_t>(written) == bytes);
    }
  });
  return result;
}

at::Tensor RowCodec::decode(const at::Tensor& bytes, std::int64_t dim, at::ScalarType dtype,
                            const RandomKey& key) const {
  if (!active()) return bytes.view(dtype);
  at::Tensor rows = at::empty({bytes.size(0), dim}, dtype);
  const auto* source = static_cast<const std::byte*>(bytes.const_data_ptr());
  auto* target = static_cast<std::byte*>(rows.mutable_data_ptr());
  const DType codec_dtype = comm::dtype_of(rows);
  const auto width = static_cast<std::size_t>(bytes.size(1));
  const auto stride = static_cast<std::size_t>(dim) * size_of(codec_dtype);
  at::parallel_for(0, bytes.size(0), kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const auto row = static_cast<std::size_t>(i);
      codec_->decompress({source + row * width, width}, key_of_row(key, i, dim),
                         {target + row * stride, dim, codec_dtype}, WriteMode::kAssign);
    }
  });
  return rows;
}

}  // namespace thinwire::moe
