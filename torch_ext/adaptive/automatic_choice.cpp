#include "thinwire/torch_ext/adaptive/automatic_choice.h"

#include <algorithm>

#include "thinwire/common/error.h"

namespace thinwire {
namespace {

// Medians of a few steps differ by so much without a reason. A setting that loses more must gain
// more than that.
constexpr double kAsFast = 1.03;
// What is no noise. Messages are watched more coarsely, for what they take depends on how the
// ranks' backward passes meet.
constexpr double kOtherStep = 1.25, kOtherMessages = 1.6;
constexpr int kLongestRest = 64;
// Where so much of a step of so many seconds is waiting, what sends less must be faster: for that
// one step is enough. What is then found has to be faster by so much, for one step may be unlike
// others.
constexpr double kPlainlyExposed = 0.5, kLongStep = 0.25, kPlainlyFaster = 1.25;

double fastest_of(const std::vector<std::optional<WindowTimes>>& tried) {
  double fastest = 0;
  for (const auto& times : tried) {
    if (times && (fastest == 0 || times->averaged < fastest)) fastest = times->averaged;
  }
  return fastest;
}

std::string milliseconds(double seconds) {
  return concat(static_cast<double>(static_cast<long>(seconds * 1e4 + 0.5)) / 10, " ms");
}

}  // namespace

AutomaticChoice::AutomaticChoice(std::vector<std::string> ladder)
    : ladder_(std::move(ladder)),
      trying_(ladder_.size()),
      tried_(ladder_.size()),
      brief_(ladder_.size()) {
  THINWIRE_ASSERT(!ladder_.empty());
}

bool AutomaticChoice::note(const WindowTimes& times) {
  return searching_ ? search(times) : watch(times);
}

bool AutomaticChoice::note_first(const WindowTimes& times) {
  if (!asks_for_first() || current_ + 1 == ladder_.size() || times.averaged < kLongStep ||
      times.exposed < kPlainlyExposed * times.averaged) {
    return false;
  }
  trying_[current_] = times;
  brief_[current_++] = true;
  return true;
}

bool AutomaticChoice::search(const WindowTimes& times) {
  const std::size_t before = current_;
  trying_[current_] = times;
  brief_[current_] = false;
  const bool hidden = times.exposed <= kHidden * times.averaged;
  if (!measures_again_ && !hidden && current_ + 1 < ladder_.size()) {
    ++current_;
  } else if (!measure_again()) {
    settle();
  }
  return current_ != before;
}

// Goes back to a setting of which one step is known, where that does not rule it out.
bool AutomaticChoice::measure_again() {
  double fastest = 0;
  for (std::size_t i = 0; i < trying_.size(); ++i) {
    if (!trying_[i] || brief_[i]) continue;
    if (fastest == 0 || trying_[i]->averaged < fastest) fastest = trying_[i]->averaged;
  }
  for (std::size_t i = 0; i < trying_.size(); ++i) {
    if (!trying_[i] || !brief_[i] || trying_[i]->averaged > kPlainlyFaster * fastest) continue;
    measures_again_ = true;
    current_ = i;
    return true;
  }
  return false;
}

void AutomaticChoice::settle() {
  measures_again_ = false;
  const double fastest = fastest_of(trying_);
  const auto chosen = std::ranges::find_if(trying_, [fastest](const auto& times) {
    return times && times->averaged <= kAsFast * fastest;
  });
  current_ = static_cast<std::size_t>(chosen - trying_.begin());
  chosen_ = **chosen;
  tried_ = trying_;
  searching_ = false;
  ++searches_;
  rest_ = next_rest_ = current_ == before_ ? std::min(kLongestRest, 2 * next_rest_ + 1) : 0;
  explain();
}

bool AutomaticChoice::note_by_layer(const WindowTimes& times) {
  THINWIRE_ASSERT(!searching_ && !by_layer_);
  if (times.averaged > kAsFast * fastest_of(tried_)) return false;
  by_layer_ = true;
  chosen_ = times;
  explain();
  return true;
}

void AutomaticChoice::explain() {
  const bool hides = chosen_.exposed <= kHidden * chosen_.averaged;
  reason_ = concat("averaging ends ", milliseconds(chosen_.averaged), " after the forward pass, ",
                   milliseconds(chosen_.exposed), " after the backward pass",
                   hides ? ", which hides it" : "");
  for (std::size_t i = 0; i < tried_.size(); ++i) {
    if (!tried_[i] || (i == current_ && !by_layer_)) continue;
    reason_ += concat("; ", milliseconds(tried_[i]->averaged), " with ", ladder_[i]);
  }
}

AutomaticChoice::Change AutomaticChoice::change_of(const WindowTimes& times) const {
  if (times.exchange > kOtherMessages * chosen_.exchange &&
      times.averaged > kAsFast * chosen_.averaged) {
    const bool less_to_send = by_layer_ || current_ + 1 < ladder_.size();
    return less_to_send ? Change::kSlowerMessages : Change::kNone;
  }
  const bool faster_messages = current_ > 0 && kOtherMessages * times.exchange < chosen_.exchange;
  const bool other_step = times.averaged > kOtherStep * chosen_.averaged ||
                          kOtherStep * times.averaged < chosen_.averaged;
  return faster_messages || other_step ? Change::kOther : Change::kNone;
}

bool AutomaticChoice::watch(const WindowTimes& times) {
  if (rest_ > 0) {
    --rest_;
    return false;
  }
  const Change change = change_of(times);
  const bool twice = change != Change::kNone && change == last_change_;
  last_change_ = change;
  if (!twice) return false;
  last_change_ = Change::kNone;
  const bool was_by_layer = by_layer_;
  begin_search(change == Change::kOther ? 0 : current_);
  if (change == Change::kOther || was_by_layer) return was_by_layer || current_ != before_;
  return search(times);
}

void AutomaticChoice::begin_search(std::size_t first) {
  before_ = current_;
  current_ = first;
  trying_.assign(ladder_.size(), std::nullopt);
  brief_.assign(ladder_.size(), false);
  searching_ = true;
  by_layer_ = false;
}

}  // namespace thinwire
