#include "thinwire/moe/rows/entropy_rows.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/ecsq.h"
#include "thinwire/compressors/entropy/rate_model.h"
#include "thinwire/compressors/entropy/step_coder.h"

namespace thinwire::moe {
namespace {

// Elements that share a table, as in ecsq.
constexpr std::size_t kPartElements = static_cast<std::size_t>(kEcsqPart);
// Room of a message for tables and the coder's states, beside the bits that were asked for: of more
// bits more symbols are in use.
std::int64_t table_bytes(double bits) {
  return 16 + static_cast<std::int64_t>(8 * bits);
}

// Estimated steps are right within 2 % of the bits. Of those with noise, from smaller samples,
// within 4.
constexpr double kUse = 0.98, kStochasticUse = 0.96;
constexpr int kStochasticTries = 24;

// Components of a basis whose deviations differ by at most half an octave share a table.
constexpr int kClassesAnOctave = 2;
constexpr std::size_t kMostClasses = 24;

struct RowScratch {
  entropy::StepEncoder encoder;
  entropy::StepDecoder decoder;
  entropy::StepCodes codes;
  std::vector<float> noisy, coordinates;
  std::vector<std::span<const float>> parts;
  std::vector<std::size_t> sizes;
};
RowScratch& row_scratch() {
  thread_local RowScratch instance;
  return instance;
}

std::int64_t parts_of_message(std::int64_t elements) {
  return (elements + kEcsqPart - 1) / kEcsqPart;
}

std::int64_t rows_for_any_payload(std::size_t parts, double bits, std::int64_t row_bytes) {
  const auto least =
      static_cast<std::int64_t>(entropy::StepEncoder::min_bytes(parts)) + table_bytes(bits);
  return (least + row_bytes - 1) / row_bytes;
}

// Where the classes of a basis' components end.
std::vector<std::int64_t> class_ends(const SpectralBasis& basis) {
  const auto deviations = basis.deviations();
  const float* deviation = deviations.const_data_ptr<float>();
  std::vector<std::int64_t> ends;
  int current = 0;
  for (std::int64_t j = 0; j < basis.dim(); ++j) {
    const double octaves =
        deviation[j] > 0 ? std::log2(double{deviation[0]} / deviation[j]) : double{kMostClasses};
    const int each =
        std::min(static_cast<int>(kMostClasses) - 1, static_cast<int>(kClassesAnOctave * octaves));
    if (j > 0 && each > current) ends.push_back(j);
    current = std::max(current, each);
  }
  ends.push_back(basis.dim());
  return ends;
}

// A row's length as the receiver knows it: the upper half of a float32, rounded down.
struct RowLength {
  std::uint16_t bits;
  explicit RowLength(std::uint16_t of_message) : bits(of_message) {}
  explicit RowLength(double length)
      : bits(static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(static_cast<float>(length)) >>
                                        16)) {}
  float value() const { return std::bit_cast<float>(std::uint32_t{bits} << 16); }
};

void cut_into_parts(std::span<const float> values, std::vector<std::span<const float>>& parts) {
  parts.clear();
  for (std::size_t at = 0; at < values.size(); at += kPartElements) {
    parts.push_back(values.subspan(at, std::min(kPartElements, values.size() - at)));
  }
}

// Bits of values that are rounded up or down at random, so that they are right on average.
double stochastic_bits(std::span<const float> sample, double step) {
  constexpr std::size_t kBins = 64;
  std::array<double, kBins> mass{};
  double beyond = 0;
  for (const float value : sample) {
    const double scaled = std::abs(double{value}) / step;
    if (scaled >= kBins - 1) {
      mass[kBins - 1] += 1;
      beyond += std::log2(scaled / kBins);
      continue;
    }
    const auto below = static_cast<std::size_t>(scaled);
    mass[below] += 1 - (scaled - static_cast<double>(below));
    mass[below + 1] += scaled - static_cast<double>(below);
  }
  const auto total = static_cast<double>(sample.size());
  double bits = beyond + total - mass[0];  // signs
  for (const double each : mass) bits -= each > 0 ? each * std::log2(each / total) : 0;
  return bits / total;
}

// The step with which stochastic rounding takes so many bits an element; 0 where all is zero.
float stochastic_step(std::span<const float> values, double bits) {
  constexpr std::size_t kSample = 2048;
  constexpr int kHalvings = 14;
  std::vector<float> sample;
  const std::size_t stride = std::max<std::size_t>(1, values.size() / kSample);
  float largest = 0;
  for (std::size_t i = 0; i < values.size(); i += stride) {
    sample.push_back(values[i]);
    largest = std::max(largest, std::abs(values[i]));
  }
  if (!(largest > 0)) {
    for (const float value : values) largest = std::max(largest, std::abs(value));
    return largest;
  }
  double low = std::log2(largest) - 20, high = std::log2(largest) + 8;
  for (int i = 0; i < kHalvings; ++i) {
    const double middle = (low + high) / 2;
    (stochastic_bits(sample, std::exp2(middle)) > bits ? low : high) = middle;
  }
  return static_cast<float>(std::exp2(high));
}

void add_noise(std::span<const float> values, float step, const RandomKey& key,
               std::vector<float>& noisy) {
  noisy.resize(values.size());
  const PhiloxStream stream = PhiloxStream::of(key);
  for (std::size_t at = 0; at < values.size(); at += 4) {
    const auto words = stream.block(key.first_element / 4 + at / 4);
    for (std::size_t i = 0; i < std::min<std::size_t>(4, values.size() - at); ++i) {
      const float uniform = static_cast<float>(words[i] >> 8) * 0x1p-24f + 0x1p-25f;
      noisy[at + i] = values[at + i] + (uniform - 0.5f) * step;
    }
  }
}

}  // namespace

