// Entropy coding of slots on a GPU: the body of the kernel that writes them. It is StepEncoder's
// encode() by a block of kMaxBlockThreads threads, try after try, with the same steps, zones,
// tables and bytes. See kernels/block.h; beside its context's functions
//
//   void add(counter, n)         as code_block.h
//   std::uint32_t ballot(bool)   as slot_block.h, of the threads of one warp
#pragma once

#include "thinwire/compressors/entropy/step_search.h"
#include "thinwire/compressors/entropy/write_block.h"

namespace thinwire::entropy {

struct EncodeShared {
  ZoneShared zone;
  CodeShared code;
  kernels::SumShared sums;
  GroupShared group;
  ExcessShared excess;
  WriteShared write;
  std::uint32_t coded;  // parts with codes
};

// One slot. All threads make the same calls and hold the same.
template <typename Context>
class SlotWriter {
 public:
  THINWIRE_HOST_DEVICE SlotWriter(Context& block, EncodeShared& shared,
                                  const kernels::WriteTask& task, const kernels::SlotCode& code)
      : block_(block),
        shared_(shared),
        task_(task),
        code_(code),
        slot_(code.slot),
        parts_{slot_.parts,   sizeof(kernels::SlotPart),
               slot_.count,   slot_.tiles,
               task.values,   code.coded,
               slot_.symbols, slot_.before,
               slot_.excess} {}

  // Returns the step that was used; `wanted` is what the one that was asked for takes.
  THINWIRE_HOST_DEVICE float run(double& wanted) {
    StepSearch search(8 * static_cast<double>(slot_.bytes),
                      8 * static_cast<double>(least_payload_bytes(slot_.count)), code_.numel,
                      task_.fill);
    const Sampled sampled = try_sample();
    const float begin = task_.begin == nullptr ? 1.0f : *task_.begin;
    float tried = sampled.step == task_.step && task_.fill ? begin * task_.step : sampled.step;
    std::uint64_t size = 0;
    for (int attempt = 0;; ++attempt) {
      if (attempt == kTries) tried = 0;
      choose_zones(tried);
      block_.sync();  // a try without codes, or its sample, ends without
      const bool coded = code_parts(parts_, tried, nullptr);
      double bits = 0;
      SlotGroups groups;
      if (coded) {
        groups = group_parts(block_, shared_.group, parts_, code_.groups);
        bits = price_of_payload(groups, slot_.count, excess_bits(parts_), 1);
      }
      if (attempt == 0) {
        const double more = tried == sampled.step ? sampled.asked_more
                                                  : search.bits_between(task_.step, tried, bits);
        wanted = bits + more > 0 ? bits + more : 0;
      }
      const bool last = !coded && !search.refines();
      if (last || (coded && search.takes(bits))) {
        const float step = usable_step(tried) ? tried : 0.0f;
        size = PayloadWriter<Context>(block_, shared_.write, code_, parts_, shared_.excess, groups)
                   .write(step);
        if (size > 0) {
          tried = step;
          break;
        }
        tried = search.after(tried, bits, false);
      } else {
        tried = search.after(tried, bits, coded && !search.full(bits));
      }
    }
    if (wanted == 0) wanted = 8 * static_cast<double>(size);
    for (std::uint64_t i = size + block_.thread(); i < slot_.bytes; i += block_.size()) {
      slot_.payload[i] = std::byte{0};
    }
    return tried;
  }

 private:
  struct Sampled {
    float step;
    double asked_more;
  };

