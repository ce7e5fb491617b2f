#include "thinwire/comm/average/memory/shared_steps.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "thinwire/common/crc32c.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

using Goal = EcsqOptions::Goal;

// Slots have this much more than what was last used, but where bits are the goal: there payloads
// fill theirs. What does not fit is coded coarser.
double margin(const EcsqOptions& options) {
  return options.goal == Goal::kBits ? 1 : 1.03;
}
// Of steps that have no number of bits as their goal, at first.
constexpr double kFirstBits = 12;
constexpr double kLeastBits = 0.005;
// Beyond this factor of its goal a step is found anew.
constexpr double kFarOff = 4;
// Steps change by this factor at most, and those of means that are far off by another.
constexpr double kMostChange = 2, kMostChangeOfMeans = 16;

double first_bits(const EcsqOptions& options) {
  return options.goal == Goal::kBits ? options.value : kFirstBits;
}

double step_factor(const EcsqOptions& options, double bits, double error, double most) {
  if (options.goal == Goal::kStep) return 1;
  if (options.goal != Goal::kBits) {
    return error > 0 ? std::clamp(std::pow(error, -0.3), 1 / most, most) : most;
  }
  const double target = options.value;
  const double factor =
      target >= 1.5 ? std::exp2(0.6 * (bits - target)) : std::pow(bits / target, 0.4);
  return std::clamp(factor, 1 / most, most);
}

// Sums over the groups that reported, of bits and steps by their elements, in order of the names.
struct Totals {
  double numel = 0;
  std::array<double, 2> bits{}, lost{}, allowed{};
  double with_step = 0, log2_step = 0;

  // The squared error over that of the goal; 1 for goals that are no errors.
  double error(std::size_t leg) const { return allowed[leg] > 0 ? lost[leg] / allowed[leg] : 1; }
};

Totals totals_of(const SharedSteps::Codec& codec) {
  Totals totals;
  for (const auto& [name, group] : codec.groups) {
    if (!group.reported) continue;
    const auto numel = static_cast<double>(group.numel);
    totals.numel += numel;
    for (const std::size_t leg : {kToOwners, kToAll}) {
      totals.bits[leg] += numel * group.report.bits[leg];
      totals.lost[leg] += group.report.lost[leg];
      totals.allowed[leg] += group.report.allowed[leg];
    }
    if (!group.report.log2_step) continue;
    totals.with_step += numel;
    totals.log2_step += numel * *group.report.log2_step;
  }
  return totals;
}

// Of what a step took, over its goal.
double excess(const EcsqOptions& options, double bits, double error) {
  if (options.goal == Goal::kBits) return bits / options.value;
  return options.goal == Goal::kStep ? 1 : error;
}

bool far_off(const EcsqOptions& options, const Totals& totals, std::size_t leg) {
  const double over = excess(options, totals.bits[leg] / totals.numel, totals.error(leg));
  return over > kFarOff || over < 1 / kFarOff;
}

float next_step(const EcsqOptions& options, float step, const Totals& totals, std::size_t leg) {
  const double bits = totals.bits[leg] / totals.numel;
  const double error = totals.error(leg);
  if (options.goal == Goal::kStep) return static_cast<float>(options.value);
  // What a rank finds is right for its own gradient: of means, which may be much smaller always,
  // the step is found by following, unless gradients have changed.
  const bool off = far_off(options, totals, leg);
  if (step > 0 && off && far_off(options, totals, kToOwners)) return 0;
  // Means that are multiples of the ranks' step, as in a job of one rank, lose next to nothing: how
  // much the step may grow does not follow from that.
  if (off && options.goal != Goal::kBits && totals.error(leg) < 1) return 0;
  if (step == 0 && totals.with_step == 0) return 0;
  const double from = step > 0 ? double{step} : std::exp2(totals.log2_step / totals.with_step);
  const double most = off ? kMostChangeOfMeans : kMostChange;
  return static_cast<float>(from * step_factor(options, bits, error, most));
}

