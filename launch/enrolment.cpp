#include "thinwire/launch/enrolment.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "thinwire/comm/join/error_text.h"
#include "thinwire/comm/join/store_meeting.h"
#include "thinwire/comm/join/store_poll.h"
#include "thinwire/common/error.h"
#include "thinwire/common/log.h"

namespace thinwire::launch {

// Beside the type, where argument-dependent look-up finds it.
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Enrolment, size, local_rank, host, backend, has_mpi, gpus,
                                   visible_devices, problem, settings)

namespace {

using Clock = comm::StorePoll::Clock;
using Json = nlohmann::json;
using Between = std::function<void()>;

// What a rank that has come needs, on a busy machine, to read why the job failed.
constexpr auto kReading = std::chrono::seconds(2);
constexpr const char* kMeeting = "enrol";

// The error that ends the job before it starts, on every rank alike. The first one posted counts.
struct Trouble {
  bool is_mistake = false;  // InvalidArgument, else CommError
  int rank = -1;            // at fault, for a CommError
  int audience = 0;         // how many ranks are to read it
  std::string text;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Trouble, is_mistake, rank, audience, text)

std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// The outcome of the meeting is an object where it is trouble, a list where all is well.
std::optional<Trouble> trouble_of(const std::string& outcome) {
  const Json json = Json::parse(outcome);
  if (!json.is_object()) return std::nullopt;
  return json.get<Trouble>();
}

[[noreturn]] void raise(const Trouble& trouble) {
  if (trouble.is_mistake) throw InvalidArgument(trouble.text);
  throw CommError(trouble.rank, kJoining, 0, trouble.text);
}

// Counts this rank as one that knows why the job failed, and waits for the others: until `deadline`
// for the `audience`, from then on for those that have come, less the `dead`, and for kReading at
// least.
void leave(c10d::Store& store, int size, int audience, int dead, Clock::time_point deadline,
           const std::string& reason, const Between& between) noexcept {
  try {
    auto left = store.add("left", 1);
    const auto begin = Clock::now();
    const auto end = std::max(deadline, begin + kReading);
    comm::StorePoll poll(size, end);
    bool told = false;
    while (true) {
      const auto now = Clock::now();
      const auto arrived = store.add("arrived", 0) - dead;
      const auto readers = now < deadline ? std::max<std::int64_t>(audience, arrived) : arrived;
      if (left >= readers) return;
      if (!told && !reason.empty() && now >= begin + kReading) {
        told = true;
        log::warn(reason, "; ", readers - left, " of ", readers,
                  " ranks have not come to read this, waiting for them up to ",
                  std::chrono::duration_cast<std::chrono::seconds>(end - now).count(), " s more");
      }
      if (between) between();
      if (!poll.pause()) return;
      left = store.add("left", 0);
    }
  } catch (...) {
    // The store is gone, and with it whoever could be waiting; or nobody waits any more.
  }
}

// Ranks that follow each other differ in their local rank alone, mostly: they share a row, which
// tells how many they are, and each is one more than the one before.
std::string roster_of(std::vector<comm::LogEntry> words) {
  std::ranges::stable_sort(words, {}, &comm::LogEntry::rank);
  Json rows = Json::array();
  Enrolment next;
  for (const comm::LogEntry& word : words) {
    auto member = Json::parse(word.text).get<Enrolment>();
    member.settings.clear();
    if (!rows.empty() && member == next) {
      rows.back()["ranks"] = rows.back()["ranks"].get<int>() + 1;
    } else {
      rows.push_back(member);
      rows.back()["ranks"] = 1;
    }
    next = member;
    if (next.local_rank >= 0) ++next.local_rank;
  }
  return dump(rows);
}

std::vector<Enrolment> members_of(const std::string& roster) {
  std::vector<Enrolment> members;
  for (const Json& row : Json::parse(roster)) {
    auto member = row.get<Enrolment>();
    for (int i = row.at("ranks").get<int>(); i > 0; --i) {
      members.push_back(member);
      if (member.local_rank >= 0) ++member.local_rank;
    }
  }
  return members;
}

class Enrolling {
 public:
  Enrolling(c10d::Store& store, int rank, const Enrolment& mine, std::chrono::milliseconds timeout)
      : store_(store),
        meeting_(store, kMeeting, rank, mine.size),
        rank_(rank),
        mine_(mine),
        timeout_(timeout),
        deadline_(Clock::now() + timeout) {}

  std::vector<Enrolment> run(const Between& between) {
    const auto came = store_.add("arrived", 1);
    if (!mine_.problem.empty()) fail(true, rank_, concat("rank ", rank_, ": ", mine_.problem));
    compare_with_the_first();
    if (came > mine_.size)
      fail(
          true, rank_,
          concat("more processes than the ", mine_.size, " of the job have come, this one as rank ",
                 rank_, "; is another job using the same MASTER_ADDR and MASTER_PORT?"));
    comm::StorePoll poll(mine_.size, deadline_);
    const std::string outcome = meeting_.attend(
        dump(mine_), [this](const auto& words) { return judge(words); },
        [&] {
          if (between) between();
          if (!poll.pause()) give_up();
        });
    if (const auto trouble = trouble_of(outcome)) raise_trouble(*trouble);
    meeting_.leave();
    return members_of(outcome);
  }

