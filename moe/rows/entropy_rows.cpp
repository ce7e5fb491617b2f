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
#include "thinwire/compressors/kernels/dither.h"
#include "thinwire/compressors/kernels/float_arrays.h"
#include "thinwire/moe/rows/column_classes.h"

namespace thinwire::moe {
namespace {

// What tells the classes and means of columns pays in messages of so many rows.
constexpr std::int64_t kFewestForColumns = 96;
// Estimated steps are right within 2 % of the bits. Of those with noise, from smaller samples,
// within 4.
constexpr double kUse = 0.98, kStochasticUse = 0.96;
constexpr int kStochasticTries = 24;
// Of a message that is sent once, by estimates that cost less than coding it.
constexpr std::size_t kCountedTogether = 2, kMostCounted = 2048;
constexpr double kStepOctaves = 0x1p-6;
// More bits an element than any message is given, however few elements it has.
constexpr double kMostBits = 16;

// Room of a message for tables and the coder's states, beside the bits that were asked for: of more
// bits more symbols are in use.
std::int64_t table_bytes(double bits) {
  return 16 + static_cast<std::int64_t>(8 * bits);
}

struct RowScratch {
  entropy::StepEncoder encoder;
  entropy::StepDecoder decoder;
  entropy::StepCodes codes;
  std::vector<float> coordinates, noisy, means;
  std::vector<std::int32_t> places, widths;
  std::span<const float> values;  // of all parts, one after the other
  std::vector<std::span<const float>> parts;
  std::vector<std::size_t> sizes;
};
RowScratch& row_scratch() {
  thread_local RowScratch instance;
  return instance;
}

std::int64_t rows_for_any_payload(std::size_t parts, double bits, std::int64_t row_bytes) {
  const auto least =
      static_cast<std::int64_t>(entropy::StepEncoder::min_bytes(parts)) + table_bytes(bits);
  return (least + row_bytes - 1) / row_bytes;
}

// [rows, columns], in any order of the columns, to parts by class, without their means.
void gather(const float* values, std::size_t rows, std::size_t columns,
            const ColumnClasses& classes, const ColumnCodes* codes) {
  RowScratch& s = row_scratch();
  s.parts.clear();
  if (classes.ends.size() == 1 && !codes) {
    s.values = {values, rows * columns};
    s.parts.push_back(s.values);
    return;
  }
  s.coordinates.resize(rows * columns);
  s.values = s.coordinates;
  s.means.assign(columns, 0.0f);
  for (std::size_t i = 0; codes && i < columns; ++i) {
    s.means[i] = codes->mean_of(static_cast<std::size_t>(classes.order[i]));
  }
  kernels::take_columns(values, rows, classes.groups(), s.means.data(), s.coordinates.data());
  std::size_t first = 0;
  for (const std::int32_t end : classes.ends) {
    const std::size_t numel = rows * static_cast<std::size_t>(end) - first;
    s.parts.push_back(s.values.subspan(first, numel));
    first += numel;
  }
}

// The inverse of gather(), from codes.
void scatter(float* values, std::size_t rows, std::size_t columns, const ColumnClasses& classes,
             const ColumnCodes* codes) {
  RowScratch& s = row_scratch();
  if (classes.ends.size() == 1 && !codes)
    return s.codes.apply(0, entropy::Apply::kAssign, {values, rows * columns});
  s.coordinates.resize(rows * columns);
  std::size_t first = 0;
  for (std::size_t p = 0; p < s.sizes.size(); ++p) {
    s.codes.apply(p, entropy::Apply::kAssign, std::span(s.coordinates).subspan(first, s.sizes[p]));
    first += s.sizes[p];
  }
  s.means.assign(columns, 0.0f);
  for (std::size_t j = 0; codes && j < columns; ++j) s.means[j] = codes->mean_of(j);
  s.places.resize(columns);
  s.widths.resize(columns);
  kernels::put_columns(s.coordinates.data(), rows, classes.groups(), s.means.data(), s.places,
                       s.widths, values);
}

void decode_parts(std::span<const std::byte> payload, std::size_t rows,
                  const ColumnClasses& classes) {
  RowScratch& s = row_scratch();
  s.sizes.clear();
  std::int32_t first = 0;
  for (const std::int32_t end : classes.ends) {
    s.sizes.push_back(rows * static_cast<std::size_t>(end - first));
    first = end;
  }
  s.decoder.decode(payload, s.sizes, s.codes);
}

// Bits for codes in a payload.
double room_of(std::span<const std::byte> payload, std::size_t parts) {
  std::size_t numel = 0;
  for (const auto& part : row_scratch().parts) numel += part.size();
  return std::min(
      8.0 * static_cast<double>(payload.size() - entropy::StepEncoder::min_bytes(parts)),
      kMostBits * static_cast<double>(numel));
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
  constexpr std::size_t kSample = 1024;
  constexpr int kHalvings = 11;
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

// Sixteen random bits a value.
void add_noise(std::span<const float> values, float step, const RandomKey& key,
               std::vector<float>& noisy) {
  noisy.resize(values.size());
  kernels::dither(values, step * 0x1p-16f, PhiloxStream::of(key), key.first_element / 8,
                  noisy.data());
}

// Encodes the scratch's parts with the step that fills the payload.
void encode_nearest(double rounding, std::span<std::byte> payload) {
  RowScratch& s = row_scratch();
  // Of parts that follow one another together: they differ by half an octave. Where the encoder
  // looks for a step itself, by a sample, it is enough to begin anywhere near.
  const std::size_t together = entropy::StepEncoder::samples(s.values.size(), s.parts.size())
                                   ? std::max(kCountedTogether, s.parts.size())
                                   : kCountedTogether;
  std::vector<entropy::MagnitudeCounts> counts;
  for (std::size_t p = 0; p < s.parts.size(); p += together) {
    const auto& last = s.parts[std::min(p + together, s.parts.size()) - 1];
    counts.emplace_back(std::span(s.parts[p].data(), last.data() + last.size()), kMostCounted);
  }
  const float step = entropy::step_for_bits(counts, kUse * room_of(payload, s.parts.size()),
                                            rounding, kStepOctaves);
  s.encoder.encode(s.parts, {.step = step, .rounding = static_cast<float>(rounding), .fill = true},
                   payload, s.codes);
}

void encode_stochastic(const RandomKey& key, std::span<std::byte> payload) {
  RowScratch& s = row_scratch();
  const std::span<const float> values = s.values;
  const double bits = kStochasticUse * room_of(payload, s.parts.size());
  float step = stochastic_step(values, bits / static_cast<double>(values.size()));
  std::vector<std::span<const float>> noisy_parts;
  for (int attempt = 0; attempt < kStochasticTries; ++attempt) {
    add_noise(values, step, key, s.noisy);
    noisy_parts.clear();
    std::size_t at = 0;
    for (const auto& part : s.parts) {
      noisy_parts.push_back(std::span<const float>(s.noisy).subspan(at, part.size()));
      at += part.size();
    }
    const entropy::Encoded encoded = s.encoder.encode(
        noisy_parts, {.step = step, .reconstruct = entropy::Reconstruct::kMultiple}, payload,
        s.codes);
    // Noise of a finer step than the one that was used is not right on average.
    if (encoded.step == step || encoded.step == 0) return;
    step = encoded.step;
  }
}

// Whether a message begins with two bytes for each column.
bool tells_columns(std::size_t rows, std::size_t columns, std::size_t message_bytes) {
  return static_cast<std::int64_t>(rows) >= kFewestForColumns && 16 * columns <= message_bytes;
}

std::vector<std::int8_t> scales_of(const SpectralBasis& basis) {
  const float* deviation = basis.deviations().const_data_ptr<float>();
  std::vector<std::int8_t> scales;
  for (std::int64_t j = 0; j < basis.dim(); ++j) scales.push_back(scale_code(deviation[j]));
  return scales;
}

// A row's length as the receiver knows it: the upper half of a float32.
struct RowLength {
  std::uint16_t bits;
  explicit RowLength(std::uint16_t of_message) : bits(of_message) {}
  explicit RowLength(double length)
      : bits(static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(static_cast<float>(length)) >>
                                        16)) {}
  float value() const { return std::bit_cast<float>(std::uint32_t{bits} << 16); }
};

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
  const std::size_t parts = rows < kFewestForColumns ? 1 : kMostClasses;
  return rows + rows_for_any_payload(parts, bits, entropy_row_bytes(bits, dim));
}

std::int64_t rotated_message_rows(double bits, std::int64_t dim, std::int64_t rows) {
  if (rows == 0) return 0;
  return rows + rows_for_any_payload(kMostClasses, bits, spectral_row_bytes(bits, dim));
}

void encode_entropy_rows(const EntropyRowOptions& options, std::span<const float> values,
                         std::size_t columns, const RandomKey& key, std::span<std::byte> message) {
  const std::size_t rows = values.size() / columns;
  const bool told = tells_columns(rows, columns, message.size());
  ColumnCodes codes(columns);
  std::span<std::byte> payload = message;
  if (told) {
    if (kernels::all_finite(values)) codes = ColumnCodes(values, columns);
    std::memcpy(message.data(), codes.scale.data(), columns);
    std::memcpy(message.data() + columns, codes.mean.data(), columns);
    payload = message.subspan(2 * columns);
  }
  gather(values.data(), rows, columns, classes_of(codes.scale), told ? &codes : nullptr);
  if (options.stochastic) {
    encode_stochastic(key, payload);
  } else {
    encode_nearest(EcsqOptions{.value = options.bits}.rounding(), payload);
  }
}

void decode_entropy_rows(std::span<const std::byte> message, std::size_t columns,
                         std::span<float> values) {
  const std::size_t rows = values.size() / columns;
  const bool told = tells_columns(rows, columns, message.size());
  ColumnCodes codes(columns);
  std::span<const std::byte> payload = message;
  if (told) {
    std::memcpy(codes.scale.data(), message.data(), columns);
    std::memcpy(codes.mean.data(), message.data() + columns, columns);
    payload = message.subspan(2 * columns);
  }
  const ColumnClasses classes = classes_of(codes.scale);
  decode_parts(payload, rows, classes);
  scatter(values.data(), rows, columns, classes, told ? &codes : nullptr);
}

void encode_rotated_rows(double bits, const SpectralBasis& basis, const at::Tensor& rows,
                         std::span<std::byte> message) {
  const auto count = static_cast<std::size_t>(rows.size(0));
  at::Tensor rotated = at::mm(rows, basis.axes().t());
  const at::Tensor lengths = rows.norm(2, 1).contiguous();
  const at::Tensor known = at::empty({rows.size(0), 1}, at::kFloat);
  for (std::size_t i = 0; i < count; ++i) {
    const RowLength narrow(double{lengths.const_data_ptr<float>()[i]});
    std::memcpy(message.data() + i * sizeof narrow.bits, &narrow.bits, sizeof narrow.bits);
    known.mutable_data_ptr<float>()[i] = narrow.value();
  }
  rotated.sub_(known * basis.mean_in_basis());
  gather(rotated.const_data_ptr<float>(), count, static_cast<std::size_t>(basis.dim()),
         classes_of(scales_of(basis)), nullptr);
  encode_nearest(EcsqOptions{.value = bits, .basis = BasisOptions{}}.rounding(),
                 message.subspan(count * sizeof(RowLength::bits)));
}

at::Tensor decode_rotated_rows(const SpectralBasis& basis, std::span<const std::byte> message,
                               std::int64_t rows) {
  const auto count = static_cast<std::size_t>(rows);
  const ColumnClasses classes = classes_of(scales_of(basis));
  decode_parts(message.subspan(count * sizeof(RowLength::bits)), count, classes);
  at::Tensor rotated = at::empty({rows, basis.dim()}, at::kFloat);
  scatter(rotated.mutable_data_ptr<float>(), count, static_cast<std::size_t>(basis.dim()), classes,
          nullptr);
  at::Tensor lengths = at::empty({rows, 1}, at::kFloat);
  for (std::size_t i = 0; i < count; ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, message.data() + i * sizeof bits, sizeof bits);
    lengths.mutable_data_ptr<float>()[i] = RowLength(bits).value();
  }
  rotated.add_(lengths * basis.mean_in_basis());
  return at::mm(rotated, basis.axes());
}

}  // namespace thinwire::moe
