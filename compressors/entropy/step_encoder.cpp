#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "thinwire/common/error.h"
#include "thinwire/compressors/entropy/rans.h"
#include "thinwire/compressors/entropy/step_coder.h"

namespace thinwire::entropy {
namespace {

using Counts = std::array<std::uint32_t, kMaxSymbols>;

constexpr std::size_t kHeaderBytes = sizeof(std::uint32_t) + sizeof(float) + kCentroids;
// Steps beyond these have no inverse, or no multiples.
constexpr float kSmallestStep = 1e-30f, kLargestStep = 1e30f;
// So that the list of the excess, which may hold every element, grows with what it does hold.
constexpr std::size_t kQuantisedAtATime = std::size_t{1} << 16;
constexpr std::size_t kSampled = 256;
// Pairs of codes take half the time of single ones and more bytes where many elements are beyond
// their bound; and their table pays from a few hundred pairs on.
constexpr std::size_t kFewestForPairs = 2048;
constexpr double kMostBeyondPairs = 0.02;

bool mostly_small(std::span<const float> values, float limit) {
  if (values.size() < kFewestForPairs) return false;
  std::size_t large = 0;
  const std::size_t stride = values.size() / kSampled;
  for (std::size_t i = 0; i < kSampled; ++i) {
    large += std::abs(values[i * stride]) >= limit ? 1 : 0;
  }
  return static_cast<double>(large) <= kMostBeyondPairs * static_cast<double>(kSampled);
}

// Bits of symbols under the table of their own counts, and of the table.
double bits_alone(const Counts& counts) {
  double total = 0, sum = 0;
  int last = 0;
  for (std::size_t s = 0; s < counts.size(); ++s) {
    if (counts[s] == 0) continue;
    total += counts[s];
    sum -= counts[s] * std::log2(counts[s]);
    last = static_cast<int>(s) + 1;
  }
  return total > 0 ? sum + total * std::log2(total) + 8 * (1 + last) : 0;
}

Counts operator+(Counts a, const Counts& b) {
  for (std::size_t s = 0; s < a.size(); ++s) a[s] += b[s];
  return a;
}

std::size_t weights_in_use(const SymbolWeights& weights) {
  std::size_t used = weights.size();
  while (used > 0 && weights[used - 1] == 0) --used;
  return used;
}

class Writer {
 public:
  explicit Writer(std::byte* out) : begin_(out), at_(out) {}
  template <typename T>
  void put(T value) {
    std::memcpy(at_, &value, sizeof value);
    at_ += sizeof value;
  }
  void put(std::span<const std::uint8_t> bytes) {
    std::ranges::copy(std::as_bytes(bytes), at_);
    at_ += bytes.size();
  }
  void put_table(const SymbolWeights& weights) {
    const std::size_t used = weights_in_use(weights);
    put(static_cast<std::uint8_t>(used));
    put(std::span(weights).first(used));
  }
  std::size_t size() const { return static_cast<std::size_t>(at_ - begin_); }

