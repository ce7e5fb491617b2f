// Which setting a training is best off with, by the time that its steps take: the part of `auto`
// that only reckons.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

namespace thinwire {

// Medians over the steps of a window, in seconds, as the ranks have agreed on them.
struct WindowTimes {
  double step = 0;      // from one step's last mean to the next one's, of the slowest rank
  double exposed = 0;   // of it, after the last gradient, of the rank that had the least of it
  double exchange = 0;  // in which messages were waited for, of the rank that had the most of it
};

// Averaging hides where less than this part of it comes after the last gradient: nothing that sends
// less could gain more.
inline constexpr double kHidden = 0.02;

// A search tries the settings from the one with the least error on, until one hides behind the
// backward pass and is as fast as those before it, or there are no more, and chooses the one with
// the least error among those with which a step is as short as the shortest. What counts is the
// whole step: a setting that hides may slow the computing that it hides behind. Settings that are
// close have a second window each before that, since a disturbance in one of them would decide. If
// messages have become faster by then, the search begins anew, once.
//
// Then it watches: where the network or the computing changes by much, for two windows, there is
// another search: of what sends less where messages have become slower, otherwise of all settings,
// but where steps have become longer of those that the last search does not rule out.
// Where a step is only longer than it was with another setting, those that were close to it are
// measured anew. Searches that change nothing come less and less often.
//
// A setting under which most of a long step is waiting need not be measured well: one step of it is
// enough to go on, unless what is found after it turns out to be hardly faster; then it gets its
// window.
//
// A search that has chosen a setting that compresses may be followed by trials of settings by layer
// (layer_choice.h), which have less error than that one for all; they are kept where they are as
// fast as the fastest setting, and watched in its place.
//
// Deterministic, so that all ranks that are told the same choose the same. Not thread-safe.
class AutomaticChoice {
 public:
  // `ladder`: settings in order of growing error and fewer bytes; not empty.
  explicit AutomaticChoice(std::vector<std::string> ladder);

  // The setting for the next steps: its place in the ladder.
  std::size_t current() const { return current_; }
  const std::vector<std::string>& ladder() const { return ladder_; }
  bool searching() const { return searching_; }

  // A window with the current setting is over. True where another setting begins.
  bool note(const WindowTimes& times);
  // One step with the current setting is over, of a window that is not. True where another setting
  // begins at once.
  bool note_first(const WindowTimes& times);
  // Whether note_first() could make a difference.
  bool asks_for_first() const { return searching_ && !measures_again_; }
  // A window is over in which the layers had settings of their own, none behind current(). Whether
  // these are kept, until the next search. Only between searches.
  bool note_by_layer(const WindowTimes& times);
  bool by_layer() const { return by_layer_; }

  // Whether the search that goes on has anything to say of a setting yet.
  bool knows(std::size_t setting) const { return trying_[setting].has_value(); }

  // Of the last search that has ended: the times of each setting that it tried.
  const std::vector<std::optional<WindowTimes>>& tried() const { return tried_; }
  // Why the current setting was chosen, in a sentence; empty while the first search goes on.
  const std::string& reason() const { return reason_; }
  // Searches that have ended.
  int searches() const { return searches_; }

 private:
  enum class Change { kNone, kSlowerMessages, kOther, kOthersFaster };
  struct Trial {
    WindowTimes times;  // of its shortest window
    int windows = 0;    // none where only one step is known, or what an earlier search has found
  };
  bool search(const WindowTimes& times);
  bool is_out_of_date(const WindowTimes& times) const;
  void note_window(const WindowTimes& times);
  double fastest_trial() const;
  std::optional<std::size_t> to_measure_again() const;
  bool watch(const WindowTimes& times);
  void settle();
  std::size_t first_to_try(const WindowTimes& times) const;
  void begin_search(std::size_t first);
  void explain();
  Change change_of(const WindowTimes& times) const;

  std::vector<std::string> ladder_;
  std::size_t current_ = 0;
  bool searching_ = true;
  std::size_t before_ = 0;  // the setting when the search began
  std::vector<std::optional<Trial>> trying_;
  std::vector<std::optional<WindowTimes>> tried_;
  bool measures_again_ = false;  // settings that were tried
  bool began_anew_ = false;      // the search that goes on
  bool by_layer_ = false;
  WindowTimes chosen_;  // what the current setting had when it was chosen
  Change last_change_ = Change::kNone;
  int rest_ = 0;  // windows before which no search begins
  int next_rest_ = 0;
  int searches_ = 0;
  std::string reason_;
};

}  // namespace thinwire
