#include "thinwire/comm/failure/roll_call.h"

#include <algorithm>
#include <future>
#include <memory>
#include <thread>

#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

using Clock = std::chrono::steady_clock;

// How long a store may take to answer before its host counts as gone. The store answers in less
// than a millisecond; a host that swaps or is stopped takes longer, and nobody should wait for it.
constexpr auto kStorePatience = std::chrono::seconds(3);

std::string count_key(int rank) {
  return concat("thinwire/failure/count/", rank);
}
std::string prefix_of(std::int64_t round) {
  return concat("thinwire/failure/", round, "/");
}

// "kind order text"; the text may hold anything.
std::string encode(const FailureReport& report) {
  return concat(static_cast<int>(report.kind), ' ', report.order, ' ', report.text);
}

FailureReport decode(int rank, const std::string& text) {
  std::istringstream in(text);
  int kind = 0;
  FailureReport report;
  report.rank = rank;
  in >> kind >> report.order;
  in.get();
  report.kind = static_cast<FailureReport::Kind>(kind);
  report.text = text.substr(static_cast<std::size_t>(in.tellg()));
  return report;
}

RollCall call(c10d::Store& store, FailureReport mine, int size,
              std::chrono::milliseconds patience) {
  const std::string prefix = prefix_of(store.add(count_key(mine.rank), 1));
  mine.order = store.add(prefix + "order", 1);
  store.set(concat(prefix, mine.rank), encode(mine));

  RollCall result;
  for (int rank = 0; rank < size; ++rank) result.silent.push_back(rank);
  const auto deadline = Clock::now() + patience;
  auto pause = std::chrono::milliseconds(1);
  while (true) {
    std::erase_if(result.silent, [&](int rank) {
      const std::string key = concat(prefix, rank);
      if (!store.check({key})) return false;
      result.reports.push_back(decode(rank, store.get_to_str(key)));
      return true;
    });
    if (result.silent.empty() || Clock::now() >= deadline) break;
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, std::chrono::milliseconds(50));
  }
  std::ranges::sort(result.reports, {}, &FailureReport::order);
  return result;
}

}  // namespace

RollCall call_roll(const c10::intrusive_ptr<c10d::Store>& store, const FailureReport& mine,
                   int size, std::chrono::milliseconds patience) {
  // On a thread of its own, with a connection of its own: a store's client blocks for as long as
  // its host is silent, and another thread of ours may be waiting on the shared connection.
  auto task = std::make_shared<std::packaged_task<RollCall()>>([store, mine, size, patience] {
    const auto connection = store->clone();
    return call(*connection, mine, size, patience);
  });
  std::future<RollCall> answer = task->get_future();
  std::thread([task] { (*task)(); }).detach();
  RollCall gone;
  gone.store_is_gone = true;
  if (answer.wait_for(patience + kStorePatience) != std::future_status::ready) return gone;
  try {
    return answer.get();
  } catch (const std::exception&) {
    return gone;
  }
}

bool failure_is_posted(const c10::intrusive_ptr<c10d::Store>& store, int rank) {
  const std::int64_t answered = store->add(count_key(rank), 0);
  return store->check({prefix_of(answered + 1) + "order"});
}

}  // namespace thinwire::comm
