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
// What is so close to the fastest has a second window, and a step that is so much longer than with
// another setting, for two windows, is no noise either.
constexpr double kClose = 1.1, kFasterElsewhere = 1.06;
// Where so much of a step of so many seconds is waiting, what sends less must be faster: for that
// one step is enough. What is then found has to be faster by so much, for one step may be unlike
// others.
constexpr double kPlainlyExposed = 0.5, kLongStep = 0.08, kPlainlyFaster = 1.25;

double fastest_of(const std::vector<std::optional<WindowTimes>>& tried) {
  double fastest = 0;
  for (const auto& times : tried) {
    if (times && (fastest == 0 || times->step < fastest)) fastest = times->step;
  }
  return fastest;
}

std::string milliseconds(double seconds) {
  return concat(static_cast<double>(static_cast<long>(seconds * 1e4 + 0.5)) / 10, " ms");
}

}  // namespace

AutomaticChoice::AutomaticChoice(std::vector<std::string> ladder)
    : ladder_(std::move(ladder)), trying_(ladder_.size()), tried_(ladder_.size()) {
  THINWIRE_ASSERT(!ladder_.empty());
}

bool AutomaticChoice::note(const WindowTimes& times) {
  return searching_ ? search(times) : watch(times);
}

bool AutomaticChoice::note_first(const WindowTimes& times) {
  if (!asks_for_first() || current_ + 1 == ladder_.size() || times.step < kLongStep ||
      times.exposed < kPlainlyExposed * times.step) {
    return false;
  }
  trying_[current_++] = {times, 0};
  return true;
}

bool AutomaticChoice::search(const WindowTimes& times) {
  const std::size_t before = current_;
  if (!began_anew_ && is_out_of_date(times)) {
    const std::size_t first = before_;
    begin_search(0);
    before_ = first;
    began_anew_ = true;
    return current_ != before;
  }
  note_window(times);
  const bool hidden = times.exposed <= kHidden * times.step;
  const bool ends = hidden && times.step <= kAsFast * fastest_trial();
  if (!measures_again_ && !ends && current_ + 1 < ladder_.size()) {
    ++current_;
    return true;
  }
  const auto again = to_measure_again();
  measures_again_ = again.has_value();
  if (again) {
    current_ = *again;
  } else {
    settle();
  }
  return current_ != before;
}

// Whether the network was another one when the current setting had its first window.
bool AutomaticChoice::is_out_of_date(const WindowTimes& times) const {
  const std::optional<Trial>& trial = trying_[current_];
  return trial && trial->windows > 0 && kOtherMessages * times.exchange < trial->times.exchange;
}

// What disturbs a window makes it longer.
void AutomaticChoice::note_window(const WindowTimes& times) {
  std::optional<Trial>& trial = trying_[current_];
  if (!trial || trial->windows == 0) {
    trial = {times, 1};
  } else {
    ++trial->windows;
    if (times.step < trial->times.step) trial->times = times;
  }
}

// Of the settings that have had a window.
double AutomaticChoice::fastest_trial() const {
  double fastest = 0;
  for (const auto& trial : trying_) {
    if (!trial || trial->windows == 0) continue;
    if (fastest == 0 || trial->times.step < fastest) fastest = trial->times.step;
  }
  return fastest;
}

// A setting that what is known of it does not rule out: of which one step is known, or one window
// that is not plainly better or worse than another one's.
std::optional<std::size_t> AutomaticChoice::to_measure_again() const {
  const double fastest = fastest_trial();
  std::optional<std::size_t> again;
  int close = 0;
  for (std::size_t i = 0; i < trying_.size(); ++i) {
    if (!trying_[i]) continue;
    const auto& [times, windows] = *trying_[i];
    if (windows == 0 && times.step <= kPlainlyFaster * fastest) return i;
    if (windows == 0 || times.step > kClose * fastest) continue;
    ++close;
    if (windows == 1 && !again) again = i;
  }
  return close > 1 ? again : std::nullopt;
}

