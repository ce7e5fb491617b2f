#include "thinwire/launch/enrolment.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "thinwire/common/error.h"
#include "thinwire/common/log.h"
#include "thinwire/launch/error_text.h"

namespace thinwire::launch {

// Beside the type, where argument-dependent look-up finds it.
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Enrolment, size, local_rank, host, backend, has_mpi, gpus,
                                   visible_devices, problem)

namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::json;

constexpr const char* kTrouble = "trouble";
// What a rank that has come needs, on a busy machine, to read why the job failed.
constexpr auto kReading = std::chrono::seconds(2);

std::string key_of(int rank) {
  return concat("rank/", rank);
}

// The error that ends the job before it starts, on every rank alike. The first one posted counts.
struct Trouble {
  bool is_mistake = false;  // InvalidArgument, else CommError
  int rank = -1;            // at fault, for a CommError
  int audience = 0;         // how many ranks are to read it
  std::string text;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Trouble, is_mistake, rank, audience, text)

[[noreturn]] void raise(const Trouble& trouble) {
  if (trouble.is_mistake) throw InvalidArgument(trouble.text);
  throw CommError(trouble.rank, kJoining, 0, trouble.text);
}

// Counts this rank as one that knows why the job failed, and waits for the others: until `deadline`
// for the whole audience, from then on for those that have come, and for kReading at least.
void leave(c10d::Store& store, Clock::time_point deadline, const std::string& reason) noexcept {
  try {
    auto left = store.add("left", 1);
    const bool posted = store.check({kTrouble});
    const int audience =
        posted ? Json::parse(store.get_to_str(kTrouble)).get<Trouble>().audience : 0;
    const auto begin = Clock::now();
    const auto end = std::max(deadline, begin + kReading);
    bool told = false;
    for (auto now = begin; now < end; now = Clock::now()) {
      const auto arrived = store.add("arrived", 0);
      const auto readers = now < deadline ? std::max<std::int64_t>(audience, arrived) : arrived;
      if (left >= readers) return;
      if (!told && now >= begin + kReading) {
        told = true;
        log::warn(reason, "; ", readers - left, " of ", readers,
                  " ranks have not come to read this, waiting for them up to ",
                  std::chrono::duration_cast<std::chrono::seconds>(end - now).count(), " s more");
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      left = store.add("left", 0);
    }
  } catch (const std::exception&) {
    // The store is gone, and with it whoever could be waiting.
  }
}

std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

class Enrolling {
 public:
  Enrolling(c10d::Store& store, int rank, const Enrolment& mine)
      : store_(store), rank_(rank), backend_(mine.backend) {
    const auto size = static_cast<std::size_t>(mine.size);
    members_.resize(size);
    for (int peer = 0; peer < mine.size; ++peer) absent_.push_back(peer);
    store_.add("arrived", 1);
    const auto claims = store_.add(concat("claims/", rank), 1);
    if (claims != 1) {
      fail(true, rank,
           concat("two processes claim rank ", rank, " of ", mine.size,
                  "; is another job using the same MASTER_ADDR and MASTER_PORT?"));
    }
    store_.set(key_of(rank), dump(mine));
    if (!mine.problem.empty()) fail(true, rank, concat("rank ", rank, ": ", mine.problem));
  }

  // Returns whether all have come.
  bool look_for_peers() {
    if (store_.check({kTrouble})) raise(Json::parse(store_.get_to_str(kTrouble)).get<Trouble>());
    std::erase_if(absent_, [&](int peer) {
      if (!store_.check({key_of(peer)})) return false;
      auto& member = members_[static_cast<std::size_t>(peer)];
      member = Json::parse(store_.get_to_str(key_of(peer))).get<Enrolment>();
      // Before anything else, for a rank with a problem may not know what it wants.
      if (!member.problem.empty()) fail(true, peer, concat("rank ", peer, ": ", member.problem));
      const auto size = static_cast<int>(members_.size());
      if (member.size != size)
        fail(true, peer, size_mismatch(size, peer, member.size), std::min(size, member.size));
      if (member.backend != backend_) fail(true, peer, backend_mismatch(peer, member.backend));
      return true;
    });
    return absent_.empty();
  }

  [[noreturn]] void give_up(std::chrono::milliseconds timeout) {
    std::string names;
    for (const int peer : absent_) names += concat(names.empty() ? "" : ", ", peer);
    fail(false, absent_.front(),
         concat(absent_.size() == 1 ? "rank " : "ranks ", names, " of ", members_.size(),
                " did not come within ", static_cast<double>(timeout.count()) / 1000, " s"));
  }

  std::vector<Enrolment> members() && { return std::move(members_); }

 private:
  std::string size_mismatch(int mine, int peer, int theirs) const {
    return concat("the ranks disagree on the size of the job: rank ", rank_, " was told ", mine,
                  ", rank ", peer, " was told ", theirs,
                  "; WORLD_SIZE must be the same everywhere");
  }

  std::string backend_mismatch(int peer, const std::string& theirs) const {
    return concat("the ranks disagree on the backend: rank ", rank_, " asks for '", backend_,
                  "', rank ", peer, " for '", theirs, "'");
  }

  [[noreturn]] void fail(bool is_mistake, int rank, const std::string& text, int audience = 0) {
    if (audience == 0) audience = static_cast<int>(members_.size());
    const std::string posted =
        store_.compareSet(kTrouble, "", dump(Json(Trouble{is_mistake, rank, audience, text})));
    raise(Json::parse(posted).get<Trouble>());
  }

  c10d::Store& store_;
  int rank_;
  std::string backend_;
  std::vector<Enrolment> members_;
  std::vector<int> absent_;
};

std::vector<Enrolment> enrol_or_throw(c10d::Store& store, int rank, const Enrolment& mine,
                                      std::chrono::milliseconds timeout,
                                      Clock::time_point deadline) {
  auto pause = std::chrono::milliseconds(1);
  Enrolling enrolling(store, rank, mine);
  while (!enrolling.look_for_peers()) {
    if (Clock::now() >= deadline) enrolling.give_up(timeout);
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, std::chrono::milliseconds(50));
  }
  return std::move(enrolling).members();
}

}  // namespace