  // How many ranks are to read what this one has thrown.
  int audience() const { return audience_; }
  Clock::time_point deadline() const { return deadline_; }

 private:
  // Ranks that disagree on the size would wait for different numbers of others, so nobody waits
  // before having compared.
  void compare_with_the_first() {
    const Json mine = {{"rank", rank_}, {"word", mine_}};
    const Json found = Json::parse(store_.compareSet("first", "", dump(mine)));
    const auto first = found.at("word").get<Enrolment>();
    const int other = found.at("rank").get<int>();
    const auto disagree = [&](const std::string& what, const std::string& theirs,
                              const std::string& ours, int audience = 0) {
      fail(true, rank_,
           concat("the ranks disagree on ", what, ": rank ", other, " ", theirs, ", rank ", rank_,
                  " ", ours),
           audience);
    };
    if (first.size != mine_.size)
      disagree("the size of the job", concat("was told ", first.size),
               concat("was told ", mine_.size, "; WORLD_SIZE must be the same everywhere"),
               std::min(first.size, mine_.size));
    if (first.backend != mine_.backend)
      disagree("the backend", concat("asks for '", first.backend, "'"),
               concat("for '", mine_.backend, "'"));
    for (std::size_t i = 0; i < std::min(first.settings.size(), mine_.settings.size()); ++i) {
      const auto& [name, value] = mine_.settings[i];
      if (first.settings[i] != mine_.settings[i])
        disagree(name, concat("has '", first.settings[i].second, "'"), concat("has '", value, "'"));
    }
  }

  std::string judge(const std::vector<comm::LogEntry>& words) const {
    std::vector<bool> came(static_cast<std::size_t>(mine_.size), false);
    for (const comm::LogEntry& word : words) {
      const auto rank = static_cast<std::size_t>(word.rank);
      if (rank < came.size() && !came[rank]) {
        came[rank] = true;
        continue;
      }
      return dump(Json(Trouble{true, word.rank, mine_.size,
                               concat("two processes claim rank ", word.rank, " of ", mine_.size,
                                      "; is another job using the same MASTER_ADDR and "
                                      "MASTER_PORT?")}));
    }
    return roster_of(words);
  }

  [[noreturn]] void give_up() {
    const std::vector<int> absent = meeting_.absent();
    const double seconds = static_cast<double>(timeout_.count()) / 1000;
    if (absent.empty())
      fail(false, 0, concat("all ranks came, but rank 0 did not say so within ", seconds, " s"));
    fail(false, absent.front(),
         concat(absent.size() == 1 ? "rank " : "ranks ", comm::list_of(absent), " of ", mine_.size,
                " did not come within ", seconds, " s"));
  }

  [[noreturn]] void fail(bool is_mistake, int rank, const std::string& text, int audience = 0) {
    const Trouble mine{is_mistake, rank, audience == 0 ? mine_.size : audience, text};
    // Where the others have started already, this process alone is one too many.
    raise_trouble(trouble_of(meeting_.end(dump(Json(mine)))).value_or(mine));
  }

  [[noreturn]] void raise_trouble(const Trouble& trouble) {
    audience_ = trouble.audience;
    raise(trouble);
  }

  c10d::Store& store_;
  comm::StoreMeeting meeting_;
  int rank_;
  const Enrolment& mine_;
  std::chrono::milliseconds timeout_;
  Clock::time_point deadline_;
  int audience_ = 0;
};

}  // namespace

std::vector<Enrolment> enrol(const c10::intrusive_ptr<c10d::Store>& store, int rank,
                             const Enrolment& mine, std::chrono::milliseconds timeout,
                             const std::function<void()>& between) {
  Enrolling enrolling(*store, rank, mine, timeout);
  try {
    return enrolling.run(between);
  } catch (const Error& error) {
    leave(*store, mine.size, enrolling.audience(), 0, enrolling.deadline(), error.what(), between);
    throw;
  } catch (const std::exception& error) {
    throw CommError(0, kJoining, 0, concat("the job's store is gone: ", comm::error_text(error)));
  }
}

void leave_failed_job(c10d::Store& store, int size, int dead) noexcept {
  leave(store, size, 0, dead, Clock::now(), "", {});
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
  // srun is one of MPI's launchers where it was told so: --mpi=pmix.
  const bool may_start_mpi = starts_mpi(launcher) || launcher == Launcher::kSlurm;
  return may_start_mpi && all_have_mpi ? "mpi" : "gloo";
}

}  // namespace thinwire::launch