EntropyRowOptions parse_entropy_rows(const Spec& spec) {
  EntropyRowOptions options;
  SpecReader read(spec);
  options.bits = read.number("bits", options.bits, 0.1, 8);
  options.stochastic = read.choice("rounding", {"nearest", "stochastic"}, 0) == 1;
  read.finish();
  return options;
}

std::string spec_of(const EntropyRowOptions& options) {
  return concat("ecsq(bits=", options.bits,
                options.stochastic ? ", rounding=stochastic)" : ", rounding=nearest)");
}

std::int64_t entropy_row_bytes(double bits, std::int64_t dim) {
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(static_cast<double>(dim) * bits / 8));
}

std::int64_t entropy_message_rows(double bits, std::int64_t dim, std::int64_t rows) {
  if (rows == 0) return 0;
  const auto parts = static_cast<std::size_t>(parts_of_message(rows * dim));
  return rows + rows_for_any_payload(parts, bits, entropy_row_bytes(bits, dim));
}

std::int64_t rotated_message_rows(double bits, std::int64_t dim, std::int64_t rows) {
  if (rows == 0) return 0;
  return rows + rows_for_any_payload(kMostClasses, bits, spectral_row_bytes(bits, dim));
}

void encode_entropy_rows(const EntropyRowOptions& options, std::span<const float> values,
                         const RandomKey& key, std::span<std::byte> message) {
  RowScratch& s = row_scratch();
  cut_into_parts(values, s.parts);
  const double room =
      8 * static_cast<double>(message.size() - entropy::StepEncoder::min_bytes(s.parts.size()));
  if (!options.stochastic) {
    const double rounding = EcsqOptions{.value = options.bits}.rounding();
    const std::array classes = {entropy::MagnitudeCounts(values)};
    const float step = entropy::step_for_bits(classes, kUse * room, rounding);
    s.encoder.encode(s.parts, step, static_cast<float>(rounding), message, s.codes);
    return;
  }
  float step = stochastic_step(values, kStochasticUse * room / static_cast<double>(values.size()));
  for (int attempt = 0; attempt < kStochasticTries; ++attempt) {
    add_noise(values, step, key, s.noisy);
    cut_into_parts(s.noisy, s.parts);
    const entropy::Encoded encoded =
        s.encoder.encode(s.parts, step, 0.5f, message, s.codes, entropy::Reconstruct::kMultiple);
    // Noise of a finer step than the one that was used is not right on average.
    if (encoded.step == step || encoded.step == 0) return;
    step = encoded.step;
  }
}