  // What a sample of the values says: the step to try first, and how many bits more the one that
  // was asked for would have taken.
  THINWIRE_HOST_DEVICE Sampled try_sample() {
    Sampled found{task_.step, 0};
    if (!task_.fill || code_.sample == nullptr) return found;
    take_sample();
    const CodeParts parts{&code_.sampled->part, sizeof(kernels::SampledPart),
                          slot_.count,          code_.sample_tiles,
                          code_.sample,         code_.coded,
                          slot_.symbols,        slot_.before,
                          slot_.excess};
    StepSearch search(8 * static_cast<double>(slot_.bytes),
                      8 * static_cast<double>(least_payload_bytes(slot_.count)), code_.numel, true,
                      kSharesOfSample);
    const double weight =
        static_cast<double>(code_.numel) / static_cast<double>(code_.sample_numel);
    float tried = task_.step;
    double asked = 0;
    std::uint32_t grouped = 0;
    for (int attempt = 0; attempt < kSampledTries; ++attempt) {
      const bool other_zones = choose_zones(tried);
      if (!code_parts(parts, tried, code_.sampled)) return found;
      // Which parts share a table hardly depends on the step.
      const SlotGroups groups =
          other_zones ? group_parts(block_, shared_.group, parts, code_.groups)
                      : count_groups(block_, shared_.group, parts, code_.groups, grouped);
      grouped = groups.count;
      const double bits = price_of_payload(groups, slot_.count, excess_bits(parts), weight);
      if (attempt == 0) asked = bits;
      found = {tried, asked - bits};
      if (search.takes(bits)) break;
      tried = search.after(tried, bits, !search.full(bits));
    }
    return found;
  }

  THINWIRE_HOST_DEVICE void take_sample() {
    const kernels::SampledPart& last = code_.sampled[slot_.count - 1];
    const std::uint32_t all = last.first_run + last.runs;
    for (std::uint32_t run = block_.thread(); run < all; run += block_.size()) {
      const std::uint32_t p =
          kernels::last_begun(code_.sampled, slot_.count, &kernels::SampledPart::first_run, run);
      const kernels::SampledPart& sampled = code_.sampled[p];
      const std::uint32_t of_part = run - sampled.first_run;
      const SampledRun place = sampled_run(slot_.parts[p].numel, of_part, sampled.runs,
                                           drawn_after(code_.numel, std::uint64_t{run} + 1));
      const float* from = task_.values + slot_.parts[p].value + place.begin;
      float* to = code_.sample + sampled.part.value + std::uint64_t{kSampledRun} * of_part;
      for (std::uint64_t i = 0; i < place.length; ++i) to[i] = from[i];
    }
  }

  // By the values of the whole slot. False where the zones are those of a step nearby.
  THINWIRE_HOST_DEVICE bool choose_zones(float step) {
    const bool usable = usable_step(step);
    if (usable && near_steps(step, zones_step_)) return false;
    zones_step_ = usable ? step : 0.0f;
    for (std::uint32_t p = 0; p < parts_.count; ++p) {
      choose_zone(block_, shared_.zone, parts_, p, step, task_.rounding, task_.rounding_by_part);
    }
    return true;
  }

  // Quantises and counts; of a sample what its elements stand for. Whether any part has codes.
  THINWIRE_HOST_DEVICE bool code_parts(const CodeParts& parts, float step,
                                       const kernels::SampledPart* sampled) {
    const std::uint32_t thread = block_.thread();
    const bool usable = usable_step(step);
    const float inverse = usable ? 1.0f / step : 0.0f;
    for (std::uint32_t i = thread; i < parts.count * kMaxSymbols; i += block_.size()) {
      kernels::CodedPart& coded = parts.coded[i / kMaxSymbols];
      const std::uint32_t s = i % kMaxSymbols;
      coded.symbols[s] = 0;
      if (s < 3) coded.count[s] = coded.fraction[s] = 0;
      if (s == 0) coded.not_finite = 0;
    }
    if (thread == 0) shared_.coded = 0;
    // A tile begins with a sync.
    for (std::uint32_t tile = 0; tile < parts.tiles; ++tile) {
      code_tile(block_, shared_.code, parts, tile, inverse);
    }
    block_.sync();
    for (std::uint32_t p = thread; p < parts.count; p += block_.size()) {
      kernels::CodedPart& coded = parts.coded[p];
      const bool zero = coded.count[0] == 0 && coded.count[1] == 0 && coded.count[2] == 0;
      coded.kind = 0;
      if (coded.not_finite > 0) {
        coded.kind = 1;
      } else if (usable && !zero) {
        coded.kind = coded.bound == kBoundOfPairs ? 5 : 2;
        block_.add(&shared_.coded, 1);
      }
      for (std::uint32_t s = 0; s < kMaxSymbols && sampled != nullptr; ++s) {
        if (coded.symbols[s] == 0) continue;
        coded.symbols[s] = static_cast<std::uint32_t>(coded.symbols[s] * sampled[p].weight + 0.5);
      }
    }
    place_excess(block_, shared_.sums, parts);
    block_.sync();
    for (std::uint32_t tile = 0; tile < parts.tiles; ++tile) {
      list_excess_of_tile(block_, shared_.sums, parts, tile, inverse);
    }
    return shared_.coded > 0;
  }

