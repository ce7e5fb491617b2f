// The kernels that read entropy-coded slots in GPU memory as nvcc compiles them: their PTX is
// executed on the host, with every access checked. Values have the bits of StepDecoder, what it
// refuses is refused, and every barrier that is taken out is found.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "thinwire/common/error.h"
#include "thinwire/compressors/entropy/step_coder.h"
#include "thinwire/compressors/kernels/elementwise.h"
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

const std::vector<ptx::Kernel>& compiled_slots() {
  static const std::vector<ptx::Kernel> kernels = ptx::kernels_of_file(THINWIRE_SLOTS_PTX);
  return kernels;
}

// One slot, and the values of its parts, of which the first is at element 1.
struct Payload {
  std::vector<std::size_t> sizes;
  std::vector<std::byte> bytes;

  std::size_t numel() const { return std::accumulate(sizes.begin(), sizes.end(), std::size_t{0}); }
};

Payload encoded(const std::vector<std::vector<float>>& values, const StepChoice& choice,
                std::size_t slot_bytes) {
  Payload payload;
  std::vector<std::span<const float>> parts;
  for (const auto& each : values) {
    payload.sizes.push_back(each.size());
    parts.emplace_back(each);
  }
  // Not at an address that is aligned to anything.
  payload.bytes.resize(slot_bytes + 1);
  StepEncoder encoder;
  StepCodes codes;
  encoder.encode(parts, choice, std::span(payload.bytes).subspan(1), codes);
  return payload;
}

std::vector<float> scaled(std::vector<float> values, float scale) {
  for (float& value : values) value *= scale;
  return values;
}

// Parts of all kinds.
Payload mixed(float step = 0.02f, bool fill = false, std::size_t slot_bytes = 12000) {
  std::vector<std::vector<float>> values = testing::mixed_parts(5000);
  values[8][0] = 1e20f;
  return encoded(values, {.step = step, .rounding = 0.4f, .fill = fill}, slot_bytes);
}

std::uint32_t tiles_of(std::size_t numel) {
  return static_cast<std::uint32_t>((numel + kSlotTile - 1) / kSlotTile);
}

// The memory of slots that are read together.
struct Device {
  struct OfSlot {
    std::vector<std::byte> payload;
    std::vector<SlotPart> parts;
    std::vector<ReadPart> read;
    std::vector<std::uint8_t> symbols;
    std::vector<std::uint32_t> before, excess;
    std::vector<ReadState> state;
  };
  std::vector<OfSlot> of_slots;
  std::vector<Slot> slots;
  std::vector<std::byte> values;
  std::uint64_t tiles = 0;

  // Values lie behind one another.
  explicit Device(std::span<const Payload> payloads) : of_slots(payloads.size()) {
    std::uint64_t value = 1;
    for (std::size_t i = 0; i < payloads.size(); ++i) {
      OfSlot& own = of_slots[i];
      own.payload = payloads[i].bytes;
      std::uint64_t first = 0;
      std::uint32_t tile = 0;
      for (const std::size_t size : payloads[i].sizes) {
        own.parts.push_back({first, value, static_cast<std::uint32_t>(size), tile});
        first += size;
        value += size;
        tile += tiles_of(size);
      }
      own.read.resize(own.parts.size());
      own.symbols.resize(first);
      own.before.resize(tile);
      own.excess.resize(first);
      own.state.resize(1);
      slots.push_back({.payload = own.payload.data() + 1,
                       .bytes = own.payload.size() - 1,
                       .parts = own.parts.data(),
                       .count = static_cast<std::uint32_t>(own.parts.size()),
                       .tiles = tile,
                       .first_tile = tiles,
                       .read = own.read.data(),
                       .symbols = own.symbols.data(),
                       .before = own.before.data(),
                       .excess = own.excess.data(),
                       .state = own.state.data()});
      tiles += tile;
    }
    values.resize(value * sizeof(float));
  }

  void run(const std::vector<ptx::Kernel>& kernels, const std::string& name, const SlotTask& task,
           std::uint32_t blocks, std::uint32_t threads, std::uint64_t seed) {
    ptx::GlobalMemory memory;
    const auto add = [&](auto& list) {
      if (!list.empty()) memory.add(list.data(), list.size() * sizeof(list[0]));
    };
    for (OfSlot& own : of_slots) {
      // What lies before the slot must not be read.
      memory.add(own.payload.data() + 1, own.payload.size() - 1);
      add(own.parts);
      add(own.read);
      add(own.symbols);
      add(own.before);
      add(own.excess);
      add(own.state);
    }
    add(slots);
    add(values);
    ptx::run(ptx::kernel_of(kernels, name),
             {.blocks = blocks,
              .threads = threads,
              .parameters = std::as_bytes(std::span(&task, 1)),
              .seed = seed},
             memory);
  }
};

