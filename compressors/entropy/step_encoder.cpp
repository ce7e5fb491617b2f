#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "thinwire/common/error.h"
#include "thinwire/compressors/entropy/rans.h"
#include "thinwire/compressors/entropy/step_coder.h"

namespace thinwire::entropy {
namespace {

using Counts = std::array<std::uint32_t, kMaxSymbols>;

constexpr std::size_t kHeaderBytes = sizeof(std::uint32_t) + sizeof(float);
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

// r of a part whose values of magnitude m − r and more become m. Rounding to zero instead of one
// costs (1 − 2 r) step² of squared error where it saves log2(2 p0 / p1) bits; of that rule's
// factor, 0.058 at high rates, half leaves less in residuals and loses nothing.
float rounding_of(std::span<const float> values, const StepChoice& choice) {
  constexpr double kOfABit = 0.03, kLeast = 0.05;
  const std::size_t sampled = std::min(values.size(), kSampled);
  const std::size_t stride = values.size() / sampled;
  const float one = (1 - choice.rounding) * choice.step, two = (2 - choice.rounding) * choice.step;
  int below_one = 0, below_two = 0;
  for (std::size_t i = 0; i < sampled; ++i) {
    const float magnitude = std::abs(values[i * stride]);
    below_one += magnitude < one ? 1 : 0;
    below_two += magnitude < two ? 1 : 0;
  }
  // Half an element more of each sort, so that none is missing.
  const double dear = std::log2((2.0 * below_one + 1) / (below_two - below_one + 0.5));
  return static_cast<float>(std::clamp(0.5 - kOfABit * dear, kLeast, 0.5));
}

// The steps that are tried for one payload.
class StepSearch {
 public:
  // Of a slot, and of what any payload takes of it, in bits.
  StepSearch(double slot, double least, std::size_t numel, bool fill)
      : slot_(slot), least_(least), numel_(static_cast<double>(numel)), fill_(fill) {}

  bool full(double bits) const { return bits >= kFull * slot_; }
  // Whether a payload that takes about so many bits is written rather than another one tried.
  bool takes(double bits) const {
    return bits <= 1.01 * slot_ && (!fill_ || full(bits) || finer_ == kMostFiner);
  }
  // Whether a step that fits is known, and a finer one is tried.
  bool refines() const { return fits_.step > 0; }

  // The step to try after one that takes so many bits, and leaves room or takes too many.
  float after(float step, double bits, bool leaves_room) {
    ++tries_;
    if (leaves_room) {
      fits_ = {step, bits};
    } else if (step == fits_.step) {  // the estimate was wrong
      fits_ = {};
      finer_ = kMostFiner;
    } else {
      over_ = {step, bits};
    }
    if (refines() && (finer_ == kMostFiner || bits == 0)) {
      finer_ = kMostFiner;
      return fits_.step;
    }
    if (refines()) ++finer_;
    const double aim = kAim * slot_;
    double octaves = 0;  // from `step`, or from that which fits
    if (refines() && over_.step > 0) {
      step = fits_.step;
      octaves = std::log2(double{over_.step} / step) *
                std::clamp((aim - fits_.bits) / (over_.bits - fits_.bits), 0.1, 0.9);
    } else {
      octaves = std::clamp((bits - aim) / bits_an_octave(bits), -2.0, 2.0);
    }
    // Where there are few elements almost nothing of what tables take: each try goes further.
    if (!refines()) octaves = std::max(octaves, kLeastOctaves + kMoreOctaves * (tries_ - 1));
    octaves = std::round(1024 * octaves) / 1024;  // the same on all hosts
    return step * static_cast<float>(std::exp2(octaves));
  }

 private:
  struct Try {
    float step = 0;
    double bits = 0;
  };
  // At high rates one a code, and not much less where many are just below the first multiple.
  double bits_an_octave(double bits) const {
    const double rate = std::max((bits - least_) / numel_, 1e-3);
    return numel_ * std::min(1.0, 2 * rate);
  }

