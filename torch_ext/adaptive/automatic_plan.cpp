#include "thinwire/torch_ext/adaptive/automatic_plan.h"

#include <algorithm>
#include <array>
#include <utility>

#include "thinwire/comm/failure/guard.h"
#include "thinwire/comm/link/link_probe.h"
#include "thinwire/common/error.h"
#include "thinwire/common/log.h"

namespace thinwire {
namespace {

// The first steps of a training, in which LibTorch's Reducer orders its buckets anew, memory is
// taken and codecs find their steps, and those after a change of the setting.
constexpr std::int64_t kFirstSteps = 4, kSettlingSteps = 2;
// An odd number, so that a median is a step.
constexpr std::int64_t kWindow = 5;
// Of a setting, after which the last of them is looked at alone: steps may be too long for more.
constexpr std::int64_t kFirstLook = 2;
// Between two windows in which nothing is searched for. Two of them notice a change.
constexpr std::int64_t kWatchEvery = 8;

}  // namespace

AutomaticPlan::AutomaticPlan(c10::intrusive_ptr<c10d::ProcessGroup> group,
                             AutomaticCompression automatic, comm::Plan start, std::int64_t first)
    : group_(std::move(group)),
      automatic_(std::move(automatic)),
      choice_(automatic_.ladder),
      plan_(std::move(start)),
      next_step_(0),
      window_ends_(first + kFirstSteps + kWindow),
      first_look_(first + kFirstLook) {
  for (const std::string& spec : automatic_.ladder) {
    settings_.push_back(automatic_.setting(spec));
    settings_.back().may_be_skipped = false;
  }
  apply();
}

bool AutomaticPlan::begin_step(std::int64_t step, const Measure& measure) {
  if (step == next_step_ - 1 || automatic_.layers.empty() || group_->getSize() == 1) return false;
  if (std::exchange(next_step_, step + 1) != step) {
    choice_ = AutomaticChoice(automatic_.ladder);
    window_ends_ = std::max(window_ends_, step + kFirstSteps + kWindow);
    first_look_ = std::max(first_look_, step + kFirstLook);
    apply();
    return true;
  }
  if (step != first_look_ && step < window_ends_) return false;
  const bool searched = choice_.searching();
  const bool changed = look(step, measure);
  if (changed) apply();
  if (searched && !choice_.searching()) tell(step);
  return changed;
}

// At the end of a window, or after the first steps of one.
bool AutomaticPlan::look(std::int64_t step, const Measure& measure) {
  const bool first = step < window_ends_;
  if (first && !choice_.asks_for_first()) return false;
  const bool changed =
      first ? choice_.note_first(agreed(measure(1))) : choice_.note(agreed(measure(kWindow)));
  if (changed) first_look_ = step + kFirstLook;
  if (changed || !first) {
    window_ends_ = step + (changed               ? kSettlingSteps + kWindow
                           : choice_.searching() ? kWindow
                                                 : kWatchEvery);
  }
  return changed;
}

// The step is as long as that of the slowest rank. Where even that one waits for the last mean, it
// is for the network, not for another rank.
WindowTimes AutomaticPlan::agreed(const WindowTimes& own) {
  std::array<double, 3> values = {own.averaged, -own.exposed, own.exchange};
  comm::guard(*group_, "comparing the times of the steps", static_cast<std::uint64_t>(next_step_),
              [&] { comm::take_largest(*group_, values); });
  return {.averaged = values[0], .exposed = -values[1], .exchange = values[2]};
}

void AutomaticPlan::apply() {
  const comm::LayerSetting& setting = settings_[choice_.current()];
  for (const LayerInfo& layer : automatic_.layers) plan_.set(layer.name, setting);
  summary_.setting = choice_.ladder()[choice_.current()];
}

void AutomaticPlan::tell(std::int64_t step) {
  summary_.reason = choice_.reason();
  summary_.searches = choice_.searches();
  summary_.tried.clear();
  for (std::size_t i = 0; i < choice_.ladder().size(); ++i) {
    const auto& times = choice_.tried()[i];
    if (!times) continue;
    summary_.tried.push_back({choice_.ladder()[i], times->averaged, times->exposed});
  }
  if (group_->getRank() == 0) {
    log::info("auto: ", summary_.setting, " from step ", step, ": ", summary_.reason);
  }
}

}  // namespace thinwire
