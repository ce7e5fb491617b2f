#include "thinwire/comm/failure/roll_call.h"

#include <algorithm>
#include <future>
#include <iterator>
#include <set>
#include <utility>

#include "thinwire/comm/join/store_log.h"
#include "thinwire/comm/join/store_poll.h"
#include "thinwire/common/error.h"
#include "thinwire/common/thread_apart.h"

namespace thinwire::comm {
namespace {

// How long a store may take to answer before its host counts as gone. The store answers in less
// than a millisecond; a host that swaps or is stopped takes longer, and nobody should wait for it.
constexpr auto kStorePatience = std::chrono::seconds(3);

std::string count_key(int rank) {
  return "thinwire/failure/count/" + std::to_string(rank);
}
constexpr const char* kDeaths = "thinwire/failure/deaths";

std::string prefix_of(std::int64_t round) {
  return "thinwire/failure/" + std::to_string(round);
}

// "kind operation\ntext"; the text may hold anything, an operation no line break.
std::string encode_report(const FailureReport& report) {
  std::string operation = report.operation;
  std::ranges::replace(operation, '\n', ' ');
  return std::to_string(static_cast<int>(report.kind)) + ' ' + operation + '\n' + report.text;
}

FailureReport decode_report(const LogEntry& entry) {
  FailureReport report;
  report.rank = entry.rank;
  const std::size_t blank = entry.text.find(' '), line = entry.text.find('\n');
  if (blank != 1 || line == std::string::npos || entry.text[0] < '0' || entry.text[0] > '3')
    return {FailureReport::Kind::kOther, entry.rank, "", "what it posted cannot be read"};
  report.kind = static_cast<FailureReport::Kind>(entry.text[0] - '0');
  report.operation = entry.text.substr(2, line - 2);
  report.text = entry.text.substr(line + 1);
  return report;
}

bool nobody_is_missing(StoreLog& log, StoreLog& deaths, int size) {
  if (log.count() + deaths.count() < size) return false;
  std::set<int> ranks;  // one may have died after its report
  for (const LogEntry& entry : log.read()) ranks.insert(entry.rank);
  for (const LogEntry& entry : deaths.read()) ranks.insert(entry.rank);
  return std::ssize(ranks) >= size;
}

RollCall call(c10d::Store& store, std::int64_t round, const FailureReport& mine, int size,
              std::chrono::milliseconds patience) {
  StoreLog log(store, prefix_of(round)), deaths(store, kDeaths);
  log.append(mine.rank, encode_report(mine));
  StorePoll poll(2 * size, StorePoll::Clock::now() + patience);  // two requests a look
  while (!nobody_is_missing(log, deaths, size) && poll.pause()) {
  }
  RollCall result;
  std::vector<bool> spoke(static_cast<std::size_t>(size), false);
  for (const LogEntry& entry : log.read()) {
    if (entry.rank >= size || spoke[static_cast<std::size_t>(entry.rank)]) continue;
    spoke[static_cast<std::size_t>(entry.rank)] = true;
    result.reports.push_back(decode_report(entry));
  }
  for (int rank = 0; rank < size; ++rank)
    if (!spoke[static_cast<std::size_t>(rank)]) result.silent.push_back(rank);
  return result;
}

}  // namespace

RollCall call_roll(const c10::intrusive_ptr<c10d::Store>& store, const FailureReport& mine,
                   int size, std::chrono::milliseconds patience) {
  RollCall gone;
  gone.store_is_gone = true;
  try {
    // A store's client blocks for as long as its host is silent. With a connection of its own:
    // another thread of ours may be waiting on the shared one.
    auto begun = on_a_thread_apart([store, rank = mine.rank] {
      const auto connection = store->clone();
      return std::pair(connection, connection->add(count_key(rank), 1));
    });
    if (begun.wait_for(kStorePatience) != std::future_status::ready) return gone;
    auto answer = on_a_thread_apart([begun = begun.get(), mine, size, patience] {
      return call(*begun.first, begun.second, mine, size, patience);
    });
    if (answer.wait_for(patience + kStorePatience) != std::future_status::ready) return gone;
    return answer.get();
  } catch (const std::exception&) {
    return gone;
  }
}

void post_report(c10d::Store& store, const FailureReport& report) {
  const std::int64_t answered = store.add(count_key(report.rank), 0);
  StoreLog(store, prefix_of(answered + 1)).append(report.rank, encode_report(report));
}

void post_death(c10d::Store& store, int rank) {
  StoreLog(store, kDeaths).append(rank, "");
}

bool failure_is_posted(const c10::intrusive_ptr<c10d::Store>& store, int rank) {
  const std::int64_t answered = store->add(count_key(rank), 0);
  return StoreLog(*store, prefix_of(answered + 1)).exists();
}

bool failure_was_posted(c10d::Store& store) {
  return StoreLog(store, prefix_of(1)).exists();
}

}  // namespace thinwire::comm