std::vector<Enrolment> enrol(const c10::intrusive_ptr<c10d::Store>& store, int rank,
                             const Enrolment& mine, std::chrono::milliseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  try {
    return enrol_or_throw(*store, rank, mine, timeout, deadline);
  } catch (const Error& error) {
    leave(*store, deadline, error.what());
    throw;
  } catch (const std::exception& error) {
    throw CommError(0, kJoining, 0, concat("the job's store is gone: ", error_text(error)));
  }
}

void leave_failed_job(c10d::Store& store) noexcept {
  leave(store, Clock::now(), "");
}

void complete_local_ranks(RankEnv& env, std::vector<Enrolment>& members) {
  std::map<std::string, int> next;
  for (auto& member : members) {
    const int counted = next[member.host]++;
    if (member.local_rank < 0) member.local_rank = counted;
  }
  const auto& mine = members[static_cast<std::size_t>(env.rank)];
  if (env.local_rank < 0) env.local_rank = mine.local_rank;
  if (env.local_size == 0) env.local_size = next[mine.host];
}

int cuda_device_of(const Enrolment& member) {
  if (member.gpus == 1) return 0;
  return member.local_rank < member.gpus ? member.local_rank : -1;
}

std::string choose_backend(const std::vector<Enrolment>& members, Launcher launcher) {
  const std::string& wish = members.front().backend;
  if (wish != "auto") return wish;

  const bool all_have_mpi =
      std::ranges::all_of(members, [](const Enrolment& member) { return member.has_mpi; });
  return launcher == Launcher::kMpirun && all_have_mpi ? "mpi" : "gloo";
}

}  // namespace thinwire::launch