  static constexpr double kFull = 0.985, kAim = 0.993, kLeastOctaves = 0.004;
  static constexpr double kMoreOctaves = 0.1;  // 28 in all tries
  static constexpr int kMostFiner = 3;
  double slot_, least_, numel_;
  bool fill_;
  Try fits_, over_;  // the finest that leaves room, and the last that takes too many bits
  int finer_ = 0, tries_ = 0;
};

constexpr double kModelBits = 8 * (sizeof(CodeModel) + 1);  // with the centroid

// Bits of symbols under the table of their own counts, and of the table.
double bits_of_table(const Counts& counts) {
  double total = 0, sum = 0;
  int last = 0;
  for (std::size_t s = 0; s < counts.size(); ++s) {
    if (counts[s] == 0) continue;
    total += counts[s];
    sum -= counts[s] * std::log2(counts[s]);
    last = static_cast<int>(s) + 1;
  }
  return total > 0 ? sum + total * std::log2(total) + 8.0 * (1 + last + kCentroids) : 0;
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

Encoded StepEncoder::encode(std::span<const std::span<const float>> parts, const StepChoice& choice,
                            std::span<std::byte> out, StepCodes& codes) {
  const std::size_t least = min_bytes(parts.size());
  check(out.size() >= least, "a slot of ", out.size(), " bytes cannot hold ", parts.size(),
        " parts, which take ", least, " at least");
  std::size_t numel = 0;
  for (const auto& part : parts) numel += part.size();
  StepSearch search(8 * static_cast<double>(out.size()), 8 * static_cast<double>(least), numel,
                    choice.fill);
  // In the last try nothing is sent.
  constexpr int kTries = 24;
  Encoded encoded;
  StepChoice tried = choice;
  for (int attempt = 0;; ++attempt) {
    if (attempt == kTries) tried.step = 0;
    const bool coded = quantise_parts(parts, tried, codes);
    const double bits = coded ? make_tables(codes) : 0;
    if (attempt == 0) encoded.wanted_bits = bits;
    const bool last = !coded && !search.refines();
    if (last || (coded && search.takes(bits))) {
      encoded.bytes = write(codes, out);
      if (encoded.bytes > 0) break;
      tried.step = search.after(tried.step, bits, false);
    } else {
      tried.step = search.after(tried.step, bits, coded && !search.full(bits));
    }
  }
  encoded.step = codes.step_;
  if (encoded.wanted_bits == 0) encoded.wanted_bits = 8 * static_cast<double>(encoded.bytes);
  std::ranges::fill(out.subspan(encoded.bytes), std::byte{0});
  codes.set_levels();
  return encoded;
}

// False where the payload is without codes.
bool StepEncoder::quantise_parts(std::span<const std::span<const float>> parts,
                                 const StepChoice& choice, StepCodes& codes) {
  const float step = choice.step;
  std::size_t numel = 0;
  for (const auto& part : parts) numel += part.size();
  const bool usable = step >= kSmallestStep && step <= kLargestStep;
  codes.step_ = usable ? step : 0;
  codes.parts_.assign(parts.size(), {});
  if (codes.symbols_.size() < numel) codes.symbols_.resize(numel);
  if (pairs_.size() < numel / 2 + parts.size() + 1) pairs_.resize(numel / 2 + parts.size() + 1);
  counts_.assign(parts.size(), {});
  fractions_.assign(parts.size(), {});
  // Steps of one payload after another differ, and their excess does: memory for what is usual.
  const std::size_t usual_excess = numel / 4 + 16;
  if (codes.excess_.size() < usual_excess) codes.excess_.resize(usual_excess);
  codes.beyond_.reserve(usual_excess + 16);
  excess_symbols_.reserve(usual_excess);
  DeadZone zone{.inverse_step = usable ? 1.0f / step : 0.0f, .rounding = choice.rounding};
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
    if (choice.rounding_by_part && usable) zone.rounding = rounding_of(parts[p], choice);
    const bool paired = mostly_small(parts[p], (2 - zone.rounding) * step);
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
    // Without fractions a centroid is the multiple.
    for (std::size_t c = 0; c < kCentroids && choice.reconstruct == Reconstruct::kMeanOfBin; ++c) {
      fractions_[p].count[c] = sums.count[c] - before.count[c];
      fractions_[p].fraction[c] = sums.fraction[c] - before.fraction[c];
    }
    part.excess = sums.excess - part.first_excess;
    if (!usable || (sums.count == before.count)) continue;  // all zero
    part.kind = paired ? PartKind::kPairs : PartKind::kCodes;
    if (paired) join_pairs(symbols, pairs_.data() + pairs_at(part.first, p));
    any = true;
    counts_[p] = count_symbols(coded(codes, p));
  }
  codes.excess_count_ = sums.excess;
  return any;
}

std::span<const std::uint8_t> StepEncoder::coded(const StepCodes& codes, std::size_t p) const {
  const StepCodes::Part& part = codes.parts_[p];
  if (part.kind < PartKind::kPairs) {
    return std::span(codes.symbols_).subspan(part.first, part.numel);
  }
  return std::span(pairs_).subspan(pairs_at(part.first, p), (part.numel + 1) / 2);
}

// Returns the bits of the payload, about.
double StepEncoder::make_tables(StepCodes& codes) {
  group_parts(codes);
  set_centroids(codes);
  list_excess(codes);
  // As many as there may be: their number changes from payload to payload.
  weights_.reserve(codes.parts_.size() + 1);
  tables_.reserve(codes.parts_.size() + 1);
  weights_.clear();
  tables_.clear();
  std::size_t symbols = 0;
  for (std::size_t p = 0; p < codes.parts_.size(); ++p) {
    if (codes.parts_[p].kind >= PartKind::kCodes) symbols += coded(codes, p).size();
  }
  double bits = 8.0 * static_cast<double>(min_bytes(codes.parts_.size()) + long_numbers_.size() +
                                          sizeof(std::uint32_t) *
                                              static_cast<std::size_t>(lanes_for(symbols)));
  const auto add = [&](const SymbolWeights& weights, const Counts& counts) {
    weights_.push_back(weights);
    tables_.emplace_back(std::span<const std::uint8_t>(weights_.back()));
    bits += tables_.back().bits(counts);
  };
  const auto table_bits = [&] {
    return 8.0 * static_cast<double>(1 + weights_in_use(weights_.back()));
  };
  for (const Group& group : groups_) {
    const bool modelled = group.model.last > 0;
    add(modelled ? weights_of(group.model, group.pairs) : weights_of(group.counts), group.counts);
    bits += modelled ? kModelBits : table_bits() + 8.0 * kCentroids;
  }
  if (!excess_symbols_.empty()) {
    const Counts counts = count_symbols(excess_symbols_);
    add(weights_of(counts), counts);
    bits += table_bits();
  }
  return bits;
}

// Parts that follow one another share a table, or a model, where that takes fewer bits.
void StepEncoder::group_parts(StepCodes& codes) {
  const auto cost = [](Group group) {
    const MagnitudeTotals totals = totals_of(group.counts, group.pairs);
    const double table = bits_of_table(group.counts), modelled = totals.bits() + kModelBits;
    group.bits = std::min(table, modelled);
    group.model = modelled < table ? totals.model() : CodeModel();
    return group;
  };
  std::array<std::optional<std::size_t>, 2> last;  // of codes and of pairs
  groups_.clear();
  groups_.reserve(codes.parts_.size());
  group_of_.assign(codes.parts_.size(), 0);
  for (std::size_t p = 0; p < codes.parts_.size(); ++p) {
    StepCodes::Part& part = codes.parts_[p];
    if (part.kind < PartKind::kCodes) continue;
    const bool pairs = part.kind >= PartKind::kPairs;
    part.kind = pairs ? PartKind::kPairs : PartKind::kCodes;
    const Group alone = cost({.counts = counts_[p], .pairs = pairs});
    std::optional<std::size_t>& open = last[pairs ? 1 : 0];
    const Group together =
        open ? cost({.counts = groups_[*open].counts + counts_[p], .pairs = pairs}) : alone;
    if (open && together.bits <= groups_[*open].bits + alone.bits) {
      groups_[*open] = together;
      part.kind = pairs ? PartKind::kPairsLastTable : PartKind::kCodesLastTable;
    } else {
      open = groups_.size();
      groups_.push_back(alone);
    }
    group_of_[p] = *open;
  }
  for (std::size_t p = 0; p < codes.parts_.size(); ++p) {
    PartKind& kind = codes.parts_[p].kind;
    if (groups_.empty() || groups_[group_of_[p]].model.last == 0) continue;
    if (kind == PartKind::kCodes) kind = PartKind::kModelledCodes;
    if (kind == PartKind::kPairs) kind = PartKind::kModelledPairs;
  }
}

// What a part adds to the excess, as symbols and as long numbers.
void StepEncoder::list_excess(const StepCodes& codes) {
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
}

void StepEncoder::set_centroids(StepCodes& codes) {
  const auto for_each_coded = [&](const auto& visit) {
    for (std::size_t p = 0; p < codes.parts_.size(); ++p) {
      if (codes.parts_[p].kind < PartKind::kCodes) continue;
      Group& group = groups_[group_of_[p]];
      for (std::size_t c = 0; c < kCentroids; ++c) {
        // A model has one for all.
        visit(p, c, group.fractions, group.model.last > 0 ? 0 : c);
      }
    }
  };
  for_each_coded([&](std::size_t p, std::size_t c, FractionSums& group, std::size_t to) {
    group.count[to] += fractions_[p].count[c];
    group.fraction[to] += fractions_[p].fraction[c];
  });
  for_each_coded([&](std::size_t p, std::size_t c, const FractionSums& group, std::size_t from) {
    codes.parts_[p].centroids[c] = centroid_of(group.count[from], group.fraction[from]);
  });
}

// Bytes of the payload; 0 where it does not fit.
std::size_t StepEncoder::write(StepCodes& codes, std::span<std::byte> out) {
  std::size_t symbols = 0, numel = 0, coded_parts = 0;
  for (std::size_t p = 0; p < codes.parts_.size(); ++p) {
    numel += codes.parts_[p].numel;
    if (codes.parts_[p].kind < PartKind::kCodes) continue;
    symbols += coded(codes, p).size();
    ++coded_parts;
  }
  // A word a symbol is more than any stream takes, and whole vectors can be stored to the end. Room
  // for all elements, though fewer may be coded, and so many tables: the payloads of a slice then
  // find the memory of the last one.
  const std::size_t tables = codes.parts_.size() + 1;
  const std::size_t most = min_bytes(codes.parts_.size()) +
                           tables * (1 + kMaxSymbols + kCentroids) + long_numbers_.size() +
                           2 * (symbols + excess_symbols_.size()) + 4 * kMaxLanes + 1024;
  if (scratch_.size() < most) scratch_.resize(most);
  Writer writer(scratch_.data());
  writer.put(std::uint32_t{0});
  writer.put(codes.step_);
  for (std::size_t p = 0; p < codes.parts_.size(); ++p) {
    const PartKind kind = codes.parts_[p].kind;
    writer.put(static_cast<std::uint8_t>(kind));
    const auto centroids = std::span<const std::uint8_t>(codes.parts_[p].centroids);
    if (kind == PartKind::kCodes || kind == PartKind::kPairs) {
      writer.put_table(weights_[group_of_[p]]);
      writer.put(centroids);
    } else if (kind == PartKind::kModelledCodes || kind == PartKind::kModelledPairs) {
      writer.put(groups_[group_of_[p]].model);
      writer.put(centroids.first(1));
    }
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
      fits = stream.encode(tables_[group_of_[p]], coded(codes, p));
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
