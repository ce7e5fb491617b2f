#include "thinwire/compressors/allocation/curve_errors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <map>

#include "thinwire/common/error.h"

namespace thinwire::lgreco {
namespace {

// Bins of magnitude are the exponent and the first five bits of the mantissa. The sums of
// 8,192 of them fit in a second-level cache; a bin holds a few per cent of a layer at most.
constexpr int kBinShift = 18;
constexpr std::size_t kBins = std::size_t{1} << (31 - kBinShift);

std::uint32_t magnitude_bits(float x) {
  return std::bit_cast<std::uint32_t>(x) & 0x7FFFFFFFu;
}
double square(float x) {
  return static_cast<double>(x) * x;
}

// Sums over a set of entries.
struct Sums {
  std::int64_t count = 0;
  double magnitude = 0;
  double energy = 0;
  double rounding = 0;  // squared error of storing the entries

  void add(float x, ValueType values) {
    ++count;
    magnitude += std::abs(static_cast<double>(x));
    energy += square(x);
    if (values != ValueType::kFloat32) rounding += square(x - stored(x, values));
  }
  void add(const Sums& other) {
    count += other.count;
    magnitude += other.magnitude;
    energy += other.energy;
    rounding += other.rounding;
  }
};

SelectionErrors errors_of(const Sums& dropped, const Sums& kept) {
  SelectionErrors errors{dropped.energy + kept.rounding, dropped.energy};
  if (kept.count > 0) {
    // The scale travels as float32.
    const double scale = static_cast<float>(kept.magnitude / static_cast<double>(kept.count));
    const double rest =
        kept.energy + scale * (scale * static_cast<double>(kept.count) - 2 * kept.magnitude);
    errors.ternary += std::max(rest, 0.0);
  }
  return errors;
}

// Elements that all codecs see before the next ones are read from memory.
constexpr std::int64_t kPiece = 16384;

double difference(std::span<const float> a, std::span<const float> b) {
  std::array<double, 4> sum{};
  std::size_t i = 0;
  for (; i + 4 <= a.size(); i += 4) {
    for (std::size_t q = 0; q < 4; ++q) {
      const double d = static_cast<double>(a[i + q]) - b[i + q];
      sum[q] += d * d;
    }
  }
  for (; i < a.size(); ++i) {
    const double d = static_cast<double>(a[i]) - b[i];
    sum[0] += d * d;
  }
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

}  // namespace

std::vector<SelectionErrors> selection_squared_errors(std::span<const float> gradient,
                                                      std::span<const std::int64_t> counts,
                                                      ValueType values) {
  std::vector<Sums> bins(kBins);
  for (float x : gradient) bins[magnitude_bits(x) >> kBinShift].add(x, values);
  check(std::all_of(bins.begin() + (0x7F800000u >> kBinShift), bins.end(),
                    [](const Sums& bin) { return bin.count == 0; }),
        "the gradient holds NaN or infinity");

  // All bins below `bin` are dropped, and of `bin` itself all but `kept` entries, unless that is 0:
  // then the cut lies between two bins.
  struct Cut {
    std::size_t bin = kBins;
    std::int64_t kept = 0;
  };
  std::vector<Cut> cuts;
  std::map<std::size_t, std::vector<std::uint32_t>> members;  // magnitudes in the bins of cuts
  std::vector<bool> wanted(kBins, false);
  for (std::int64_t count : counts) {
    Cut cut;
    std::int64_t left = std::max<std::int64_t>(count, 0);
    while (cut.bin > 0 && bins[cut.bin - 1].count <= left) left -= bins[--cut.bin].count;
    if (cut.bin > 0 && left > 0) {
      cut.kept = left;
      wanted[--cut.bin] = true;
    }
    cuts.push_back(cut);
  }
  for (float x : gradient) {
    const std::uint32_t bits = magnitude_bits(x);
    if (wanted[bits >> kBinShift]) members[bits >> kBinShift].push_back(bits);
  }
  // Non-negative floats are ordered as their bits.
  for (auto& [bin, bits] : members) std::sort(bits.begin(), bits.end());

  // Sums over all bins below each, and over all from each on.
  std::vector<Sums> below(kBins + 1), from(kBins + 1);
  for (std::size_t b = 0; b < kBins; ++b) {
    below[b + 1] = below[b];
    below[b + 1].add(bins[b]);
  }
  for (std::size_t b = kBins; b-- > 0;) {
    from[b] = from[b + 1];
    from[b].add(bins[b]);
  }
  std::vector<SelectionErrors> errors;
  for (const Cut& cut : cuts) {
    Sums dropped = below[cut.bin];
    Sums kept = from[cut.kept > 0 ? cut.bin + 1 : cut.bin];
    if (cut.kept > 0) {
      const auto& bits = members[cut.bin];
      const auto out = bits.size() - static_cast<std::size_t>(cut.kept);
      for (std::size_t i = 0; i < bits.size(); ++i) {
        (i < out ? dropped : kept).add(std::bit_cast<float>(bits[i]), values);
      }
    }
    errors.push_back(errors_of(dropped, kept));
  }
  return errors;
}

std::vector<double> measured_squared_errors(std::span<const float> gradient,
                                            std::span<const CodecPtr> codecs) {
  const auto numel = static_cast<std::int64_t>(gradient.size());
  std::vector<double> errors(codecs.size(), 0);
  // Pieces must be cut at multiples of every codec's block.
  std::vector<std::int64_t> pieces;
  std::size_t payload = 0;
  std::int64_t largest = 0;
  for (const CodecPtr& codec : codecs) {
    const std::int64_t block = codec->block_size();
    const std::int64_t piece =
        block == 0 ? numel : std::min(numel, (kPiece + block - 1) / block * block);
    pieces.push_back(std::max<std::int64_t>(piece, 1));
    largest = std::max(largest, pieces.back());
    payload = std::max(payload, codec->max_compressed_bytes(pieces.back(), DType::kFloat32));
  }
  std::vector<std::byte> bytes(payload);
  std::vector<float> decoded(static_cast<std::size_t>(largest));
  std::vector<std::int64_t> done(codecs.size(), 0);
  // Codecs with equal pieces stay side by side; one with larger pieces takes them less often.
  for (std::int64_t reached = 0; reached < numel; reached += kPiece) {
    for (std::size_t c = 0; c < codecs.size(); ++c) {
      while (done[c] < std::min(numel, reached + kPiece)) {
        const std::int64_t size = std::min(pieces[c], numel - done[c]);
        const auto input =
            gradient.subspan(static_cast<std::size_t>(done[c]), static_cast<std::size_t>(size));
        const std::span<float> output(decoded.data(), static_cast<std::size_t>(size));
        RandomKey key;
        key.first_element = static_cast<std::uint64_t>(done[c]);
        const std::size_t written = codecs[c]->compress(view_of(input), key, bytes);
        codecs[c]->decompress(std::span(bytes).first(written), key, view_of(output),
                              WriteMode::kAssign);
        errors[c] += difference(input, output);
        done[c] += size;
      }
    }
  }
  return errors;
}

}  // namespace thinwire::lgreco