 private:
  std::byte* begin_;
  std::byte* at_;
};

// Where the pairs of the part of that index begin, whose codes begin at `first`: every part before
// it may have an odd code.
std::size_t pairs_at(std::size_t first, std::size_t part) {
  return (first + part) / 2;
}

// The byte of a centroid at the multiple itself.
constexpr std::uint8_t kNoCentroid = 128;

std::uint8_t centroid_of(std::int64_t count, std::int64_t fraction) {
  if (count == 0) return kNoCentroid;
  return static_cast<std::uint8_t>(
      std::clamp<std::int64_t>(kNoCentroid + fraction / count, 0, 255));
}

}  // namespace

std::size_t StepEncoder::min_bytes(std::size_t parts) {
  return kHeaderBytes + parts + 1 + 2 * sizeof(std::uint32_t);
}

Encoded StepEncoder::encode(std::span<const std::span<const float>> parts, float step,
                            float rounding, std::span<std::byte> out, StepCodes& codes,
                            Reconstruct reconstruct) {
  check(out.size() >= min_bytes(parts.size()), "a slot of ", out.size(), " bytes cannot hold ",
        parts.size(), " parts, which take ", min_bytes(parts.size()), " at least");
  // Each try shrinks the payload; in the last one nothing is sent.
  constexpr int kTries = 24;
  constexpr float kMoreGrowth = 1.07f;  // 27 octaves in all tries
  float least_growth = 1;
  Encoded encoded;
  for (int attempt = 0;; ++attempt) {
    if (attempt == kTries) step = 0;
    const bool coded = quantise_parts(parts, step, rounding, reconstruct, codes);
    const double bits = coded ? make_tables(codes) : 0;
    if (attempt == 0) encoded.wanted_bits = bits;
    const double over = bits / (8 * static_cast<double>(out.size()));
    if (over <= 1.01) {
      encoded.bytes = write(codes, out);
      if (encoded.bytes > 0) break;
    }
    // An octave takes a bit an element at high rates and about half of the bits at low ones; where
    // there are few elements, almost nothing of what tables take: each try goes further.
    step *= std::max(static_cast<float>(std::clamp(over, 1.0625, 2.0)), least_growth);
    least_growth *= kMoreGrowth;
  }
  encoded.step = codes.step_;
  if (encoded.wanted_bits == 0) encoded.wanted_bits = 8 * static_cast<double>(encoded.bytes);
  std::ranges::fill(out.subspan(encoded.bytes), std::byte{0});
  codes.set_levels();
  return encoded;
}

// False where the payload is without codes.
bool StepEncoder::quantise_parts(std::span<const std::span<const float>> parts, float step,
                                 float rounding, Reconstruct reconstruct, StepCodes& codes) {
  std::size_t numel = 0;
  for (const auto& part : parts) numel += part.size();
  const bool usable = step >= kSmallestStep && step <= kLargestStep;
  codes.step_ = usable ? step : 0;
  codes.parts_.assign(parts.size(), {});
  if (codes.symbols_.size() < numel) codes.symbols_.resize(numel);
  if (pairs_.size() < numel / 2 + parts.size() + 1) pairs_.resize(numel / 2 + parts.size() + 1);
  counts_.assign(parts.size(), {});
  DeadZone zone{.inverse_step = usable ? 1.0f / step : 0.0f, .rounding = rounding};
  QuantisedSums sums;
  std::size_t first = 0;
  bool any = false;
  for (std::size_t p = 0; p < parts.size(); ++p) {
    StepCodes::Part& part = codes.parts_[p];
    part.first = first;
    part.numel = parts[p].size();
    part.first_excess = sums.excess;
    first += part.numel;
    if (part.numel == 0) continue;
    const bool paired = mostly_small(parts[p], (2 - rounding) * step);
    zone.bound = paired ? 2 : 15;
    const QuantisedSums before = sums;
    const auto symbols = std::span(codes.symbols_).subspan(part.first, part.numel);
    for (std::size_t at = 0; at < part.numel; at += kQuantisedAtATime) {
      const std::size_t count = std::min(kQuantisedAtATime, part.numel - at);
      if (codes.excess_.size() < sums.excess + count + 16) {
        codes.excess_.resize(2 * sums.excess + count + 16);
      }
      quantise(parts[p].subspan(at, count), zone, symbols.data() + at, codes.excess_.data(), sums);
    }
    if (!sums.finite) {
      sums = before;
      part.kind = PartKind::kNotFinite;
      continue;
    }
    part.excess = sums.excess - part.first_excess;
    if (!usable || (sums.count == before.count)) continue;  // all zero
    part.kind = paired ? PartKind::kPairs : PartKind::kCodes;
    if (paired) join_pairs(symbols, pairs_.data() + pairs_at(part.first, p));
    any = true;
    counts_[p] = count_symbols(coded(codes, p));
  }
  codes.excess_count_ = sums.excess;
  for (std::size_t c = 0; c < kCentroids; ++c) {
    const bool measured = reconstruct == Reconstruct::kMeanOfBin;
    codes.centroids_[c] = measured ? centroid_of(sums.count[c], sums.fraction[c]) : kNoCentroid;
  }
  return any;
}

std::span<const std::uint8_t> StepEncoder::coded(const StepCodes& codes, std::size_t p) const {
  const StepCodes::Part& part = codes.parts_[p];
  if (part.kind < PartKind::kPairs) {
    return std::span(codes.symbols_).subspan(part.first, part.numel);
  }
  return std::span(pairs_).subspan(pairs_at(part.first, p), (part.numel + 1) / 2);
}

// Parts that follow one another share a table where that takes fewer bits. Returns those of the
// payload, about.
double StepEncoder::make_tables(StepCodes& codes) {
  struct Open {
    bool any = false;
    std::size_t group = 0;
    Counts counts{};
    double bits = 0;
  };
  std::array<Open, 2> open;  // of codes and of pairs
  auto& merged = merged_counts_;
  merged.clear();
  merged.reserve(codes.parts_.size() + 1);
  group_.assign(codes.parts_.size(), 0);
  std::size_t symbols = 0;
  for (std::size_t p = 0; p < codes.parts_.size(); ++p) {
    StepCodes::Part& part = codes.parts_[p];
    if (part.kind < PartKind::kCodes) continue;
    const bool paired = part.kind >= PartKind::kPairs;
    Open& last = open[paired ? 1 : 0];
    symbols += coded(codes, p).size();
    const double alone = bits_alone(counts_[p]);
    const Counts both = last.any ? last.counts + counts_[p] : counts_[p];
    const double together = last.any ? bits_alone(both) : std::numeric_limits<double>::infinity();
    if (together <= last.bits + alone) {
      part.kind = paired ? PartKind::kPairsLastTable : PartKind::kCodesLastTable;
      last.counts = both;
      last.bits = together;
      merged[last.group] = both;
    } else {
      last = {true, merged.size(), counts_[p], alone};
      merged.push_back(counts_[p]);
    }
    group_[p] = last.group;
  }
  excess_symbols_.clear();
  long_numbers_.clear();
  for (const std::uint32_t number : std::span(codes.excess_).first(codes.excess_count_)) {
    excess_symbols_.push_back(static_cast<std::uint8_t>(std::min(number, kLongNumber)));
    if (number < kLongNumber) continue;
    std::uint32_t rest = number - kLongNumber;
    for (; rest >= 128; rest >>= 7) {
      long_numbers_.push_back(static_cast<std::uint8_t>((rest & 127) | 128));
    }
    long_numbers_.push_back(static_cast<std::uint8_t>(rest));
  }
  if (!excess_symbols_.empty()) merged.push_back(count_symbols(excess_symbols_));

  // As many as there may be: their number changes from payload to payload.
  weights_.reserve(codes.parts_.size() + 1);
  tables_.reserve(codes.parts_.size() + 1);
  weights_.clear();
  tables_.clear();
  double bits = 8.0 * static_cast<double>(min_bytes(codes.parts_.size()) + long_numbers_.size() +
                                          sizeof(std::uint32_t) *
                                              static_cast<std::size_t>(lanes_for(symbols)));
  for (const Counts& counts : merged) {
    weights_.push_back(weights_of(counts));
    tables_.emplace_back(std::span<const std::uint8_t>(weights_.back()));
    bits += tables_.back().bits(counts) +
            8.0 * static_cast<double>(1 + weights_in_use(weights_.back()));
  }
  return bits;
}

// Bytes of the payload; 0 where it does not fit.
std::size_t StepEncoder::write(StepCodes& codes, std::span<std::byte> out) {
  std::size_t symbols = 0, coded_parts = 0;
  for (std::size_t p = 0; p < codes.parts_.size(); ++p) {
    if (codes.parts_[p].kind < PartKind::kCodes) continue;
    symbols += coded(codes, p).size();
    ++coded_parts;
  }
  // A word a symbol is more than any stream takes, and whole vectors can be stored to the end.
  const std::size_t tables = coded_parts + 1;
  const std::size_t most = min_bytes(codes.parts_.size()) + tables * (1 + kMaxSymbols) +
                           long_numbers_.size() + 2 * (symbols + excess_symbols_.size()) +
                           4 * kMaxLanes + 1024;
  if (scratch_.size() < most) scratch_.resize(most);
  Writer writer(scratch_.data());
  writer.put(std::uint32_t{0});
  writer.put(codes.step_);
  writer.put(std::span<const std::uint8_t>(codes.centroids_));
  for (std::size_t p = 0; p < codes.parts_.size(); ++p) {
    const PartKind kind = codes.parts_[p].kind;
    writer.put(static_cast<std::uint8_t>(kind));
    if (kind == PartKind::kCodes || kind == PartKind::kPairs) writer.put_table(weights_[group_[p]]);
  }
  if (excess_symbols_.empty() || coded_parts == 0) {
    writer.put(std::uint8_t{0});
  } else {
    writer.put_table(weights_.back());
    writer.put(static_cast<std::uint32_t>(long_numbers_.size()));
    writer.put(std::span<const std::uint8_t>(long_numbers_));
  }
  std::size_t size = writer.size();
  if (coded_parts > 0) {
    RansEncoder stream{std::span(scratch_).subspan(size), lanes_for(symbols)};
    bool fits = excess_symbols_.empty() || stream.encode(tables_.back(), excess_symbols_);
    for (std::size_t p = codes.parts_.size(); p-- > 0 && fits;) {
      if (codes.parts_[p].kind < PartKind::kCodes) continue;
      fits = stream.encode(tables_[group_[p]], coded(codes, p));
    }
    const std::size_t bytes = stream.finish();
    THINWIRE_ASSERT(fits && bytes > 0);
    size += bytes;
  }
  if (size > out.size()) return 0;
  const auto size32 = static_cast<std::uint32_t>(size);
  std::memcpy(scratch_.data(), &size32, sizeof size32);
  std::memcpy(out.data(), scratch_.data(), size);
  return size;
}

}  // namespace thinwire::entropy