struct SlotMachine {
  const std::vector<ptx::Kernel>& kernels = compiled_slots();
  std::uint64_t seed = 1;
  std::uint32_t most_blocks = 64;

  SlotTask task_of(Device& device) const {
    return {.slots = device.slots.data(),
            .count = static_cast<std::uint32_t>(device.slots.size()),
            .tiles = device.tiles,
            .values = device.values.data(),
            .dtype = DType::kFloat32,
            .apply = SlotApply::kAssign};
  }
  void read(Device& device) const {
    const SlotTask task = task_of(device);
    device.run(kernels, "slot_read_kernel", task, std::min(task.count, most_blocks), 32, seed);
  }
  void apply(Device& device, SlotApply apply, DType dtype = DType::kFloat32) const {
    SlotTask task = task_of(device);
    task.apply = apply;
    task.dtype = dtype;
    const auto blocks =
        static_cast<std::uint32_t>(std::min<std::uint64_t>(task.tiles, most_blocks));
    device.run(kernels, ptx::instance("slot_apply_kernel", "DType", static_cast<int>(dtype)), task,
               blocks, 256, seed);
  }
};

std::span<float> floats_of(Device& device) {
  return {reinterpret_cast<float*>(device.values.data()), device.values.size() / sizeof(float)};
}

// Calls visit(slot's codes, part, element of the values, numel).
template <typename Visit>
void on_cpu(std::span<const Payload> payloads, const Visit& visit) {
  StepDecoder decoder;
  StepCodes codes;
  std::size_t at = 1;
  for (const Payload& payload : payloads) {
    decoder.decode(std::span(payload.bytes).subspan(1), payload.sizes, codes);
    for (std::size_t p = 0; p < payload.sizes.size(); ++p) {
      visit(codes, p, at, payload.sizes[p]);
      at += payload.sizes[p];
    }
  }
}

// Empty where all the values are those of the CPU, else what is different.
std::string difference(std::span<const Payload> payloads, const SlotMachine& machine,
                       bool all_ways = true) {
  Device device(payloads);
  std::vector<float> expected = testing::normal_values(device.values.size() / sizeof(float), 4);
  std::ranges::copy(expected, floats_of(device).begin());
  machine.read(device);
  for (const Device::OfSlot& own : device.of_slots) {
    if (own.state[0].fault != SlotFault::kNone) {
      return concat("refused for ", static_cast<int>(own.state[0].fault));
    }
  }
  for (const auto& [apply, of_cpu] :
       {std::pair(SlotApply::kAdd, Apply::kAdd), std::pair(SlotApply::kSubtract, Apply::kSubtract),
        std::pair(SlotApply::kAssign, Apply::kAssign)}) {
    if (!all_ways && apply != SlotApply::kAssign) continue;
    machine.apply(device, apply);
    on_cpu(payloads, [&, way = of_cpu](const StepCodes& codes, std::size_t p, std::size_t at,
                                       std::size_t numel) {
      codes.apply(p, way, std::span(expected).subspan(at, numel));
    });
    const std::span<const float> found = floats_of(device);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      if (std::memcmp(&found[i], &expected[i], sizeof(float)) == 0) continue;
      if (std::isnan(found[i]) && std::isnan(expected[i])) continue;
      return concat("value ", i, " is ", found[i], ", expected ", expected[i], " after ",
                    static_cast<int>(apply));
    }
  }
  return {};
}

TEST(SlotsPtx, ValuesAreThoseOfTheCpu) {
  const std::vector<Payload> payloads = {mixed(), mixed(0.01f, true, 7000), mixed(0.3f),
                                         mixed(1e-4f, false, 60000)};
  EXPECT_EQ(difference(payloads, {}), "");
  EXPECT_EQ(difference(payloads, {.seed = 2, .most_blocks = 1}), "");
}

