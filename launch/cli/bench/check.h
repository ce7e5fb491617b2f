// Whether a benchmark's result is right. A lossy result has an error, so being near the exact mean
// says little; what is compared is what the codec's definition says the result must be.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "thinwire/compressors/codecs/codec.h"

namespace thinwire::launch {

struct CheckedResult {
  double rel_err = 0;   // ‖out − exact‖ / ‖exact‖
  std::string problem;  // empty: right
};

// What a result must be.
struct Reference {
  std::vector<double> exact;    // without any codec
  std::vector<float> expected;  // by the codec's definition
  // The codec draws random numbers and `expected` is another draw: then the result is held to the
  // error of that draw and to its share of `exact`, within 5 % and six standard deviations.
  bool random = false;
  double limit = 0;               // else: of ‖out − expected‖ / ‖expected‖
  std::size_t payload_bytes = 1;  // sets the standard deviation
};

CheckedResult compare(std::span<const float> out, const Reference& reference);

// Whether a codec gives other values with other random numbers.
bool draws_random_numbers(const Codec& codec);

// How the codec takes part in a mean.
enum class Expectation {
  kExact,       // no codec: the mean itself, up to `tolerance`
  kMean,        // the mean of what every rank's payload decodes to
  kLargest,     // the largest entries of that mean; owners of ranges keep the others
  kSecondCode,  // that mean, encoded and decoded once more
  kSlots,  // that, too, but the step is the averager's own: the error is half to eleven tenths of
           // that of the whole tensor's own encodings, the share of the exact mean 0.9 to 1.4
           // times theirs
  kHosts,  // the mean of what every host's own mean decodes to, up to another draw: layers
           // are cut between the ranks of a host first
  kProjection,  // the exact mean of a matrix, projected on a few of its directions (PowerSGD):
                // ‖out − exact‖² = ‖exact‖² − ‖out‖², and out is not zero
};

struct CheckedTensor {
  int world = 1;
  std::int64_t numel = 0;
  std::int64_t cols = 1;                // of fill_bench_values()
  std::span<const std::int64_t> shape;  // of what the codec sees
  const Codec* codec = nullptr;         // null with kExact
  Expectation expectation = Expectation::kExact;
  std::span<const int> host_of_rank;  // with kHosts
  double tolerance = 1e-6;            // of kExact, relative
};

// Compares `out`, the averaged fill_bench_values() of all ranks. Codecs without random numbers are
// held to 1e-5 of what is expected, relative, for rounding; with kSecondCode to 2 % of the error of
// that encoding more, for elements that fall on the other side of a step.
CheckedResult check_bench_mean(std::span<const float> out, const CheckedTensor& tensor);

}  // namespace thinwire::launch
