// Squared errors of many settings of one codec from one pass over a gradient.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "thinwire/compressors/codec.h"

namespace thinwire::lgreco {

// For each count the sum of squares of all but that many entries of largest magnitude: the squared
// error of exact top-k with float32 values. Summed in double precision. Two passes over the
// gradient and a sort of the few entries near each threshold. The gradient must be finite.
std::vector<double> topk_squared_errors(std::span<const float> gradient,
                                        std::span<const std::int64_t> counts);

// For each codec the squared l2 norm of gradient − decode(encode(gradient)), measured with the
// codec itself, without error feedback. Codecs that code in blocks see the gradient once, a piece
// of 64 KiB at a time through all of them, so that it is read from memory once. Random rounding
// draws from a fixed key: equal gradients give equal errors.
std::vector<double> measured_squared_errors(std::span<const float> gradient,
                                            std::span<const CodecPtr> codecs);

}  // namespace thinwire::lgreco
