#include "thinwire/comm/join/meet.h"

#include <algorithm>
#include <thread>
#include <vector>

#include "thinwire/common/error.h"
#include "thinwire/common/log.h"

namespace thinwire::comm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::string_view kDeclined = "declined: ";

std::string key_of(int rank) {
  return concat("thinwire/rank/", rank);
}

// Compares what the peer posted with what this rank means.
void check_peer(int rank, int peer, const std::string& mine, const std::string& theirs) {
  check(!theirs.starts_with(kDeclined), "rank ", peer,
        " cannot join the process group: ", theirs.substr(kDeclined.size()));
  check(theirs == mine, "the ranks disagree: rank ", rank, " makes a process group of ", mine,
        ", rank ", peer, " one of ", theirs);
}

// Looks at the ranks still absent, in order, until all have come or `deadline` has passed; returns
// those that have not. Polls, since a rank that waited for a key could not learn that another one
// disagrees; what is posted decides, so every rank of a failing group fails at once.
std::vector<int> wait_for_peers(c10d::Store& store, int rank, int size, const std::string& mine,
                                Clock::time_point deadline) {
  std::vector<int> absent;
  for (int peer = 0; peer < size; ++peer) absent.push_back(peer);
  auto pause = std::chrono::milliseconds(1);
  while (true) {
    std::erase_if(absent, [&](int peer) {
      if (!store.check({key_of(peer)})) return false;
      check_peer(rank, peer, mine, store.get_to_str(key_of(peer)));
      return true;
    });
    if (absent.empty() || Clock::now() >= deadline) return absent;
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, std::chrono::milliseconds(50));
  }
}

}  // namespace

void meet(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size,
          const std::string& backend, std::chrono::milliseconds timeout) {
  const std::string operation = concat("making a process group over ", backend);
  const std::string mine = concat(size, " rank(s) over ", backend);
  std::vector<int> absent;
  try {
    check(store->add(concat("thinwire/claims/", rank), 1) == 1, "two processes claim rank ", rank,
          " of ", size, ", or the store's prefix is that of another process group");
    store->set(key_of(rank), mine);
    absent = wait_for_peers(*store, rank, size, mine, Clock::now() + timeout);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw CommError(-1, operation, 0, concat("the store is unreachable: ", error.what()));
  }
  if (absent.empty()) return;
  std::string names;
  for (int peer : absent) names += concat(names.empty() ? "" : ", ", peer);
  throw CommError(absent.front(), operation, 0,
                  concat("rank(s) ", names, " of ", size, " did not come within ",
                         static_cast<double>(timeout.count()) / 1000, " s"));
}

void decline(const c10::intrusive_ptr<c10d::Store>& store, int rank,
             const std::string& reason) noexcept {
  try {
    store->set(key_of(rank), concat(kDeclined, reason));
  } catch (const std::exception& error) {
    log::debug("the other ranks could not be told of a failure: ", error.what());
  }
}

}  // namespace thinwire::comm
