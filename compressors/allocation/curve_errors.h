// Squared errors of many settings of one codec from one pass over a gradient.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "thinwire/compressors/codecs/codec.h"
#include "thinwire/compressors/codecs/sparse_values.h"

namespace thinwire::lgreco {

// What is lost where the entries of largest magnitude are kept and all others dropped: squared l2
// norms of gradient − decoded gradient.
struct SelectionErrors {
  double topk = 0;     // the kept entries are stored in some ValueType
  double ternary = 0;  // of each kept entry the sign is sent, and once the mean of their magnitudes
};

// These errors for each number of kept entries, which topk stores as `values`. Summed in double
// precision, in two passes over the gradient and a sort of the few entries near each threshold.
// Throws InvalidArgument for a gradient with NaN or infinity.
std::vector<SelectionErrors> selection_squared_errors(std::span<const float> gradient,
                                                      std::span<const std::int64_t> counts,
                                                      ValueType values);

// For each codec the squared l2 norm of gradient − decode(encode(gradient)), measured with the
// codec itself, without error feedback. Codecs that code in blocks see the gradient once, a piece
// of 64 KiB at a time through all of them, so that it is read from memory once. Random rounding
// draws from a fixed key: equal gradients give equal errors.
std::vector<double> measured_squared_errors(std::span<const float> gradient,
                                            std::span<const CodecPtr> codecs);

}  // namespace thinwire::lgreco
