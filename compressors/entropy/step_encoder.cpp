#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "thinwire/common/error.h"
#include "thinwire/compressors/entropy/part_zone.h"
#include "thinwire/compressors/entropy/rans.h"
#include "thinwire/compressors/entropy/step_coder.h"
#include "thinwire/compressors/entropy/step_search.h"

namespace thinwire::entropy {
namespace {

using Counts = std::array<std::uint32_t, kMaxSymbols>;

// So that the list of the excess, which may hold every element, grows with what it does hold.
constexpr std::size_t kQuantisedAtATime = std::size_t{1} << 16;

// Bits of symbols under the table of their own counts, and of the table.
FixedBits bits_of_table(const Counts& counts) {
  return bits_of_counts(
      counts.data(), [&](int symbol) { return n_log2_n(counts[static_cast<std::size_t>(symbol)]); },
      n_log2_n);
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

}  // namespace

std::size_t StepEncoder::total_of(std::span<const std::span<const float>> parts) {
  std::size_t numel = 0;
  for (const auto& part : parts) numel += part.size();
  return numel;
}

std::size_t StepEncoder::min_bytes(std::size_t parts) {
  return static_cast<std::size_t>(least_payload_bytes(parts));
}

Encoded StepEncoder::encode(std::span<const std::span<const float>> parts, const StepChoice& choice,
                            std::span<std::byte> out, StepCodes& codes) {
  const std::size_t least = min_bytes(parts.size());
  check(out.size() >= least, "a slot of ", out.size(), " bytes cannot hold ", parts.size(),
        " parts, which take ", least, " at least");
  StepSearch search(8 * static_cast<double>(out.size()), 8 * static_cast<double>(least),
                    total_of(parts), choice.fill);
  Encoded encoded;
  StepChoice tried = choice;
  zones_step_ = 0;
  const Sampled sampled = try_sample(parts, choice, out.size());
  tried.step =
      sampled.step == choice.step && choice.fill ? choice.begin * choice.step : sampled.step;
  for (int attempt = 0;; ++attempt) {
    if (attempt == kTries) tried.step = 0;
    choose_zones(parts, tried);
    const bool coded = quantise_parts(parts, tried, codes);
    if (coded) group_parts(codes);
    const double bits = coded ? price(codes, 1) : 0;
    if (attempt == 0) {
      const double more = tried.step == sampled.step
                              ? sampled.asked_more
                              : search.bits_between(choice.step, tried.step, bits);
      encoded.wanted_bits = std::max(0.0, bits + more);
    }
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

// False where the zones are those of a step nearby.
bool StepEncoder::choose_zones(std::span<const std::span<const float>> parts,
                               const StepChoice& choice) {
  const float step = choice.step;
  const bool usable = usable_step(step);
  const float inverse = usable ? 1.0f / step : 0.0f;
  if (usable && near_steps(step, zones_step_)) {
    for (DeadZone& zone : zones_) zone.inverse_step = inverse;
    return false;
  }
  zones_step_ = usable ? step : 0;
  zones_.assign(parts.size(), {.inverse_step = inverse, .rounding = choice.rounding});
  for (std::size_t p = 0; p < parts.size(); ++p) {
    if (parts[p].empty()) continue;
    DeadZone& zone = zones_[p];
    if (choice.rounding_by_part && usable) {
      zone.rounding = part_rounding(parts[p], step, choice.rounding);
    }
    if (mostly_small(parts[p], (2 - zone.rounding) * step)) zone.bound = kBoundOfPairs;
  }
  return true;
}

// False where the payload is without codes.
bool StepEncoder::quantise_parts(std::span<const std::span<const float>> parts,
                                 const StepChoice& choice, StepCodes& codes) {
  const std::size_t numel = total_of(parts);
  const bool usable = usable_step(choice.step);
  codes.step_ = usable ? choice.step : 0;
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
    const DeadZone& zone = zones_[p];
    const bool paired = zone.bound == kBoundOfPairs;
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

// Lists the excess, of which there is so many times what the codes hold. Returns the bits of the
// payload, about.
double StepEncoder::price(const StepCodes& codes, double excess_weight) {
  list_excess(codes);
  std::size_t symbols = 0;
  for (std::size_t p = 0; p < codes.parts_.size(); ++p) {
    if (codes.parts_[p].kind >= PartKind::kCodes) symbols += coded(codes, p).size();
  }
  const std::size_t bytes = min_bytes(codes.parts_.size()) +
                            sizeof(std::uint32_t) * static_cast<std::size_t>(lanes_for(symbols));
  FixedBits bits = kFixedByte * static_cast<FixedBits>(bytes);
  for (const Group& group : groups_) bits += group.bits;
  const FixedBits of_excess = bits_of_table(count_symbols(excess_symbols_)) +
                              kFixedByte * static_cast<FixedBits>(long_numbers_.size());
  return (static_cast<double>(bits) + excess_weight * static_cast<double>(of_excess)) / kFixedBit;
}

// Of the groups and of the excess.
void StepEncoder::make_tables() {
  // As many as there may be: their number changes from payload to payload.
  weights_.reserve(group_of_.size() + 1);
  tables_.reserve(group_of_.size() + 1);
  weights_.clear();
  tables_.clear();
  const auto add = [&](const SymbolWeights& weights) {
    weights_.push_back(weights);
    tables_.emplace_back(std::span<const std::uint8_t>(weights_.back()));
  };
  for (const Group& group : groups_) {
    add(group.model.last > 0 ? weights_of(group.model, group.pairs) : weights_of(group.counts));
  }
  if (!excess_symbols_.empty()) add(weights_of(count_symbols(excess_symbols_)));
}

StepEncoder::Group StepEncoder::priced(Group group) {
  const CountsPrice price = price_of(group.counts, group.pairs);
  group.bits = price.bits;
  group.model = price.model;
  return group;
}

// Parts that follow one another share a table, or a model, where that takes fewer bits.
void StepEncoder::group_parts(StepCodes& codes) {
  std::array<std::optional<std::size_t>, 2> last;  // of codes and of pairs
  groups_.clear();
  groups_.reserve(codes.parts_.size());
  group_of_.assign(codes.parts_.size(), 0);
  for (std::size_t p = 0; p < codes.parts_.size(); ++p) {
    StepCodes::Part& part = codes.parts_[p];
    if (part.kind < PartKind::kCodes) continue;
    const bool pairs = part.kind >= PartKind::kPairs;
    part.kind = pairs ? PartKind::kPairs : PartKind::kCodes;
    const Group alone = priced({.counts = counts_[p], .pairs = pairs});
    std::optional<std::size_t>& open = last[pairs ? 1 : 0];
    const Group together =
        open ? priced({.counts = groups_[*open].counts + counts_[p], .pairs = pairs}) : alone;
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

// The groups of other codes of the same parts, with these.
void StepEncoder::count_groups(const StepCodes& codes) {
  for (Group& group : groups_) group.counts = {};
  for (std::size_t p = 0; p < codes.parts_.size() && !groups_.empty(); ++p) {
    Group& group = groups_[group_of_[p]];
    const PartKind kind = codes.parts_[p].kind;
    if (kind < PartKind::kCodes || group.pairs != (kind >= PartKind::kPairs)) continue;
    group.counts = group.counts + counts_[p];
  }
  for (Group& group : groups_) group = priced(group);
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
    codes.parts_[p].centroids[c] = centroid_byte(group.count[from], group.fraction[from]);
  });
}

// Bytes of the payload; 0 where it does not fit.
std::size_t StepEncoder::write(StepCodes& codes, std::span<std::byte> out) {
  set_centroids(codes);
  make_tables();
  std::size_t symbols = 0, coded_parts = 0;
  for (std::size_t p = 0; p < codes.parts_.size(); ++p) {
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
