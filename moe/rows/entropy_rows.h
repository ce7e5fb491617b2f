// The row codec `ecsq(bits=2)`: all rows that one rank sends to another in one message are rounded
// to multiples of one step and entropy-coded together (compressors/entropy/step_coder.h). At given
// bits that has the least squared error, about that of codes of a fixed width with twice as many
// bits; a row's error depends on the rows that travel with it. Of messages of 96 rows and more the
// columns' means are taken out, and columns of like deviation share a table: two bytes a column say
// so.
//
// What a message takes is known before it is made: of so many rows, `bits` an element and what any
// payload takes. What would not fit is coded with a coarser step.
//
// With rounding=stochastic noise is added before values are rounded, and a decoded row is right on
// average: for gradients, which pass through straight. The expected value of Q(x + u) for a
// uniform quantiser Q and u uniform in ± step / 2 is x (Gray and Stockham, "Dithered quantizers",
// IEEE Trans. Inf. Theory 39, 1993).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include <ATen/core/Tensor.h>

#include "thinwire/common/philox.h"
#include "thinwire/common/spec.h"
#include "thinwire/moe/rows/spectral_rows.h"

namespace thinwire::moe {

struct EntropyRowOptions {
  double bits = 2;  // an element, 0.1 to 8
  bool stochastic = false;
};

// ecsq(bits=2, rounding=nearest|stochastic). Throws InvalidArgument.
EntropyRowOptions parse_entropy_rows(const Spec& spec);
std::string spec_of(const EntropyRowOptions& options);

// Bytes of a row of `dim` elements, and rows of so many bytes that a message of `rows` rows takes;
// a message of none takes none. Thread-safe.
std::int64_t entropy_row_bytes(double bits, std::int64_t dim);
std::int64_t entropy_message_rows(double bits, std::int64_t dim, std::int64_t rows);

// The same with the rows' coordinates in a basis (spectral_rows.h), coded with its options' bits;
// the length of each row is part of the message.
std::int64_t rotated_message_rows(double bits, std::int64_t dim, std::int64_t rows);

// Codes the values of a message; one that is not finite makes all of them NaN. Random numbers are
// those of `key`. Thread-safe.
void encode_entropy_rows(const EntropyRowOptions& options, std::span<const float> values,
                         std::size_t columns, const RandomKey& key, std::span<std::byte> message);
// Throws FrameError for bytes that encode_entropy_rows() cannot have written for so many values.
void decode_entropy_rows(std::span<const std::byte> message, std::size_t columns,
                         std::span<float> values);

// `rows` is [n, d] float32, contiguous. Decoding returns the same.
void encode_rotated_rows(double bits, const SpectralBasis& basis, const at::Tensor& rows,
                         std::span<std::byte> message);
at::Tensor decode_rotated_rows(const SpectralBasis& basis, std::span<const std::byte> message,
                               std::int64_t rows);

}  // namespace thinwire::moe