void AutomaticChoice::settle() {
  for (std::size_t i = 0; i < trying_.size(); ++i) {
    tried_[i] = trying_[i] ? std::optional(trying_[i]->times) : std::nullopt;
  }
  const double fastest = fastest_of(tried_);
  const auto chosen = std::ranges::find_if(
      tried_, [fastest](const auto& times) { return times && times->step <= kAsFast * fastest; });
  current_ = static_cast<std::size_t>(chosen - tried_.begin());
  chosen_ = **chosen;
  searching_ = false;
  ++searches_;
  rest_ = next_rest_ = current_ == before_ ? std::min(kLongestRest, 2 * next_rest_ + 1) : 0;
  explain();
}

bool AutomaticChoice::note_by_layer(const WindowTimes& times) {
  THINWIRE_ASSERT(!searching_ && !by_layer_);
  if (times.step > kAsFast * fastest_of(tried_)) return false;
  by_layer_ = true;
  chosen_ = times;
  explain();
  return true;
}

void AutomaticChoice::explain() {
  const bool hides = chosen_.exposed <= kHidden * chosen_.step;
  reason_ = concat("a step takes ", milliseconds(chosen_.step), ", averaging ends ",
                   milliseconds(chosen_.exposed), " after the backward pass",
                   hides ? ", which hides it" : "");
  for (std::size_t i = 0; i < tried_.size(); ++i) {
    if (!tried_[i] || (i == current_ && !by_layer_)) continue;
    reason_ += concat("; ", milliseconds(tried_[i]->step), " with ", ladder_[i]);
  }
}

AutomaticChoice::Change AutomaticChoice::change_of(const WindowTimes& times) const {
  if (times.exchange > kOtherMessages * chosen_.exchange && times.step > kAsFast * chosen_.step) {
    const bool less_to_send = by_layer_ || current_ + 1 < ladder_.size();
    return less_to_send ? Change::kSlowerMessages : Change::kNone;
  }
  const bool faster_messages = current_ > 0 && kOtherMessages * times.exchange < chosen_.exchange;
  const bool other_step =
      times.step > kOtherStep * chosen_.step || kOtherStep * times.step < chosen_.step;
  if (faster_messages || other_step) return Change::kOther;
  for (std::size_t i = 0; i < tried_.size(); ++i) {
    const bool other = i != current_ || by_layer_;
    if (other && tried_[i] && kFasterElsewhere * tried_[i]->step < times.step) {
      return Change::kOthersFaster;
    }
  }
  return Change::kNone;
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
  begin_search(change == Change::kOther ? first_to_try(times) : current_);
  // What the last search found is known still of those that are ruled out, or measured again.
  measures_again_ = change == Change::kOthersFaster;
  const std::size_t known = measures_again_            ? tried_.size()
                            : change == Change::kOther ? current_
                                                       : 0;
  for (std::size_t i = 0; i < known; ++i) {
    if (tried_[i]) trying_[i] = {*tried_[i], 0};
  }
  if (change == Change::kOther || was_by_layer) return was_by_layer || current_ != before_;
  return search(times);
}

// Where steps have become longer and messages no faster, what would still be exposed of a setting's
// messages may rule it out: on a slow link each step of such a trial takes as long as many others.
std::size_t AutomaticChoice::first_to_try(const WindowTimes& times) const {
  const double longer = times.step - chosen_.step;
  if (longer <= 0 || kOtherMessages * times.exchange < chosen_.exchange) return 0;
  std::size_t first = 0;
  while (first < current_ && tried_[first] &&
         tried_[first]->exposed / kOtherMessages - longer > times.step) {
    ++first;
  }
  return first;
}

void AutomaticChoice::begin_search(std::size_t first) {
  before_ = current_;
  current_ = first;
  trying_.assign(ladder_.size(), std::nullopt);
  searching_ = true;
  measures_again_ = began_anew_ = false;
  by_layer_ = false;
}

}  // namespace thinwire
