#include "thinwire/moe/rows/row_codec.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include "thinwire/comm/wire/tensor_bridge.h"
#include "thinwire/common/spec.h"
#include "thinwire/compressors/codecs/codec_table.h"

namespace thinwire::moe {
namespace {

// Rows that one task codes: enough to hide the start of a task.
constexpr std::int64_t kGrain = 16;

// The key of every row, on demand.
class RowKeys {
 public:
  RowKeys(const std::vector<RowSegment>& segments, std::int64_t rows, std::int64_t dim)
      : segments_(segments), dim_(dim) {
    for (const RowSegment& segment : segments) {
      end_.push_back((end_.empty() ? 0 : end_.back()) + segment.rows);
    }
    THINWIRE_ASSERT((end_.empty() ? 0 : end_.back()) == rows);
  }

  RandomKey operator[](std::int64_t row) const {
    std::size_t s = 0;
    while (row >= end_[s]) ++s;  // as many segments as ranks
    RandomKey key = segments_[s].key;
    key.first_element += static_cast<std::uint64_t>((row - end_[s] + segments_[s].rows) * dim_);
    return key;
  }

 private:
  const std::vector<RowSegment>& segments_;
  std::int64_t dim_;
  std::vector<std::int64_t> end_;
};

}  // namespace

RowCodec::RowCodec(const std::string& text) {
  if (text.empty() || text == "none") return;
  const Spec spec = Spec::parse(text);
  const bool misspelt = nearest_name(spec.name, {"spectral"}) == "spectral";
  check(spec.name == "spectral" || !misspelt, "unknown row codec '", spec.name,
        "' (did you mean spectral?); rows also take the codecs of tensors");
  if (spec.name == "spectral") {
    spectral_ = parse_spectral(spec);
    codec_ = make_codec(spectral_->start);
  } else {
    codec_ = make_codec(spec);
  }
  check(codec_->traits().fixed_size, "rows need a codec of fixed size (cast, quantize, ...), but ",
        codec_->spec(), " writes payloads of varying size");
  if (spectral_) spectral_->start = codec_->spec();
}

RowCodec RowCodec::with_basis(std::shared_ptr<const SpectralBasis> basis) const {
  THINWIRE_ASSERT(spectral_.has_value());
  RowCodec codec = *this;
  codec.basis_ = std::move(basis);
  return codec;
}

std::string RowCodec::spec() const {
  if (!active()) return "none";
  return spectral_ ? spec_of(*spectral_) : codec_->spec();
}

std::int64_t RowCodec::row_bytes(std::int64_t dim, at::ScalarType dtype) const {
  if (basis_ != nullptr) return basis_->row_bytes();
  if (!active()) return dim * static_cast<std::int64_t>(c10::elementSize(dtype));
  return static_cast<std::int64_t>(
      codec_->max_compressed_bytes(dim, comm::dtype_of(at::empty({0}, dtype))));
}

at::Tensor RowCodec::encode(const at::Tensor& rows, const RandomKey& key) const {
  return encode(rows, {RowSegment{rows.size(0), key}});
}

at::Tensor RowCodec::decode(const at::Tensor& bytes, std::int64_t dim, at::ScalarType dtype,
                            const RandomKey& key) const {
  return decode(bytes, dim, dtype, {RowSegment{bytes.size(0), key}});
}

at::Tensor RowCodec::encode(const at::Tensor& input,
                            const std::vector<RowSegment>& segments) const {
  const at::Tensor rows = input.contiguous();
  if (!active()) return rows.view(at::kByte);
  check(rows.is_cpu(), "row codecs take rows in host memory, got ", rows.device().str());
  if (basis_ != nullptr) return basis_->encode(rows);
  const std::int64_t count = rows.size(0);
  const std::int64_t dim = rows.size(1);
  const RowKeys keys(segments, count, dim);
  const std::int64_t bytes = row_bytes(dim, rows.scalar_type());
  at::Tensor result = at::empty({count, bytes}, at::kByte);
  const auto* source = static_cast<const std::byte*>(rows.const_data_ptr());
  auto* target = static_cast<std::byte*>(result.mutable_data_ptr());
  const DType dtype = comm::dtype_of(rows);
  const auto stride = static_cast<std::size_t>(dim) * size_of(dtype);
  at::parallel_for(0, count, kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::size_t written =
          codec_->compress({source + static_cast<std::size_t>(i) * stride, dim, dtype}, keys[i],
                           {target + i * bytes, static_cast<std::size_t>(bytes)});
      THINWIRE_ASSERT(static_cast<std::int64_t>(written) == bytes);
    }
  });
  return result;
}

at::Tensor RowCodec::decode(const at::Tensor& bytes, std::int64_t dim, at::ScalarType dtype,
                            const std::vector<RowSegment>& segments) const {
  if (!active()) return bytes.view(dtype);
  if (basis_ != nullptr) return basis_->decode(bytes.contiguous(), dtype);
  at::Tensor rows = at::empty({bytes.size(0), dim}, dtype);
  const RowKeys keys(segments, bytes.size(0), dim);
  const auto* source = static_cast<const std::byte*>(bytes.const_data_ptr());
  auto* target = static_cast<std::byte*>(rows.mutable_data_ptr());
  const DType codec_dtype = comm::dtype_of(rows);
  const auto width = static_cast<std::size_t>(bytes.size(1));
  const auto from = static_cast<std::size_t>(bytes.stride(0));
  const auto stride = static_cast<std::size_t>(dim) * size_of(codec_dtype);
  at::parallel_for(0, bytes.size(0), kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const auto row = static_cast<std::size_t>(i);
      codec_->decompress({source + row * from, width}, keys[i],
                         {target + row * stride, dim, codec_dtype}, WriteMode::kAssign);
    }
  });
  return rows;
}

}  // namespace thinwire::moe
