#include "thinwire/comm/average/reduce/slot_coding.h"

#include <algorithm>
#include <cmath>

#include "thinwire/compressors/entropy/step_search.h"

namespace thinwire::comm {
namespace {

using entropy::Apply;

constexpr std::size_t kPrefixBytes[] = {sizeof(SlotPrefix), sizeof(MeanPrefix)};
// For tables and the coder's states, beside the bits; small slices have few of them.
constexpr std::size_t kSlotMargin = 32;

double sum_of_squares(std::span<const float> values) {
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value) * value;
  return sum;
}

double lost_error(const entropy::StepCodes& codes, std::span<const std::span<const float>> parts) {
  std::vector<float>& lost = slot_coders().lost;
  double error = 0;
  for (std::size_t p = 0; p < parts.size(); ++p) {
    lost.assign(parts[p].begin(), parts[p].end());
    codes.apply(p, Apply::kSubtract, lost);
    error += sum_of_squares(lost);
  }
  return error;
}

double square(double value) {
  return value * value;
}

// What the slots of an exchange took together.
struct SlotsTaken {
  std::array<double, 2> bytes{}, lost{}, allowed{};
  double elements = 0;
  double log2_step = 0, with_step = 0;  // of the slots to the owners

  void add(const MeanPrefix& prefix, double weight) {
    elements += weight;
    for (const std::size_t leg : {kToOwners, kToAll}) {
      const SlotPrefix& slots = leg == kToOwners ? prefix.slices : prefix.mean;
      bytes[leg] += slots.wanted_bytes;
      lost[leg] += square(slots.lost);
      allowed[leg] += square(slots.allowed);
    }
    if (prefix.log2_step <= kNoStep) return;
    with_step += weight;
    log2_step += weight * double{prefix.log2_step};
  }
};

}  // namespace

double allowed_error(const EcsqOptions& options, std::span<const std::span<const float>> parts,
                     const RandomKey& key) {
  double allowed = 0;
  if (options.goal == EcsqOptions::Goal::kError) {
    for (const auto& part : parts) allowed += sum_of_squares(part);
    return allowed * options.value * options.value;
  }
  if (options.goal != EcsqOptions::Goal::kAs) return 0;
  std::vector<float>& lost = slot_coders().lost;
  std::vector<std::byte>& payload = slot_coders().payload;
  for (const auto& part : parts) {
    lost.assign(part.begin(), part.end());
    payload.resize(
        options.as->max_compressed_bytes(static_cast<std::int64_t>(part.size()), DType::kFloat32));
    options.as->compress_and_subtract(view_of(std::span(lost)), key, payload);
    allowed += sum_of_squares(lost);
  }
  return allowed;
}

std::size_t slot_bytes_of(const Slice& slice, const SharedSteps::Use& use, std::size_t leg,
                          std::size_t place) {
  if (slice.numel == 0) return 0;
  const std::vector<std::uint32_t>& known = use.slots[leg];
  const std::size_t taken =
      known.empty() ? static_cast<std::size_t>(
                          std::ceil(use.slot_bits[leg] * static_cast<double>(slice.numel) / 8))
                    : known[place];
  return kPrefixBytes[leg] + entropy::StepEncoder::min_bytes(slice.pieces.size()) + kSlotMargin +
         taken;
}

bool aims_at_error(const EcsqOptions& options) {
  return options.goal == EcsqOptions::Goal::kError || options.goal == EcsqOptions::Goal::kAs;
}

SlotCoders& slot_coders() {
  thread_local SlotCoders instance;
  return instance;
}

const entropy::StepCodes& read_slot(std::span<const std::byte> payload, const Slice& slice) {
  SlotCoders& coders = slot_coders();
  coders.sizes.clear();
  for (const Piece& piece : slice.pieces) {
    coders.sizes.push_back(static_cast<std::size_t>(piece.numel));
  }
  coders.decoder.decode(payload, coders.sizes, coders.codes);
  return coders.codes;
}

SlotPrefix fill_slot(const EcsqOptions& options, float step, const RandomKey& key,
                     std::span<std::byte> payload, float* begin) {
  SlotCoders& coders = slot_coders();
  const double allowed = allowed_error(options, coders.parts, key);
  entropy::StepChoice choice = options.choice(step);
  if (begin) choice.begin = *begin;
  const entropy::Encoded encoded =
      coders.encoder.encode(coders.parts, choice, payload, coders.codes);
  // What is far off says nothing of the next slice.
  const bool near = step > 0 && encoded.step > 0;
  if (begin) *begin = near ? std::clamp(encoded.step / step, 0.5f, 2.0f) : 1.0f;
  SlotPrefix prefix;
  // Slots have room of their own for what any payload takes: counted against the goal it would let
  // the step of a small slice grow without end.
  prefix.wanted_bytes = entropy::wanted_beyond_least(encoded.wanted_bits, coders.parts.size());
  if (aims_at_error(options) && std::isfinite(allowed) && allowed > 0) {
    prefix.lost = static_cast<float>(std::sqrt(lost_error(coders.codes, coders.parts)));
    prefix.allowed = static_cast<float>(std::sqrt(allowed));
  }
  return prefix;
}

SlotReport report_of(std::span<const MeanPrefix> prefixes,
                     const std::vector<std::vector<Slice>>& slices) {
  SlotReport report;
  SlotsTaken taken;
  std::size_t at = 0;
  for (const std::vector<Slice>& owners : slices) {
    for (const Slice& slice : owners) {
      const MeanPrefix& prefix = prefixes[at++];
      report.slots[kToOwners].push_back(prefix.slices.wanted_bytes);
      report.slots[kToAll].push_back(prefix.mean.wanted_bytes);
      if (slice.numel > 0) taken.add(prefix, static_cast<double>(slice.numel));
    }
  }
  report.lost = taken.lost;
  report.allowed = taken.allowed;
  for (const std::size_t leg : {kToOwners, kToAll}) {
    report.bits[leg] = 8 * taken.bytes[leg] / taken.elements;
  }
  if (taken.with_step > 0) report.log2_step = taken.log2_step / taken.with_step;
  return report;
}

}  // namespace thinwire::comm
