// How rows are coded on their way to experts and back. Most codecs are applied to every row on its
// own, so that a row costs the same bytes and decodes to the same values whichever other rows
// travel with it: rows=quantize(bits=8) has one scale (or more, with a bucket below the width) per
// row. The rows of a message are coded together by ecsq(...), see entropy_rows.h.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "thinwire/compressors/codecs/codec.h"
#include "thinwire/moe/rows/entropy_rows.h"
#include "thinwire/moe/rows/spectral_rows.h"

namespace thinwire::moe {

// Consecutive rows that travel in one message and share a stream of random numbers: row i of them
// continues where row i - 1 ends.
struct RowSegment {
  std::int64_t rows = 0;
  RandomKey key;
};

// Immutable, thread-safe.
class RowCodec {
 public:
  RowCodec() = default;
  // "" and "none": rows travel as they are. "spectral(...)": see spectral_rows.h; coded with its
  // `start` codec while it has no basis. "ecsq(...)": see entropy_rows.h. Else a codec of the
  // table. Throws InvalidArgument for an unknown spec and for codecs whose payload has no fixed
  // size.
  explicit RowCodec(const std::string& spec);

  bool active() const { return codec_ != nullptr || entropy_.has_value(); }
  // Whether the rows of a message are coded together.
  bool by_message() const { return basis_ ? spectral_->entropy : entropy_.has_value(); }
  // Canonical text, "none" where inactive.
  std::string spec() const;
  // Null unless the codec is spectral.
  const SpectralOptions* spectral() const { return spectral_ ? &*spectral_ : nullptr; }
  const std::shared_ptr<const SpectralBasis>& basis() const { return basis_; }
  // A spectral codec that uses `basis`; null: its `start`.
  RowCodec with_basis(std::shared_ptr<const SpectralBasis> basis) const;

  // Bytes of one row on the wire, and rows of so many bytes that a message of `rows` rows takes:
  // some more where they are coded together.
  std::int64_t row_bytes(std::int64_t dim, at::ScalarType dtype) const;
  std::int64_t message_rows(std::int64_t rows, std::int64_t dim) const;

  // [n, d] rows of the host -> [m, row_bytes] uint8, where the segments cover all n rows and m is
  // the sum of their message_rows(). An inactive codec gives a view of the rows' memory.
  at::Tensor encode(const at::Tensor& rows, const std::vector<RowSegment>& segments) const;
  at::Tensor encode(const at::Tensor& rows, const RandomKey& key) const;
  // The inverse, to rows of `dim` elements of `dtype`; the bytes of a row lie together, the rows at
  // any distance. An inactive codec gives a view of the bytes. Throws FrameError for bytes that
  // cannot be such rows.
  at::Tensor decode(const at::Tensor& bytes, std::int64_t dim, at::ScalarType dtype,
                    const std::vector<RowSegment>& segments) const;

 private:
  at::Tensor encode_messages(const at::Tensor& rows, const std::vector<RowSegment>& segments) const;
  at::Tensor decode_messages(const at::Tensor& bytes, std::int64_t dim, at::ScalarType dtype,
                             const std::vector<RowSegment>& segments) const;

  // At most one of these; of a spectral codec what it begins with.
  std::optional<EntropyRowOptions> entropy_;
  CodecPtr codec_;
  std::optional<SpectralOptions> spectral_;
  std::shared_ptr<const SpectralBasis> basis_;
};

}  // namespace thinwire::moe
