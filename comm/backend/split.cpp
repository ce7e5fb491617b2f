#include "thinwire/comm/backend/split.h"

#include <algorithm>
#include <charconv>
#include <tuple>
#include <vector>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "thinwire/comm/backend/reconnect.h"
#include "thinwire/comm/failure/failure.h"
#include "thinwire/comm/join/store_meeting.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

// "COLOR KEY " of every rank, in rank order.
std::string choices_by_rank(std::vector<LogEntry> words) {
  std::ranges::stable_sort(words, {}, &LogEntry::rank);
  std::string choices;
  for (const LogEntry& word : words) choices += word.text;
  return choices;
}

std::vector<int> numbers_of(const std::string& text) {
  std::vector<int> numbers;
  const char* next = text.data();
  const char* const end = next + text.size();
  while (next < end) {
    int number = 0;
    const auto [stop, error] = std::from_chars(next, end, number);
    THINWIRE_ASSERT(error == std::errc() && stop < end);
    numbers.push_back(number);
    next = stop + 1;
  }
  return numbers;
}

// The color and key of every rank.
std::vector<int> exchange_choices(const c10d::ProcessGroup& group, const std::string& meeting_key,
                                  int color, int key) {
  const std::string operation = "splitting a process group";
  const auto store = group.getStore();
  const auto timeout = group.getDefaultBackend()->getBackendOptions()->timeout;
  try {
    StoreMeeting meeting(*store, meeting_key, group.getRank(), group.getSize());
    return numbers_of(meeting.meet(std::to_string(color) + ' ' + std::to_string(key) + ' ',
                                   choices_by_rank, operation, timeout));
  } catch (...) {
    raise_collective_failure(group, operation, 0, std::current_exception());
  }
}

}  // namespace

c10::intrusive_ptr<c10d::ProcessGroup> split(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                                             int color, int key) {
  check(group != nullptr, "there is no process group to split");
  const auto store = group->getStore();
  check(store != nullptr,
        "a process group without a store cannot be split: make it with make_process_group() or "
        "give its constructor the store");
  // No rank begins its next split before all have come to this one.
  const std::int64_t count = (store->add("thinwire/splits", 1) - 1) / group->getSize();
  const std::string name = "split/" + std::to_string(count);
  const std::vector<int> choices = exchange_choices(*group, name, color, key);
  if (color < 0) return nullptr;
  std::vector<int> ranks;
  const auto key_of = [&](int rank) { return choices.at(2 * static_cast<std::size_t>(rank) + 1); };
  for (int rank = 0; rank < group->getSize(); ++rank)
    if (choices.at(2 * static_cast<std::size_t>(rank)) == color) ranks.push_back(rank);
  std::ranges::stable_sort(ranks, {}, key_of);
  return connect_again(
      group, c10::make_intrusive<c10d::PrefixStore>(name + "/" + std::to_string(color), store),
      ranks, "splitting a process group", /*bare=*/false);
}

}  // namespace thinwire::comm