  THINWIRE_HOST_DEVICE FixedBits excess_bits(const CodeParts& parts) {
    count_excess(block_, shared_.excess, parts);
    return shared_.excess.bits;
  }

  Context& block_;
  EncodeShared& shared_;
  const kernels::WriteTask& task_;
  const kernels::SlotCode& code_;
  const kernels::Slot& slot_;
  const CodeParts parts_;
  float zones_step_ = 0;  // that the zones were chosen for; 0: none
};

THINWIRE_HOST_DEVICE void store_prefix(std::byte* at, const kernels::SlotPrefix& prefix) {
  kernels::store_word(at, prefix.wanted_bytes);
  kernels::store_word(at + 4, kernels::bits_of(prefix.lost));
  kernels::store_word(at + 8, kernels::bits_of(prefix.allowed));
}

// What the slots of a slice say together, behind the prefix of its mean.
THINWIRE_HOST_DEVICE void store_slices(std::byte* at, const kernels::WriteTask& task,
                                       const kernels::Slot* received) {
  double wanted = 0, log2_step = 0;
  std::uint32_t with_step = 0;
  for (std::uint32_t r = 0; r < task.ranks; ++r) {
    wanted += kernels::load_word(received[r].payload - sizeof(kernels::SlotPrefix));
    const float step = received[r].state->step;
    if (!(step > 0)) continue;
    log2_step += log2_of(step);
    ++with_step;
  }
  store_prefix(at, {static_cast<std::uint32_t>(wanted / task.ranks), 0, 0});
  const double mean = with_step > 0 ? log2_step / with_step : kernels::kNoStep;
  kernels::store_word(at + sizeof(kernels::SlotPrefix), kernels::bits_of(static_cast<float>(mean)));
}

// Slot `index` of the task, by kMaxBlockThreads threads.
template <typename Context>
THINWIRE_HOST_DEVICE void write_slot(Context& block, EncodeShared& shared,
                                     const kernels::WriteTask& task, std::uint32_t index) {
  const kernels::SlotCode& code = task.slots[index];
  double wanted = 0;
  const float used = SlotWriter<Context>(block, shared, task, code).run(wanted);
  if (block.thread() != 0) return;
  *code.slot.state = {used, kernels::SlotFault::kNone};
  const kernels::SlotPrefix prefix{wanted_beyond_least(wanted, code.slot.count), 0, 0};
  if (code.received == nullptr) {
    store_prefix(code.slot.payload - sizeof(kernels::SlotPrefix), prefix);
  } else {
    std::byte* const at = code.slot.payload - sizeof(kernels::MeanPrefix);
    store_prefix(at, prefix);
    store_slices(at + sizeof(kernels::SlotPrefix), task, code.received);
  }
  // What is far off says nothing of the next slice.
  if (index + 1 == task.count && task.next_begin != nullptr) {
    const float over = used / task.step;
    *task.next_begin = task.step > 0 && used > 0 ? (over < 0.5f   ? 0.5f
                                                    : over > 2.0f ? 2.0f
                                                                  : over)
                                                 : 1.0f;
  }
}

}  // namespace thinwire::entropy
