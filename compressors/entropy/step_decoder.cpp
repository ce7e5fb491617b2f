#include <algorithm>
#include <cmath>
#include <cstring>

#include "thinwire/common/error.h"
#include "thinwire/compressors/entropy/rans.h"
#include "thinwire/compressors/entropy/step_coder.h"

namespace thinwire::entropy {
namespace {

[[noreturn]] void refuse(std::string_view what) {
  throw FrameError(concat("ecsq payload: ", what));
}

class Reader {
 public:
  explicit Reader(std::span<const std::byte> in) : in_(in) {}
  template <typename T>
  T get() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  std::span<const std::byte> take(std::size_t bytes) {
    if (bytes > in_.size()) refuse("it ends too early");
    const auto taken = in_.first(bytes);
    in_ = in_.subspan(bytes);
    return taken;
  }
  // A table of `used` weights.
  SymbolTable table(std::size_t used, std::size_t most) {
    if (used == 0 || used > most) {
      refuse(concat("a table has ", used, " weights, expected 1 to ", most));
    }
    SymbolWeights weights{};
    std::memcpy(weights.data(), take(used).data(), used);
    if (weights[used - 1] == 0) refuse("a table ends with a weight of zero");
    return SymbolTable(std::span(weights).first(used));
  }
  SymbolTable modelled_table(bool pairs) {
    const auto model = get<CodeModel>();
    if (model.zeros == 0 || model.decay == 0 || model.last == 0 || model.last > (pairs ? 2 : 15)) {
      refuse(concat("a model has odds of ", +model.zeros, " and ", +model.decay, " up to ",
                    +model.last));
    }
    const SymbolWeights weights = weights_of(model, pairs);
    return SymbolTable(weights);
  }
  std::span<const std::byte> rest() { return in_; }

