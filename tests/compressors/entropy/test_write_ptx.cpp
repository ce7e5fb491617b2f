// The kernel that writes entropy-coded slots in GPU memory as nvcc compiles it: its PTX is executed
// on the host, with every access checked. Payloads, steps and what they wanted are those of
// StepEncoder, the codes left behind are those of the payload, and every barrier that is taken out
// is found.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "thinwire/common/text.h"
#include "thinwire/compressors/entropy/step_coder.h"
#include "thinwire/compressors/entropy/step_search.h"
#include "thinwire/compressors/kernels/slot_task.h"
#include "thinwire/tests/compressors/codecs/payloads.h"
#include "thinwire/tests/compressors/entropy/mixed_parts.h"
#include "thinwire/tests/support/ptx/barriers.h"
#include "thinwire/tests/support/ptx/machine.h"
#include "thinwire/tests/support/ptx/named_kernels.h"

namespace thinwire::entropy {
namespace {

using namespace kernels;
namespace ptx = testing::ptx;
using testing::normal_values;

const std::vector<ptx::Kernel>& compiled_writers() {
  static const std::vector<ptx::Kernel> kernels = ptx::kernels_of_file(THINWIRE_SLOTS_PTX);
  return kernels;
}

// A slot to be written and everything that the kernel uses for it.
struct WrittenSlot {
  std::vector<std::vector<float>> values;
  std::size_t bytes = 0;  // of the slot
  std::vector<SlotPart> parts = {};
  std::vector<std::byte> memory = {};  // a prefix and the slot
  std::vector<ReadPart> read = {};
  std::vector<std::uint8_t> symbols = {};
  std::vector<std::uint32_t> before = {}, excess = {};
  std::vector<ReadState> state = {};
  std::vector<CodedPart> coded = {};
  std::vector<CodedGroup> groups = {};
  std::vector<float> sample = {};
  std::vector<SampledPart> sampled = {};

  // The values lie behind those in `all`.
  SlotCode code(std::vector<float>& all, bool is_mean, bool samples_anyway) {
    std::uint64_t first = 0, sampled_first = 0;
    std::uint32_t tiles = 0, sample_tiles = 0, runs = 0;
    std::size_t numel = 0;
    for (const auto& part : values) numel += part.size();
    const bool samples = samples_anyway || StepEncoder::samples(numel, values.size());
    const std::size_t period = samples_anyway ? 2 : sample_period(numel);
    for (const auto& part : values) {
      const auto size = static_cast<std::uint32_t>(part.size());
      parts.push_back({first, all.size(), size, tiles});
      all.insert(all.end(), part.begin(), part.end());
      first += size;
      tiles += (size + kSlotTile - 1) / kSlotTile;
      if (!samples) continue;
      const auto of_part = static_cast<std::uint32_t>(sampled_runs(size, period));
      const std::uint32_t taken =
          of_part == 1 ? std::min(size, kSampledRun) : kSampledRun * of_part;
      sampled.push_back({{sampled_first, sampled_first, taken, sample_tiles},
                         runs,
                         of_part,
                         sample_weight(size, taken)});
      sampled_first += taken;
      sample_tiles += (taken + kSlotTile - 1) / kSlotTile;
      runs += of_part;
    }
    const std::size_t prefix = is_mean ? sizeof(MeanPrefix) : sizeof(SlotPrefix);
    memory.resize(prefix + bytes);
    read.resize(parts.size());
    symbols.resize(numel);
    before.resize(tiles + 1);
    excess.resize(numel);
    state.resize(1);
    coded.resize(parts.size());
    groups.resize(parts.size());
    if (samples) sample.resize(sampled_first);
    return {.slot = {.payload = memory.data() + prefix,
                     .bytes = bytes,
                     .parts = parts.data(),
                     .count = static_cast<std::uint32_t>(parts.size()),
                     .tiles = tiles,
                     .first_tile = 0,
                     .read = read.data(),
                     .symbols = symbols.data(),
                     .before = before.data(),
                     .excess = excess.data(),
                     .state = state.data()},
            .numel = numel,
            .coded = coded.data(),
            .groups = groups.data(),
            .sample = samples ? sample.data() : nullptr,
            .sampled = sampled.data(),
            .sample_tiles = sample_tiles,
            .sample_numel = sampled_first,
            .received = nullptr};
  }
};

struct Writing {
  std::vector<WrittenSlot> slots;
  float step = 0.02f, rounding = 0.4f;
  bool by_part = false, fill = false;
  float begin = 1;
  bool samples_anyway = false;  // also what is too small for the CPU to sample
  // Of a mean of slots with these prefixes and steps.
  std::vector<SlotPrefix> wanted = {};
  std::vector<float> steps = {};

  std::vector<float> values = {7};  // the first is of no part
  std::vector<SlotCode> codes = {};
  std::vector<float> begins = {};
  std::vector<Slot> received = {};
  std::vector<ReadState> states = {};

