// Runs of float32 values quantised with one step and entropy-coded into one payload.
//
// Terms: a *part* is a run of values that is a class of its own for the entropy coder (a layer, or
// what one rank owns of it); a *slot* is room of an agreed size for one payload, whose end stays
// zero where the payload is shorter. What would not fit its slot is coded with a coarser step, so
// that a receiver knows the size of a message before it comes.
//
// Payload, little-endian:
//
//   u32 bytes of the payload · f32 step
//   for each part, 1 byte:
//     0  all values are zero                  1  a value was not finite: all decode to NaN
//     2  codes, under the table that follows  5  pairs of codes, table follows
//     3  codes, under the model that follows  6  pairs of codes, model follows
//     4  codes, under the last of either      7  pairs of codes, last of either
//     a table is its number of weights, 1 byte, the weights, of which the last one is not 0, and 3
//     bytes of centroids, (byte − 128) / 256 each; a model (code_model.h) zeros, decay and last, 1
//     byte each, and one of a centroid for all; the table of the excess is without centroids
//   the table of the excess, or one byte 0 where there is none
//   u32 bytes of long numbers, only with a table of the excess · the long numbers
//   stream (rans.h): the symbols of the parts in order, then those of the excess
//
// Codes are the symbols of dead_zone.h with a bound of 15 (kinds 2 to 4) or 2 (pairs). The excess,
// m − bound of the elements at the bound, in order of the parts, is a symbol each: itself below 31;
// symbol 31 stands for a long number, the rest above 31 in groups of seven bits, low ones first,
// with the high bit set in all but the last.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "thinwire/compressors/entropy/code_model.h"
#include "thinwire/compressors/entropy/dead_zone.h"
#include "thinwire/compressors/entropy/fixed_log.h"
#include "thinwire/compressors/entropy/symbol_table.h"

namespace thinwire::entropy {

// The symbol of the excess that stands for a long number.
inline constexpr std::uint32_t kLongNumber = kMaxSymbols - 1;

enum class PartKind : std::uint8_t {
  kZero = 0,
  kNotFinite = 1,
  kCodes = 2,
  kModelledCodes = 3,
  kCodesLastTable = 4,
  kPairs = 5,
  kModelledPairs = 6,
  kPairsLastTable = 7
};

// The codes of one payload, as they were written or read. Keeps its memory from call to call.
class StepCodes {
 public:
  // values (+)(−)= what the payload says of a part, of its number of elements.
  void apply(std::size_t part, Apply apply, std::span<float> values) const;
  std::size_t parts() const { return parts_.size(); }
  float step() const { return step_; }

 private:
  friend class StepEncoder;
  friend class StepDecoder;
  struct Part {
    PartKind kind = PartKind::kZero;
    std::array<std::uint8_t, kCentroids> centroids{};
    std::size_t first = 0, numel = 0;  // in symbols_
    std::size_t first_excess = 0, excess = 0;
    int bound() const { return kind >= PartKind::kPairs ? 2 : 15; }
  };
  void set_levels();

  float step_ = 0;
  std::vector<Part> parts_;
  std::vector<std::uint8_t> symbols_;  // one an element
  std::vector<std::uint32_t> excess_;  // of which the first excess_count_ are in use
  std::size_t excess_count_ = 0;
  std::vector<float> beyond_;  // what the excess stands for
};

// What stands for the values of a bin: their mean, or the multiple of the step. Values that noise
// was added to, so that rounding is right on average, must have the latter.
enum class Reconstruct { kMeanOfBin, kMultiple };

// How values become codes.
struct StepChoice {
  float step = 1;
  float rounding = 0.5f;
  Reconstruct reconstruct = Reconstruct::kMeanOfBin;
  // Each part's rounding follows from how many of its values `rounding` makes zero: what many zeros
  // make dear is rounded to more rarely.
  bool rounding_by_part = false;
  // Where the payload would leave a slot partly empty the step is finer. The slot is paid for.
  bool fill = false;
  // What is tried first then, times the step: for who knows what the last payload of its sort took.
  float begin = 1;
};

struct Encoded {
  std::size_t bytes = 0;  // of the payload
  float step = 0;         // that was used
  // Bits that the payload would have taken with the step that was asked for; within a per cent or
  // so where a sample said that another one fills the slot.
  double wanted_bits = 0;
};

// A part's runs in a sample of a payload (step_search.h) are a period of so many runs apart, of
// which one is sampled; of each element of the sample stand so many for.
std::size_t sample_period(std::size_t numel);
std::size_t sampled_runs(std::size_t part, std::size_t period);
inline double sample_weight(std::size_t part, std::size_t sampled) {
  return static_cast<double>(part) / static_cast<double>(sampled > 0 ? sampled : 1);
}

// Encodes payloads. One instance serves one thread at a time and allocates nothing once warm.
class StepEncoder {
 public:
  // Encodes the parts as chosen, but with a coarser step where that does not fit `out`; with none
  // at all, every value being zero, where the step is 0 or so small that it has no inverse. `out`
  // holds at least min_bytes(). `codes` is what was written.
  Encoded encode(std::span<const std::span<const float>> parts, const StepChoice& choice,
                 std::span<std::byte> out, StepCodes& codes);