void decode_entropy_rows(std::span<const std::byte> message, std::span<float> values) {
  RowScratch& s = row_scratch();
  s.sizes.clear();
  for (std::size_t at = 0; at < values.size(); at += kPartElements) {
    s.sizes.push_back(std::min(kPartElements, values.size() - at));
  }
  s.decoder.decode(message, s.sizes, s.codes);
  for (std::size_t p = 0; p < s.codes.parts(); ++p) {
    s.codes.apply(p, entropy::Apply::kAssign, values.subspan(p * kPartElements, s.sizes[p]));
  }
}

void encode_rotated_rows(double bits, const SpectralBasis& basis, const at::Tensor& rows,
                         std::span<std::byte> message) {
  RowScratch& s = row_scratch();
  const std::int64_t count = rows.size(0), dim = basis.dim();
  at::Tensor rotated = at::mm(rows, basis.axes().t());
  const at::Tensor lengths = rows.norm(2, 1).contiguous();
  const float* length = lengths.const_data_ptr<float>();
  const at::Tensor known = at::empty({count, 1}, at::kFloat);
  for (std::int64_t i = 0; i < count; ++i) {
    const RowLength narrow(double{length[i]});
    std::memcpy(message.data() + static_cast<std::size_t>(i) * sizeof narrow.bits, &narrow.bits,
                sizeof narrow.bits);
    known.mutable_data_ptr<float>()[i] = narrow.value();
  }
  rotated.sub_(known * basis.mean_in_basis());
  // Class after class, so that each is a part of its own.
  const float* coordinate = rotated.const_data_ptr<float>();
  s.coordinates.resize(static_cast<std::size_t>(count * dim));
  s.parts.clear();
  std::vector<entropy::MagnitudeCounts> classes;
  float* to = s.coordinates.data();
  std::int64_t first = 0;
  for (const std::int64_t end : class_ends(basis)) {
    float* const begin = to;
    for (std::int64_t i = 0; i < count; ++i) {
      to = std::copy(coordinate + i * dim + first, coordinate + i * dim + end, to);
    }
    s.parts.emplace_back(begin, static_cast<std::size_t>(to - begin));
    classes.emplace_back(s.parts.back());
    first = end;
  }
  const auto payload = message.subspan(static_cast<std::size_t>(count) * sizeof(RowLength::bits));
  const double room =
      8 * static_cast<double>(payload.size() - entropy::StepEncoder::min_bytes(s.parts.size()));
  const double rounding = EcsqOptions{.value = bits, .basis = BasisOptions{}}.rounding();
  const float step = entropy::step_for_bits(classes, kUse * room, rounding);
  s.encoder.encode(s.parts, step, static_cast<float>(rounding), payload, s.codes);
}

at::Tensor decode_rotated_rows(const SpectralBasis& basis, std::span<const std::byte> message,
                               std::int64_t rows) {
  RowScratch& s = row_scratch();
  const std::int64_t dim = basis.dim();
  const std::vector<std::int64_t> ends = class_ends(basis);
  s.sizes.clear();
  std::int64_t first = 0;
  for (const std::int64_t end : ends) {
    s.sizes.push_back(static_cast<std::size_t>(rows * (end - first)));
    first = end;
  }
  const std::size_t lengths_bytes = static_cast<std::size_t>(rows) * sizeof(RowLength::bits);
  s.decoder.decode(message.subspan(lengths_bytes), s.sizes, s.codes);
  at::Tensor rotated = at::empty({rows, dim}, at::kFloat);
  float* coordinate = rotated.mutable_data_ptr<float>();
  first = 0;
  for (std::size_t c = 0; c < ends.size(); ++c) {
    s.coordinates.resize(s.sizes[c]);
    s.codes.apply(c, entropy::Apply::kAssign, s.coordinates);
    const float* from = s.coordinates.data();
    for (std::int64_t i = 0; i < rows; ++i, from += ends[c] - first) {
      std::copy_n(from, ends[c] - first, coordinate + i * dim + first);
    }
    first = ends[c];
  }
  at::Tensor lengths = at::empty({rows, 1}, at::kFloat);
  for (std::int64_t i = 0; i < rows; ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, message.data() + static_cast<std::size_t>(i) * sizeof bits, sizeof bits);
    lengths.mutable_data_ptr<float>()[i] = RowLength(bits).value();
  }
  rotated.add_(lengths * basis.mean_in_basis());
  return at::mm(rotated, basis.axes());
}

}  // namespace thinwire::moe