  void run(const std::vector<ptx::Kernel>& kernels, std::uint64_t seed) {
    ptx::GlobalMemory memory;
    const auto add = [&](auto& list) {
      if (!list.empty()) memory.add(list.data(), list.size() * sizeof(list[0]));
    };
    begins = {begin, -1};
    for (const float each : steps) states.push_back({each, SlotFault::kNone});
    for (std::size_t r = 0; r < wanted.size(); ++r) {
      Slot& slot = received.emplace_back();
      slot.payload = reinterpret_cast<std::byte*>(wanted.data() + r + 1);
      slot.state = &states[r];
    }
    for (WrittenSlot& slot : slots)
      codes.push_back(slot.code(values, !wanted.empty(), samples_anyway));
    if (!wanted.empty()) codes[0].received = received.data();
    for (WrittenSlot& slot : slots) {
      add(slot.parts);
      add(slot.memory);
      add(slot.read);
      add(slot.symbols);
      add(slot.before);
      add(slot.excess);
      add(slot.state);
      add(slot.coded);
      add(slot.groups);
      add(slot.sample);
      add(slot.sampled);
    }
    add(values);
    add(codes);
    add(begins);
    add(wanted);
    add(received);
    add(states);
    const WriteTask task{.slots = codes.data(),
                         .count = static_cast<std::uint32_t>(codes.size()),
                         .ranks = static_cast<std::uint32_t>(wanted.size()),
                         .values = values.data(),
                         .step = step,
                         .rounding = rounding,
                         .rounding_by_part = by_part,
                         .fill = fill,
                         .begin = &begins[0],
                         .next_begin = &begins[1]};
    ptx::run(ptx::kernel_of(kernels, "slot_write_kernel"),
             {.blocks = task.count,
              .threads = 256,
              .parameters = std::as_bytes(std::span(&task, 1)),
              .seed = seed},
             memory);
  }
};

// Empty where everything is as on the CPU.
std::string difference(Writing writing,
                       const std::vector<ptx::Kernel>& kernels = compiled_writers(),
                       std::uint64_t seed = 1) {
  writing.run(kernels, seed);
  float used = 0;
  for (std::size_t s = 0; s < writing.slots.size(); ++s) {
    const WrittenSlot& slot = writing.slots[s];
    std::vector<std::span<const float>> parts(slot.values.begin(), slot.values.end());
    std::vector<std::byte> expected(slot.bytes);
    StepEncoder encoder;
    StepCodes codes;
    const Encoded encoded = encoder.encode(parts,
                                           {.step = writing.step,
                                            .rounding = writing.rounding,
                                            .rounding_by_part = writing.by_part,
                                            .fill = writing.fill,
                                            .begin = writing.begin},
                                           expected, codes);
    used = encoded.step;
    const std::span<const std::byte> found =
        std::span(slot.memory).subspan(slot.memory.size() - slot.bytes);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      if (found[i] == expected[i]) continue;
      return concat("byte ", i, " of slot ", s, " is ", static_cast<int>(found[i]), ", expected ",
                    static_cast<int>(expected[i]));
    }
    if (slot.state[0].step != encoded.step) return concat("step ", slot.state[0].step);
    SlotPrefix prefix;
    std::memcpy(&prefix, slot.memory.data(), sizeof prefix);
    const std::uint32_t wanted = wanted_beyond_least(encoded.wanted_bits, parts.size());
    if (prefix.wanted_bytes != wanted) {
      return concat("wanted ", prefix.wanted_bytes, ", expected ", wanted);
    }
    // What the payload says of the parts is what is left for the kernels that apply it.
    std::vector<std::size_t> sizes;
    for (const auto& part : parts) sizes.push_back(part.size());
    StepDecoder().decode(expected, sizes, codes);
    for (std::size_t p = 0; p < parts.size(); ++p) {
      if (slot.read[p].kind !=
          static_cast<std::uint32_t>(expected.empty() ? 0 : slot.read[p].kind)) {
        return concat("kind of part ", p);
      }
    }
  }
  const float over = used / writing.step;
  const float next = writing.step > 0 && used > 0 ? std::clamp(over, 0.5f, 2.0f) : 1.0f;
  if (writing.begins[1] != next) return concat("the next begins at ", writing.begins[1]);
  return {};
}

// Parts of all kinds.
WrittenSlot mixed_slot(std::size_t bytes) {
  std::vector<std::vector<float>> values = testing::mixed_parts(5001);
  values[3][2050] = 1e30f;
  values[8][0] = -0.0f;
  return {std::move(values), bytes};
}

TEST(WritePtx, PayloadsAreThoseOfTheCpu) {
  for (const float step : {0.02f, 0.3f, 1e-3f}) {
    Writing writing{.slots = {mixed_slot(30000), mixed_slot(12000)}, .step = step};
    EXPECT_EQ(difference(writing), "") << step;
    writing.by_part = true;
    writing.rounding = 0.5f;
    EXPECT_EQ(difference(writing, compiled_writers(), 2), "") << step << " by part";
  }
}

// More bits than a slot has room for, by a little and by far; less, where it is to be full.
TEST(WritePtx, AStepIsFoundThatFits) {
  EXPECT_EQ(difference({.slots = {mixed_slot(7000)}, .step = 0.01f}), "");
  EXPECT_EQ(difference({.slots = {mixed_slot(400)}, .step = 1e-4f}), "");
  EXPECT_EQ(difference({.slots = {mixed_slot(9000)}, .step = 0.1f, .fill = true}), "");
  EXPECT_EQ(difference({.slots = {mixed_slot(9000), mixed_slot(6000)},
                        .step = 0.02f,
                        .fill = true,
                        .begin = 1.3f}),
            "");
  EXPECT_EQ(difference({.slots = {mixed_slot(StepEncoder::min_bytes(12))}, .step = 0.1f}), "");
}

TEST(WritePtx, WithoutAStepEverythingIsZero) {
  for (const float step : {0.0f, 1e-31f, 1e31f}) {
    EXPECT_EQ(difference({.slots = {mixed_slot(500)}, .step = step, .fill = true}), "") << step;
  }
  const WrittenSlot zeros{{std::vector<float>(5000), {}}, 60};
  EXPECT_EQ(difference({.slots = {zeros}, .step = 0.1f}), "");
  EXPECT_EQ(difference({.slots = {zeros}, .step = 0.1f, .fill = true}), "");
}

// Streams of 2 to 64 lanes, of one symbol and in pairs.
TEST(WritePtx, StreamsOfAllWidthsAreWritten) {
  for (const std::size_t numel : {1, 900, 1024, 4000, 17001}) {
    const WrittenSlot slot{{normal_values(numel, 3, 0.1f), normal_values(numel, 4, 0.02f)},
                           3 * numel + 200};
    EXPECT_EQ(difference({.slots = {slot}, .step = 0.1f}), "") << numel;
  }
  EXPECT_EQ(difference({.slots = {{{std::vector<float>(900, 0.1f)}, 200}}, .step = 0.1f}), "");
}

// Slots of which a sample says the step first, of parts with few and many values.
TEST(WritePtx, ASampleIsThatOfTheCpu) {
  const WrittenSlot slot{
      {normal_values(40000, 1, 0.1f), normal_values(9, 5, 0.1f), normal_values(26000, 2, 0.003f)},
      14000};
  ASSERT_TRUE(StepEncoder::samples(66009, 3));
  EXPECT_EQ(difference({.slots = {slot}, .step = 0.05f, .fill = true}), "");
  WrittenSlot wide = slot;
  wide.bytes = 40000;
  wide.values[0][20000] = std::nanf("");
  EXPECT_EQ(difference({.slots = {wide}, .step = 0.2f, .by_part = true, .fill = true}), "");
}

TEST(WritePtx, AMeanSaysWhatItsSlotsTook) {
  Writing writing{.slots = {mixed_slot(9000)},
                  .step = 0.05f,
                  .wanted = {{101, 0, 0}, {200, 0, 0}, {7, 0, 0}, {}},
                  .steps = {0.25f, 0, 0.03f}};
  writing.wanted.pop_back();
  writing.wanted.reserve(4);
  ASSERT_EQ(difference(writing), "");
  writing.run(compiled_writers(), 1);
  MeanPrefix prefix;
  std::memcpy(&prefix, writing.slots[0].memory.data(), sizeof prefix);
  EXPECT_EQ(prefix.slices.wanted_bytes, 308u / 3);
  EXPECT_EQ(prefix.log2_step, static_cast<float>((-2 + log2_of(0.03f)) / 2));
}

// What a kernel with a barrier less does otherwise than the whole one, if it is not found before.
TEST(WritePtx, EveryBarrierThatIsTakenOutIsFound) {
  std::vector<float> far = normal_values(2500, 4, 0.4f);
  far[7] = std::nanf("");
  const Writing codes{
      .slots = {{{normal_values(3000, 1, 0.02f), normal_values(2500, 2, 0.003f),
                  normal_values(2600, 3, 0.0031f), far, normal_values(900, 5, 0.5f)},
                 2700}},
      .step = 0.01f,
      .by_part = true,
      .fill = true,
      .samples_anyway = true};
  Writing none = codes;
  none.slots = {{{std::vector<float>(4100), far}, 100}};
  std::vector<std::pair<Writing, Writing>> all = {{codes, codes}, {none, none}};
  for (auto& [writing, whole] : all) whole.run(compiled_writers(), 1);
  const int barriers = ptx::expect_barriers_are_needed(
      compiled_writers(), {"slot_write_kernel"}, [&](const std::vector<ptx::Kernel>& mutants) {
        return ptx::finding_of_seeds([&](std::uint64_t seed) {
          for (const auto& [writing, whole] : all) {
            Writing mutant = writing;
            mutant.run(mutants, seed);
            if (mutant.slots[0].memory != whole.slots[0].memory) return std::string("other bytes");
          }
          return std::string();
        });
      });
  EXPECT_GT(barriers, 50);
}

}  // namespace
}  // namespace thinwire::entropy