  // Whether a payload of so many values that is to fill its slot gets its step by a sample of them.
  static bool samples(std::size_t numel, std::size_t parts);

  // What a payload of so many parts takes at least.
  static std::size_t min_bytes(std::size_t parts);

 private:
  // Of the centroids of a part, or of all parts with one table.
  struct FractionSums {
    std::array<std::int64_t, kCentroids> count{}, fraction{};
  };
  static std::size_t total_of(std::span<const std::span<const float>> parts);
  // What a sample of the values says: the step to try first, and how many bits more the one that
  // was asked for would have taken.
  struct Sampled {
    float step = 0;
    double asked_more = 0;
  };
  Sampled try_sample(std::span<const std::span<const float>> parts, const StepChoice& choice,
                     std::size_t slot);
  void take_sample(std::span<const std::span<const float>> parts, std::size_t numel);
  bool choose_zones(std::span<const std::span<const float>> parts, const StepChoice& choice);
  bool quantise_parts(std::span<const std::span<const float>> parts, const StepChoice& choice,
                      StepCodes& codes);
  double price(const StepCodes& codes, double excess_weight);
  void count_groups(const StepCodes& codes);
  void group_parts(StepCodes& codes);
  void list_excess(const StepCodes& codes);
  void set_centroids(StepCodes& codes);
  void make_tables();
  std::size_t write(StepCodes& codes, std::span<std::byte> out);
  std::span<const std::uint8_t> coded(const StepCodes& codes, std::size_t part) const;

  std::vector<DeadZone> zones_;      // of each part
  float zones_step_ = 0;             // that these were chosen for; 0: none
  std::vector<std::uint8_t> pairs_;  // at half the place of the symbols
  // Parts with one table.
  struct Group {
    std::array<std::uint32_t, kMaxSymbols> counts{};
    bool pairs = false;
    FixedBits bits = 0;  // about, with the table
    CodeModel model{};   // in place of a table where `last` is not 0
    FractionSums fractions{};
  };
  static Group priced(Group group);
  std::vector<std::array<std::uint32_t, kMaxSymbols>> counts_;  // of each part
  std::vector<FractionSums> fractions_;                         // of each part
  std::vector<std::size_t> group_of_;                           // of each part
  std::vector<Group> groups_;
  std::vector<SymbolWeights> weights_;  // of each group, then of the excess
  std::vector<SymbolTable> tables_;
  std::vector<std::uint8_t> excess_symbols_, long_numbers_;
  std::vector<std::byte> scratch_;
  struct Sample {
    std::vector<float> values;
    std::vector<std::span<const float>> parts;
    std::vector<double> weights;  // elements that one of the part's stands for
    StepCodes codes;
  };
  Sample sample_;
};

// Decodes payloads; otherwise as StepEncoder.
class StepDecoder {
 public:
  // Reads the payload at the beginning of `in`, whose rest must be zeros. `sizes` are the elements
  // of the parts. Throws FrameError for anything that encode() cannot have written; never reads or
  // writes out of bounds, whatever the bytes.
  void decode(std::span<const std::byte> in, std::span<const std::size_t> sizes, StepCodes& codes);

  // What the payload at the beginning of `in` says of its size. Throws FrameError where there is no
  // room for that.
  static std::size_t payload_bytes(std::span<const std::byte> in);

 private:
  std::vector<std::uint8_t> pairs_, excess_symbols_;
  std::vector<SymbolTable> tables_;
  std::vector<std::size_t> table_of_part_;
};

}  // namespace thinwire::entropy
