// Values of the parts of a slot that is coded in every way there is.
#pragma once

#include <cstddef>
#include <limits>
#include <vector>

#include "thinwire/tests/compressors/codecs/payloads.h"

namespace thinwire::testing {

// Zeros, a part that is not finite, codes and pairs with tables, models and those of the part
// before, one symbol alone, nothing at all; a part of `numel_of_pairs` values, of which some are
// beyond the largest symbol.
inline std::vector<std::vector<float>> mixed_parts(std::size_t numel_of_pairs) {
  std::vector<std::vector<float>> values = {normal_values(700, 1, 0.03f),
                                            normal_values(3000, 2, 0.003f),
                                            {},
                                            normal_values(numel_of_pairs, 3, 0.1f),
                                            normal_values(4097, 4, 0.09f),
                                            std::vector<float>(300),
                                            normal_values(2501, 5, 0.0101f),
                                            normal_values(33, 6, 0.03f),
                                            normal_values(5, 7, 2.0f),
                                            std::vector<float>(40, 0.05f),
                                            normal_values(2200, 8, 0.008f),
                                            normal_values(260, 9, 1.0f)};
  values[7][20] = std::numeric_limits<float>::infinity();
  values[1][5] = -1.0f;
  values[3][77] = 2000;  // long numbers
  values[3][78] = -9;
  return values;
}

}  // namespace thinwire::testing
