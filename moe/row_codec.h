// A codec applied to every row of a matrix on its own, so that a row costs the same bytes and
// decodes to the same values whichever other rows travel with it: rows=quantize(bits=8) has one
// scale (or more, with a bucket below the width) per row.
#pragma once

#include <string>

#include <ATen/core/Tensor.h>

#include "thinwire/compressors/codec.h"

namespace thinwire::moe {

// Immutable, thread-safe.
class RowCodec {
 public:
  // "" and "none": rows travel as they are. Throws InvalidArgument for an unknown spec and for
  // codecs whose payload has no fixed size.
  explicit RowCodec(const std::string& spec);

  bool active() const { return codec_ != nullptr; }
  // Canonical text, "none" where inactive.
  std::string spec() const;

  // Bytes of one row on the wire.
  std::int64_t row_bytes(std::int64_t dim, at::ScalarType dtype) const;

  // [n, d] rows of the host -> [n, row_bytes] uint8. `key` selects the random numbers of row 0; row
  // i continues where row i - 1 ends. An inactive codec gives a view of the rows' memory.
  at::Tensor encode(const at::Tensor& rows, const RandomKey& key) const;
  // The inverse, to rows of `dim` elements of `dtype`. Throws FrameError for bytes that cannot be
  // such rows.
  at::Tensor decode(const at::Tensor& bytes, std::int64_t dim, at::ScalarType dtype,
                    const RandomKey& key) const;

 private:
  CodecPtr codec_;
};

}  // namespace thinwire::moe