// From the reports of one training step to the steps and slots of the next.
void follow(SharedSteps::Codec& codec, const EcsqOptions& options) {
  const Totals totals = totals_of(codec);
  if (totals.numel == 0) return;
  // Buckets that come no more, as when they are rebuilt.
  std::erase_if(codec.groups, [](const auto& entry) { return !entry.second.reported; });
  for (const std::size_t leg : {kToOwners, kToAll}) {
    const double bits = std::max(totals.bits[leg] / totals.numel, kLeastBits);
    codec.step[leg] = next_step(options, codec.step[leg], totals, leg);
    const bool tells = codec.step[leg] > 0 && !far_off(options, totals, leg);
    const double change =
        options.goal == Goal::kBits ? std::clamp(options.value / bits, 0.5, 2.0) : 1;
    for (auto& [name, group] : codec.groups) {
      const double wanted = tells ? group.report.bits[leg] * change : first_bits(options);
      group.slot_bits[leg] = std::max(wanted, kLeastBits) * margin(options);
    }
  }
  for (auto& [name, group] : codec.groups) group.reported = false;
}

}  // namespace

SharedSteps::Use SharedSteps::use(const std::string& spec, const EcsqOptions& options,
                                  const std::string& group, std::int64_t numel,
                                  std::int64_t training_step) {
  auto [next, first_use] = next_.try_emplace(spec);
  Codec& codec = next->second.codec;
  if (first_use || next->second.training_step != training_step) {
    const auto known = codecs_.find(spec);
    codec = known == codecs_.end() ? Codec() : known->second;
    follow(codec, options);
    next->second.training_step = training_step;
  }
  if (options.goal == Goal::kStep) codec.step.fill(static_cast<float>(options.value));
  auto [found, added] = codec.groups.try_emplace(group);
  if (added || found->second.numel != numel) {
    found->second = {.numel = numel};
    found->second.slot_bits.fill(first_bits(options) * margin(options));
  }
  Use use{codec.step, found->second.slot_bits, {}};
  if (options.goal == Goal::kBits) return use;
  for (const std::size_t leg : {kToOwners, kToAll}) {
    if (codec.step[leg] == 0) continue;
    for (const std::uint32_t bytes : found->second.report.slots[leg])
      use.slots[leg].push_back(static_cast<std::uint32_t>(std::ceil(bytes * margin(options))));
  }
  return use;
}

void SharedSteps::report(const std::string& spec, const std::string& group,
                         const SlotReport& report) {
  Codec& codec = next_.at(spec).codec;
  Group& reporting = codec.groups.at(group);
  reporting.report = report;
  reporting.reported = true;
  codecs_[spec] = codec;
}

void SharedSteps::load_state(State state) {
  codecs_ = std::move(state);
  next_.clear();
}

std::string describe(const SharedSteps::State& state) {
  std::string text;
  for (const auto& [spec, codec] : state) {
    text += concat("\nsteps of ", spec, ": ", number_text(double{codec.step[kToOwners]}), " and ",
                   number_text(double{codec.step[kToAll]}));
    for (const auto& [name, group] : codec.groups) {
      text += concat("\nslots of '", name, "', ", group.numel, " elements of ", spec, ":");
      for (const std::size_t leg : {kToOwners, kToAll}) {
        text += concat(" ", number_text(group.slot_bits[leg]));
        if (!group.reported) continue;
        text += concat(" after ", number_text(group.report.bits[leg]), " with error ",
                       number_text(group.report.lost[leg]), " of ",
                       number_text(group.report.allowed[leg]));
        const std::vector<std::uint32_t>& slots = group.report.slots[leg];
        text += concat(", of each ", crc32c(std::as_bytes(std::span(slots))));
      }
      if (group.reported && group.report.log2_step) {
        text += concat(" at step ", number_text(*group.report.log2_step));
      }
    }
  }
  return text;
}

}  // namespace thinwire::comm
