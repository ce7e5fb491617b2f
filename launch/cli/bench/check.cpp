#include "thinwire/launch/cli/bench/check.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "thinwire/common/error.h"
#include "thinwire/launch/cli/bench/data.h"

namespace thinwire::launch {
namespace {

using Floats = std::vector<float>;
constexpr WriteMode kAdd = WriteMode::kAccumulate;

double dot(const auto& a, const auto& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

// ‖a − b‖ / ‖b‖; of two equal tensors 0.
double distance(const auto& a, const auto& b) {
  double difference = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double d = static_cast<double>(a[i]) - b[i];
    difference += d * d;
  }
  return difference == 0 ? 0 : std::sqrt(difference / dot(b, b));
}

// Encodes with one codec, keeping the memory.
class RoundTrip {
 public:
  RoundTrip(const Codec& codec, std::int64_t numel, std::span<const std::int64_t> shape)
      : codec_(codec),
        shape_(shape),
        payload_(codec.max_compressed_bytes(numel, DType::kFloat32)) {}

  // Writes or adds what `values` decode to.
  void run(std::span<const float> values, const RandomKey& key, Floats& out, WriteMode mode) {
    ConstTensorView input = view_of(values);
    TensorView output = view_of(std::span<float>(out));
    input.shape = output.shape = shape_;
    bytes_ = codec_.compress(input, key, payload_);
    codec_.decompress(std::span(payload_).first(bytes_), key, output, mode);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  const Codec& codec_;
  std::span<const std::int64_t> shape_;
  std::vector<std::byte> payload_;
  std::size_t bytes_ = 0;
};

std::string check_projection(std::span<const float> out, const std::vector<double>& exact,
                             double rel_err) {
  const double share = dot(out, out) / dot(exact, exact);
  if (share <= 0) return "the result is zero";
  const double sum = rel_err * rel_err + share;
  if (std::abs(sum - 1) < 1e-3) return "";
  return concat("not a projection of the mean: the squares of it and of its error add up to ", sum,
                " instead of 1");
}

// The mean of what the ranks' payloads decode to.
Reference mean_reference(const CheckedTensor& tensor, std::vector<double> exact) {
  const auto key_of = [](int rank) {
    return RandomKey{.seed = 3, .step = 5, .layer = 7, .rank = static_cast<std::uint32_t>(rank)};
  };
  RoundTrip round_trip(*tensor.codec, tensor.numel, tensor.shape);
  Floats values(exact.size());
  Reference reference{.exact = std::move(exact),
                      .expected = Floats(values.size()),
                      .random = draws_random_numbers(*tensor.codec),
                      .limit = 1e-5,
                      .payload_bytes = 1};
  Floats& mean = reference.expected;
  if (tensor.expectation == Expectation::kHosts) {
    // A host's mean counts as often as it has ranks.
    reference.random = true;
    std::map<int, Floats> sums;
    for (int rank = 0; rank < tensor.world; ++rank) {
      fill_bench_values(rank, tensor.cols, 0, values);
      Floats& sum = sums[tensor.host_of_rank[static_cast<std::size_t>(rank)]];
      sum.resize(values.size());
      for (std::size_t i = 0; i < values.size(); ++i) sum[i] += values[i];
    }
    for (const auto& [host, sum] : sums) round_trip.run(sum, key_of(host), mean, kAdd);
  } else {
    for (int rank = 0; rank < tensor.world; ++rank) {
      fill_bench_values(rank, tensor.cols, 0, values);
      round_trip.run(values, key_of(rank), mean, kAdd);
    }
  }
  for (float& value : mean) value /= static_cast<float>(tensor.world);
  reference.payload_bytes = round_trip.bytes();
  if (tensor.expectation != Expectation::kSecondCode && tensor.expectation != Expectation::kSlots)
    return reference;
  round_trip.run(mean, key_of(tensor.world), values, WriteMode::kAssign);
  // A few elements may fall on the other side of a rounding.
  reference.limit += 0.02 * distance(values, mean);
  mean = values;
  return reference;
}

// What storing may do to the values of entries, relative.
double rounding_of(ValueType type) {
  switch (type) {
    case ValueType::kFloat32:
      return 1e-5;
    case ValueType::kFloat16:
      return 0x1p-10;
    case ValueType::kBFloat16:
      return 0x1p-7;
    case ValueType::kCoded:
      return 0.2;
  }
  return 0;
}

// Sets all but the `count` largest to zero.
void keep_largest(Floats& values, std::size_t count) {
  Floats magnitudes(values.size());
  std::ranges::transform(values, magnitudes.begin(), [](float x) { return std::abs(x); });
  if (count >= values.size()) return;
  const auto nth = magnitudes.end() - static_cast<std::ptrdiff_t>(std::max<std::size_t>(count, 1));
  std::nth_element(magnitudes.begin(), nth, magnitudes.end());
  std::ranges::replace_if(
      values, [least = *nth](float x) { return std::abs(x) < least; }, 0.0f);
}

// Each owner chooses by itself, so that near the threshold others may be chosen than from all.
CheckedResult check_largest(std::span<const float> out, const CheckedTensor& tensor,
                            std::vector<double> exact) {
  Reference reference = mean_reference(tensor, std::move(exact));
  Floats on_support = reference.expected;
  for (std::size_t i = 0; i < out.size(); ++i)
    if (out[i] == 0) on_support[i] = 0;
  const auto is_set = [](float x) { return x != 0; };
  const auto kept = static_cast<std::size_t>(std::ranges::count_if(out, is_set));
  const auto met = static_cast<std::size_t>(std::ranges::count_if(reference.expected, is_set));
  keep_largest(reference.expected, kept);
  const double largest = dot(reference.expected, reference.expected);
  CheckedResult result;
  if (reference.random) {
    result = compare(out, reference);
  } else {
    result.rel_err = distance(out, reference.exact);
    const double limit = rounding_of(tensor.codec->facts().values);
    if (const double off = distance(out, on_support); !(off <= limit))
      result.problem = concat("its entries are off the payloads' mean by ", off, ", at most ",
                              limit, " is right");
  }
  if (!result.problem.empty()) return result;
  if (2 * kept * static_cast<std::size_t>(tensor.world) < met) {
    result.problem = concat("it has ", kept, " of ", met, " entries");
  } else if (const double share = dot(out, out) / largest; !(share >= 0.9)) {
    result.problem = concat("its entries are not the largest: their squares add up to ", share,
                            " of those of as many largest ones");
  }
  return result;
}

// How fine the step is depends on what fills a slot, so only bounds can be told.
CheckedResult check_slots(std::span<const float> out, const CheckedTensor& tensor,
                          std::vector<double> exact) {
  const Reference reference = mean_reference(tensor, std::move(exact));
  const double norm = dot(reference.exact, reference.exact);
  const double share = dot(out, reference.exact) / norm;
  const double other_error = distance(reference.expected, reference.exact);
  const double other_share = dot(reference.expected, reference.exact) / norm;
  CheckedResult result{.rel_err = distance(out, reference.exact), .problem = {}};
  const bool near = result.rel_err <= 1.1 * other_error + 1e-6 && 2 * result.rel_err >= other_error;
  if (!near || !(share >= 0.9 * other_share && share <= 1.4 * other_share)) {
    result.problem =
        concat("its error is ", result.rel_err, " where an encoding of the whole has ", other_error,
               ", its share of the exact values ", share, " where that has ", other_share);
  }
  return result;
}

}  // namespace

bool draws_random_numbers(const Codec& codec) {
  constexpr std::int64_t kSide = 64;
  const std::array<std::int64_t, 2> shape = {kSide, kSide};
  Floats values(kSide * kSide), one(values.size()), other(values.size());
  fill_bench_values(0, kSide, 0, values);
  RoundTrip round_trip(codec, kSide * kSide, shape);
  round_trip.run(values, {.seed = 1, .step = 1}, one, WriteMode::kAssign);
  round_trip.run(values, {.seed = 1, .step = 2}, other, WriteMode::kAssign);
  return one != other;
}

CheckedResult compare(std::span<const float> out, const Reference& reference) {
  CheckedResult result;
  result.rel_err = distance(out, reference.exact);
  if (!std::isfinite(result.rel_err)) {
    result.problem = "the result is not finite";
    return result;
  }
  if (!reference.random) {
    const double off = distance(out, reference.expected);
    if (!(off <= reference.limit)) {
      result.problem = concat("off what the payloads decode to by ", off, ", at most ",
                              reference.limit, " is right");
    }
    return result;
  }
  const double norm = dot(reference.exact, reference.exact);
  const double share = dot(out, reference.exact) / norm;
  const double other_error = distance(reference.expected, reference.exact);
  const double other_share = dot(reference.expected, reference.exact) / norm;
  const double spread =
      6 / std::sqrt(static_cast<double>(std::max<std::size_t>(reference.payload_bytes, 1)));
  const auto near = [&](double a, double b) {
    return std::abs(a - b) <= 0.05 * std::max(std::abs(a), std::abs(b)) + spread;
  };
  if (!near(result.rel_err, other_error) || !near(share, other_share)) {
    result.problem =
        concat("its error is ", result.rel_err, " where another draw has ", other_error,
               ", its share of the exact values ", share, " where that has ", other_share);
  }
  return result;
}

CheckedResult check_bench_mean(std::span<const float> out, const CheckedTensor& tensor) {
  auto exact = exact_bench_mean(tensor.world, tensor.cols, tensor.numel);
  CheckedResult result;
  result.rel_err = distance(out, exact);
  if (!std::isfinite(result.rel_err)) {
    result.problem = "the result is not finite";
  } else if (tensor.expectation == Expectation::kExact) {
    if (result.rel_err > tensor.tolerance) {
      result.problem = concat("off the exact mean by ", result.rel_err, ", at most ",
                              tensor.tolerance, " is right");
    }
  } else if (tensor.expectation == Expectation::kProjection) {
    result.problem = check_projection(out, exact, result.rel_err);
  } else if (tensor.expectation == Expectation::kLargest) {
    result = check_largest(out, tensor, std::move(exact));
  } else if (tensor.expectation == Expectation::kSlots) {
    result = check_slots(out, tensor, std::move(exact));
  } else {
    result = compare(out, mean_reference(tensor, std::move(exact)));
  }
  return result;
}

}  // namespace thinwire::launch
