#include "thinwire/moe/rows/row_codec.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include "thinwire/comm/wire/tensor_bridge.h"
#include "thinwire/common/error.h"
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
  if (spec.name == "spectral") spectral_ = parse_spectral(spec);
  const Spec coded = spectral_ ? Spec::parse(spectral_->start) : spec;
  if (coded.name == "ecsq") {
    entropy_ = parse_entropy_rows(coded);
  } else {
    codec_ = make_codec(coded);
    check(codec_->traits().fixed_size,
          "rows need a codec of fixed size (cast, quantize, ...), but ", codec_->spec(),
          " writes payloads of varying size");
  }
  if (spectral_) spectral_->start = entropy_ ? spec_of(*entropy_) : codec_->spec();
}

RowCodec RowCodec::with_basis(std::shared_ptr<const SpectralBasis> basis) const {
  THINWIRE_ASSERT(spectral_.has_value());
  RowCodec codec = *this;
  codec.basis_ = std::move(basis);
  return codec;
}

std::string RowCodec::spec() const {
  if (!active()) return "none";
  if (spectral_) return spec_of(*spectral_);
  return entropy_ ? spec_of(*entropy_) : codec_->spec();
}

std::int64_t RowCodec::row_bytes(std::int64_t dim, at::ScalarType dtype) const {
  if (basis_ != nullptr) return basis_->row_bytes();
  if (!active()) return dim * static_cast<std::int64_t>(c10::elementSize(dtype));
  if (entropy_) return entropy_row_bytes(entropy_->bits, dim);
  return static_cast<std::int64_t>(
      codec_->max_compressed_bytes(dim, comm::dtype_of(at::empty({0}, dtype))));
}

std::int64_t RowCodec::message_rows(std::int64_t rows, std::int64_t dim) const {
  if (!by_message()) return rows;
  return basis_ ? rotated_message_rows(spectral_->bits, dim, rows)
                : entropy_message_rows(entropy_->bits, dim, rows);
}

at::Tensor RowCodec::encode(const at::Tensor& rows, const RandomKey& key) const {
  return encode(rows, {RowSegment{rows.size(0), key}});
}

at::Tensor RowCodec::encode_messages(const at::Tensor& input,
                                     const std::vector<RowSegment>& segments) const {
  const at::Tensor rows = input.to(at::kFloat).contiguous();
  const std::int64_t dim = rows.size(1);
  std::int64_t all = 0;
  for (const RowSegment& segment : segments) all += message_rows(segment.rows, dim);
  at::Tensor result = at::empty({all, row_bytes(dim, at::kFloat)}, at::kByte);
  auto* out = static_cast<std::byte*>(result.mutable_data_ptr());
  std::int64_t first = 0;
  for (const RowSegment& segment : segments) {
    const at::Tensor part = rows.narrow(0, first, segment.rows);
    const auto bytes = static_cast<std::size_t>(message_rows(segment.rows, dim) * result.size(1));
    if (segment.rows > 0 && basis_) {
      encode_rotated_rows(spectral_->bits, *basis_, part, {out, bytes});
    } else if (segment.rows > 0) {
      const std::span values(part.const_data_ptr<float>(), static_cast<std::size_t>(part.numel()));
      encode_entropy_rows(*entropy_, values, static_cast<std::size_t>(dim), segment.key,
                          {out, bytes});
    }
    first += segment.rows;
    out += bytes;
  }
  return result;
}

at::Tensor RowCodec::decode_messages(const at::Tensor& bytes, std::int64_t dim,
                                     at::ScalarType dtype,
                                     const std::vector<RowSegment>& segments) const {
  const at::Tensor packed = bytes.contiguous();
  std::int64_t count = 0, expected = 0;
  for (const RowSegment& segment : segments) {
    count += segment.rows;
    expected += message_rows(segment.rows, dim);
  }
  const std::int64_t width = row_bytes(dim, dtype);
  if (packed.size(0) != expected || packed.size(1) != width) {
    throw FrameError(concat("messages of ", count, " rows in ", expected, " of ", width,
                            " bytes expected, got shape ", concat(packed.sizes())));
  }
  at::Tensor rows = at::empty({count, dim}, at::kFloat);
  const auto* in = static_cast<const std::byte*>(packed.const_data_ptr());
  std::int64_t first = 0;
  for (const RowSegment& segment : segments) {
    at::Tensor part = rows.narrow(0, first, segment.rows);
    const auto size = static_cast<std::size_t>(message_rows(segment.rows, dim) * width);
    if (segment.rows > 0 && basis_) {
      part.copy_(decode_rotated_rows(*basis_, {in, size}, segment.rows));
    } else if (segment.rows > 0) {
      decode_entropy_rows({in, size}, static_cast<std::size_t>(dim),
                          {part.mutable_data_ptr<float>(), static_cast<std::size_t>(part.numel())});
    }
    first += segment.rows;
    in += size;
  }
  return rows.to(dtype);
}

at::Tensor RowCodec::encode(const at::Tensor& input,
                            const std::vector<RowSegment>& segments) const {
  const at::Tensor rows = input.contiguous();
  if (!active()) return rows.view(at::kByte);
  check(rows.is_cpu(), "row codecs take rows in host memory, got ", rows.device().str());
  if (by_message()) return encode_messages(rows, segments);
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
  if (by_message()) return decode_messages(bytes, dim, dtype, segments);
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
