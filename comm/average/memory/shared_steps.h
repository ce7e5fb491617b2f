// The step that all layers of a codec share (ecsq), and how it follows what the last one took.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "thinwire/compressors/codecs/ecsq.h"

namespace thinwire::comm {

// The two encodings of a gradient: of a rank's own for the owners, and of the mean for all.
inline constexpr std::size_t kToOwners = 0, kToAll = 1;

// What one exchange took of all its slots; the same on all ranks, who read it in each
// other's frames.
struct SlotReport {
  // An element, had every slot been large enough, without what any payload takes.
  std::array<double, 2> bits{};
  std::optional<double> log2_step = {};  // of those to the owners; none where everything was zero
  // The squared error of all slots together, and what the goal allows them together: a slot of
  // small values may lose all of them. Nothing for goals that are no errors.
  std::array<double, 2> lost{}, allowed{};
  // The same bits of each slot, in bytes.
  std::array<std::vector<std::uint32_t>, 2> slots{};
  bool operator==(const SlotReport&) const = default;
};

// By codec spec one step for each of the two encodings, and by group (layers of a bucket that are
// exchanged together) how large its slots are. Both follow the reports of the training step before,
// so that no rank has to ask another:
//
//   step   ← step · 2^{0.6 (b − t)} where t bits or more than 1.5 are the goal, b those reported by
//            all groups; step · (b / t)^0.4 below; step · (goal's error / error)^0.3 for errors;
//            each by a factor of 2 at most
//   none where that of the ranks is beyond a factor of four of its goal: each rank then finds its
//   own again, of its own gradient. Where that of the means alone is, they are far smaller than
//   what they are of, and it follows by a factor of 16 at most; but it is found again where they
//   lose less than a quarter of an error that is the goal slots  ← the group's reported bits, times
//   t / b, where bits are the goal: as many an element in
//            each slot. Else what each slot took, and 3 % more: a model's rows may be unused or in
//            use, and a slot's error be all of its values
//
// A step is the sender's own affair, as payloads name theirs. Slots are not: their sizes are sums
// and products of what all ranks know, rounded alike everywhere. Not thread-safe.
class SharedSteps {
 public:
  struct Group {
    std::int64_t numel = 0;
    std::array<double, 2> slot_bits{};  // an element
    bool reported = false;              // in the training step that last_step() names
    SlotReport report = {};
    bool operator==(const Group&) const = default;
  };
  struct Codec {
    std::array<float, 2> step{};  // 0: none yet
    std::map<std::string, Group, std::less<>> groups;
    bool operator==(const Codec&) const = default;
  };
  using State = std::map<std::string, Codec, std::less<>>;

  struct Use {
    std::array<float, 2> step{};  // 0: each rank finds its own
    std::array<double, 2> slot_bits{};
    // Bytes of each slot, where they differ; else empty, and all have slot_bits an element.
    std::array<std::vector<std::uint32_t>, 2> slots{};
  };
  // What a group of `numel` elements does in a training step; called once for each, in any order of
  // the groups, and only when all exchanges of the step before are over. Changes nothing of the
  // state before the first report() of the step.
  Use use(const std::string& spec, const EcsqOptions& options, const std::string& group,
          std::int64_t numel, std::int64_t training_step);
  // What it took; only of steps whose means were finite.
  void report(const std::string& spec, const std::string& group, const SlotReport& report);

  const State& state() const { return codecs_; }
  void load_state(State state);

 private:
  // What a training step's reports go to.
  struct Next {
    std::int64_t training_step = 0;
    Codec codec;
  };

  State codecs_;
  std::map<std::string, Next, std::less<>> next_;
};

// A line for each step and for the slots of each group, with all digits; nothing where there are
// none. For ranks to compare: if their states differed, they would send slots of other sizes than
// the others expect.
std::string describe(const SharedSteps::State& state);

}  // namespace thinwire::comm
