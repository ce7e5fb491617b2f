// A codec applied to every row of a matrix on its own, so that a row costs the same bytes and
// decodes to the same values whichever other rows travel with it: rows=quantize(bits=8) has one
// scale (or more, with a bucket below the width) per row.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "thinwire/compressors/codecs/codec.h"
#include "thinwire/moe/rows/spectral_rows.h"

namespace thinwire::moe {

// Consecutive rows that share a stream of random numbers: row i of them continues where row i - 1
// ends.
struct RowSegment {
  std::int64_t rows = 0;
  RandomKey key;
};

// Immutable, thread-safe.
class RowCodec {
 public:
  RowCodec() = default;
  // "" and "none": rows travel as they are. "spectral(...)": see spectral_rows.h; coded with its
  // `start` codec while it has no basis. Else a codec of the table. Throws InvalidArgument for an
  // unknown spec and for codecs whose payload has no fixed size.
  explicit RowCodec(const std::string& spec);

  bool active() const { return codec_ != nullptr; }
  // Canonical text, "none" where inactive.
  std::string spec() const;
  // Null unless the codec is spectral.
  const SpectralOptions* spectral() const { return spectral_ ? &*spectral_ : nullptr; }
  const std::shared_ptr<const SpectralBasis>& basis() const { return basis_; }
  // A spectral codec that uses `basis`; null: its `start`.
  RowCodec with_basis(std::shared_ptr<const SpectralBasis> basis) const;

  // Bytes of one row on the wire.
  std::int64_t row_bytes(std::int64_t dim, at::ScalarType dtype) const;

  // [n, d] rows of the host -> [n, row_bytes] uint8; the segments cover all n rows. An inactive
  // codec gives a view of the rows' memory.
  at::Tensor encode(const at::Tensor& rows, const std::vector<RowSegment>& segments) const;
  at::Tensor encode(const at::Tensor& rows, const RandomKey& key) const;
  // The inverse, to rows of `dim` elements of `dtype`; the bytes of a row lie together, the rows at
  // any distance. An inactive codec gives a view of the bytes. Throws FrameError for bytes that
  // cannot be such rows.
  at::Tensor decode(const at::Tensor& bytes, std::int64_t dim, at::ScalarType dtype,
                    const std::vector<RowSegment>& segments) const;
  at::Tensor decode(const at::Tensor& bytes, std::int64_t dim, at::ScalarType dtype,
                    const RandomKey& key) const;

 private:
  CodecPtr codec_;
  std::optional<SpectralOptions> spectral_;
  std::shared_ptr<const SpectralBasis> basis_;
};

}  // namespace thinwire::moe