// Streams of 2 to 128 lanes.
TEST(SlotsPtx, StreamsOfAllWidthsAreRead) {
  for (const std::size_t numel : {1, 1000, 4000, 20000, 70000, 270000}) {
    const std::vector<float> values = testing::normal_values(numel, 3, 0.1f);
    std::vector<Payload> payloads = {encoded({values}, {.step = 0.1f}, 2 * numel + 2000)};
    // Few symbols but zero: in pairs from 2048 elements on.
    if (numel < 100000) {
      payloads.push_back(encoded({scaled(values, 0.3f)}, {.step = 0.1f}, 2 * numel + 2000));
    }
    EXPECT_EQ(difference(payloads, {}, false), "") << numel;
  }
}

TEST(SlotsPtx, NothingIsAPayloadOfZeros) {
  const std::vector<Payload> payloads = {encoded({std::vector<float>(5000)}, {.step = 0.1f}, 900),
                                         encoded({{}, {}}, {.step = 0.1f}, 40)};
  EXPECT_EQ(difference(payloads, {}), "");
}

TEST(SlotsPtx, HalvesAreRoundedAsOnTheCpu) {
  const std::vector<Payload> payloads = {mixed()};
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat64}) {
    Device device(payloads);
    device.values.resize((payloads[0].numel() + 1) * size_of(dtype));
    std::vector<std::byte> expected = device.values;
    SlotMachine machine;
    machine.read(device);
    machine.apply(device, SlotApply::kAssign, dtype);
    std::vector<float> decoded;
    on_cpu(payloads, [&](const StepCodes& codes, std::size_t p, std::size_t at, std::size_t numel) {
      decoded.resize(numel);
      codes.apply(p, Apply::kAssign, decoded);
      store_floats(dtype, expected.data(), at, numel, decoded.data(), WriteMode::kAssign);
    });
    EXPECT_EQ(device.values, expected) << static_cast<int>(dtype);
  }
}

// A slot is refused where the CPU refuses it, whatever its bytes, and changes nothing.
TEST(SlotsPtx, DamagedSlotsAreRefusedAsOnTheCpu) {
  const Payload whole = encoded(
      {testing::normal_values(300, 1, 0.05f), scaled(testing::normal_values(2500, 2, 0.05f), 0.1f),
       testing::normal_values(41, 3, 3.0f), std::vector<float>(7)},
      {.step = 0.05f, .rounding = 0.4f}, 1200);
  std::uint64_t random = 1;
  const auto draw = [&](std::uint64_t below) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    return (random >> 33) % below;
  };
  int refused = 0, taken = 0;
  for (int trial = 0; trial < 300; ++trial) {
    Payload damaged = whole;
    // Most of what is checked is at the beginning.
    const std::size_t at = 1 + (trial % 3 == 0 ? draw(whole.bytes.size() - 1) : draw(120));
    damaged.bytes[at] = static_cast<std::byte>(trial % 5 == 0 ? 255 : draw(trial % 2 ? 8 : 256));
    if (trial % 50 == 7) damaged.bytes.resize(1 + draw(damaged.bytes.size()));
    std::optional<std::string> error;
    try {
      on_cpu({&damaged, 1}, [](const StepCodes&, std::size_t, std::size_t, std::size_t) {});
    } catch (const FrameError& refusal) {
      error = refusal.what();
    }
    if (!error) {
      EXPECT_EQ(difference({&damaged, 1}, {}), "") << trial;
      ++taken;
      continue;
    }
    ++refused;
    Device device({&damaged, 1});
    const std::vector<std::byte> values = device.values;
    SlotMachine machine;
    machine.read(device);
    machine.apply(device, SlotApply::kAssign);
    EXPECT_NE(device.of_slots[0].state[0].fault, SlotFault::kNone) << trial << ": " << *error;
    EXPECT_EQ(device.values, values) << trial;
  }
  EXPECT_GT(refused, 150);
  EXPECT_GT(taken, 10);
}

TEST(SlotsPtx, EveryBarrierThatIsTakenOutIsFound) {
  const std::vector<Payload> payloads = {mixed(), mixed(0.01f, true, 7000)};
  const int barriers = ptx::expect_barriers_are_needed(
      compiled_slots(), {"slot_read_kernel", "slot_apply_kernelILNS_5DTypeE0"},
      [&](const std::vector<ptx::Kernel>& mutants) {
        return ptx::finding_of_seeds([&](std::uint64_t seed) {
          return difference(payloads, {.kernels = mutants, .seed = seed, .most_blocks = 1});
        });
      });
  EXPECT_GT(barriers, 8);
}

}  // namespace
}  // namespace thinwire::entropy
