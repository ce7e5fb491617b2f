#include "thinwire/launch/elastic_round.h"

#include <random>
#include <string>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "thinwire/comm/join/error_text.h"
#include "thinwire/comm/join/store_poll.h"
#include "thinwire/common/error.h"

namespace thinwire::launch {
namespace {

using comm::StorePoll;
using AnyStore = c10::intrusive_ptr<c10d::Store>;

constexpr const char* kRound = "round";
constexpr const char* kAlive = "alive";

// Not derived from std::exception: nothing that catches errors is to take it for one.
struct AnotherRoundBegan {};

// Of the system, not of the job's seed: two rounds must not have one name.
std::string new_name() {
  std::random_device device;
  return std::to_string((static_cast<std::uint64_t>(device()) << 32) | device());
}

AnyStore part_of(const AnyStore& store, const std::string& round) {
  return c10::make_intrusive<c10d::PrefixStore>("round/" + round, store);
}

Round open_round(const AnyStore& store, const Enrolment& mine, std::chrono::milliseconds timeout) {
  const std::string name = new_name();
  Round round{part_of(store, name), {}};
  store->set(kRound, name);
  round.members = enrol(round.store, 0, mine, timeout, [&] { round.store->add(kAlive, 1); });
  return round;
}

std::string present_round(c10d::Store& store) {
  return store.check({kRound}) ? store.get_to_str(kRound) : "";
}

class Joining {
 public:
  Joining(const AnyStore& store, int rank, const Enrolment& mine, std::chrono::milliseconds timeout)
      : store_(store),
        rank_(rank),
        mine_(mine),
        timeout_(timeout),
        deadline_(StorePoll::Clock::now() + timeout) {}

  Round run() {
    while (true) {
      const std::string name = wait_for_a_living_round();
      Round round{part_of(store_, name), {}};
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
          deadline_ - StorePoll::Clock::now());
      try {
        round.members = enrol(round.store, rank_, mine_, left, [&] {
          if (present_round(*store_) != name) throw AnotherRoundBegan();
        });
        return round;
      } catch (const AnotherRoundBegan&) {
      }
    }
  }

 private:
  // The name of a round whose rank 0 has given a sign of life since this rank first saw it.
  std::string wait_for_a_living_round() {
    StorePoll poll(mine_.size, deadline_);
    std::string name;
    std::int64_t alive = 0;
    do {
      const std::string now = present_round(*store_);
      if (now.empty()) continue;
      const std::int64_t signs = part_of(store_, now)->add(kAlive, 0);
      if (now == name && signs != alive) return name;
      name = now;
      alive = signs;
    } while (poll.pause());
    throw CommError(0, kJoining, 0,
                    concat("rank 0 of ", mine_.size, " did not come within ",
                           static_cast<double>(timeout_.count()) / 1000, " s"));
  }

  const AnyStore& store_;
  int rank_;
  const Enrolment& mine_;
  std::chrono::milliseconds timeout_;
  StorePoll::Clock::time_point deadline_;
};

}  // namespace

Round enrol_in_round(const AnyStore& store, int rank, const Enrolment& mine,
                     std::chrono::milliseconds timeout) {
  try {
    if (rank == 0) return open_round(store, mine, timeout);
    return Joining(store, rank, mine, timeout).run();
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw CommError(0, kJoining, 0, concat("the job's store is gone: ", comm::error_text(error)));
  }
}

}  // namespace thinwire::launch