 private:
  std::span<const std::byte> in_;
};

std::uint32_t long_number(Reader& in) {
  std::uint64_t number = 0;
  for (int shift = 0;; shift += 7) {
    const auto byte = in.get<std::uint8_t>();
    number |= std::uint64_t{byte & 127u} << shift;
    if ((byte & 128) == 0) {
      if (byte == 0 && shift > 0) refuse("a long number is longer than it has to be");
      break;
    }
    if (shift > 21) refuse("a long number is too long");
  }
  number += kLongNumber;
  if (number > static_cast<std::uint64_t>(kLargestMagnitude)) refuse("a number is too large");
  return static_cast<std::uint32_t>(number);
}

}  // namespace

std::size_t StepDecoder::payload_bytes(std::span<const std::byte> in) {
  return Reader(in).get<std::uint32_t>();
}

void StepDecoder::decode(std::span<const std::byte> slot, std::span<const std::size_t> sizes,
                         StepCodes& codes) {
  const std::size_t bytes = payload_bytes(slot);
  if (bytes > slot.size() || bytes < sizeof(std::uint32_t)) {
    refuse(concat("it has ", slot.size(), " bytes and says ", bytes));
  }
  if (std::ranges::any_of(slot.subspan(bytes), [](std::byte b) { return b != std::byte{0}; })) {
    refuse("what follows it is not zero");
  }
  Reader in(slot.first(bytes).subspan(sizeof(std::uint32_t)));
  codes.step_ = in.get<float>();
  codes.parts_.assign(sizes.size(), {});
  tables_.reserve(sizes.size() + 1);
  tables_.clear();
  table_of_part_.assign(sizes.size(), 0);
  std::size_t numel = 0, symbols = 0;
  std::array<std::size_t, 2> last_table = {0, 0};  // of codes and of pairs, counted from 1
  std::array<std::array<std::uint8_t, kCentroids>, 2> centroids{};  // that came with these
  for (std::size_t p = 0; p < sizes.size(); ++p) {
    StepCodes::Part& part = codes.parts_[p];
    const auto kind = in.get<std::uint8_t>();
    if (kind > static_cast<std::uint8_t>(PartKind::kPairsLastTable)) {
      refuse(concat("a part is of kind ", +kind, ", expected 0 to 7"));
    }
    part = {.kind = static_cast<PartKind>(kind), .first = numel, .numel = sizes[p]};
    numel += sizes[p];
    if (part.kind < PartKind::kCodes) continue;
    const bool paired = part.kind >= PartKind::kPairs;
    std::size_t& last = last_table[paired ? 1 : 0];
    auto& last_centroids = centroids[paired ? 1 : 0];
    if (part.kind == PartKind::kCodes || part.kind == PartKind::kPairs) {
      tables_.push_back(
          in.table(in.get<std::uint8_t>(), paired ? kSymbolsOfPairs : kSymbolsOfCodes));
      std::memcpy(last_centroids.data(), in.take(kCentroids).data(), kCentroids);
      last = tables_.size();
    } else if (part.kind == PartKind::kModelledCodes || part.kind == PartKind::kModelledPairs) {
      tables_.push_back(in.modelled_table(paired));
      last_centroids.fill(in.get<std::uint8_t>());
      last = tables_.size();
    }
    if (last == 0) refuse("a part refers to a table before the first one");
    table_of_part_[p] = last - 1;
    part.centroids = last_centroids;
    symbols += paired ? (sizes[p] + 1) / 2 : sizes[p];
  }
  const bool any = !tables_.empty();
  if (any && !(codes.step_ > 0 && std::isfinite(codes.step_))) {
    refuse(concat("the step is ", codes.step_));
  }
  const auto excess_weights = in.get<std::uint8_t>();
  std::size_t excess_table = tables_.size();
  Reader long_numbers({});
  if (excess_weights > 0) {
    if (!any) refuse("there is an excess of no codes");
    tables_.push_back(in.table(excess_weights, kMaxSymbols));
    const auto long_bytes = in.get<std::uint32_t>();
    long_numbers = Reader(in.take(long_bytes));
  }
  codes.excess_count_ = 0;
  if (!any) {
    if (!in.rest().empty()) refuse("bytes are left over");
    codes.set_levels();
    return;
  }
  if (codes.symbols_.size() < numel) codes.symbols_.resize(numel);
  RansDecoder stream(in.rest(), lanes_for(symbols));
  std::size_t excess = 0;
  for (std::size_t p = 0; p < sizes.size(); ++p) {
    StepCodes::Part& part = codes.parts_[p];
    part.first_excess = excess;
    if (part.kind < PartKind::kCodes) continue;
    const auto target = std::span(codes.symbols_).subspan(part.first, part.numel);
    const SymbolTable& table = tables_[table_of_part_[p]];
    if (part.kind < PartKind::kPairs) {
      if (!stream.decode(table, target)) refuse("the stream is damaged");
    } else {
      const std::size_t pairs = (part.numel + 1) / 2;
      if (pairs_.size() < pairs) pairs_.resize(pairs);
      if (!stream.decode(table, std::span(pairs_).first(pairs)) ||
          !split_pairs(pairs_.data(), target)) {
        refuse("the stream is damaged");
      }
    }
    part.excess = at_least(target, static_cast<std::uint8_t>(2 * part.bound() - 1));
    excess += part.excess;
  }
  if ((excess > 0) != (excess_weights > 0)) refuse("its excess is missing, or of no codes");
  excess_symbols_.resize(excess);
  if (excess > 0 && !stream.decode(tables_[excess_table], excess_symbols_)) {
    refuse("the stream is damaged");
  }
  if (!stream.finished()) refuse("the stream does not end where it should");
  if (codes.excess_.size() < excess) codes.excess_.resize(excess);
  for (std::size_t i = 0; i < excess; ++i) {
    const std::uint8_t symbol = excess_symbols_[i];
    codes.excess_[i] = symbol < kLongNumber ? symbol : long_number(long_numbers);
  }
  codes.excess_count_ = excess;
  if (!long_numbers.rest().empty()) refuse("long numbers are left over");
  codes.set_levels();
}

}  // namespace thinwire::entropy
