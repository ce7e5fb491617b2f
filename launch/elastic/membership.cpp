#include "thinwire/launch/elastic/membership.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "thinwire/comm/failure/failure_board.h"
#include "thinwire/comm/failure/roll_call.h"
#include "thinwire/comm/join/error_text.h"
#include "thinwire/comm/join/store_log.h"
#include "thinwire/comm/join/store_meeting.h"
#include "thinwire/common/error.h"
#include "thinwire/common/log.h"

namespace thinwire::launch {
namespace {

constexpr auto kPulse = std::chrono::milliseconds(200);
constexpr auto kLook = std::chrono::milliseconds(20);
constexpr auto kLookAtLifelines = std::chrono::milliseconds(100);
constexpr const char* kMembers = "members";
constexpr const char* kLatest = "latest";
constexpr const char* kHasLeft = "left";
constexpr const char* kHasEnded = "has_ended";
constexpr const char* kWatching = "watching the other ranks";
constexpr const char* kNextWorld = "agreeing on the next world";

std::string pulse_key(int id) {
  return concat("pulse/", id);
}

std::vector<int> ids_of(const std::vector<Candidate>& ranks) {
  std::vector<int> ids;
  for (const Candidate& rank : ranks) ids.push_back(rank.id);
  return ids;
}

int rank_in(const std::vector<Candidate>& ranks, int id) {
  const auto found = std::ranges::find(ranks, id, &Candidate::id);
  return found == ranks.end() ? -1 : static_cast<int>(found - ranks.begin());
}

std::vector<std::uint8_t> store_bytes(const std::string& text) {
  return {text.begin(), text.end()};
}

}  // namespace

Membership::Membership(c10::intrusive_ptr<c10d::Store> store, MembershipOptions options)
    : store_(std::move(store)), options_(std::move(options)), lifeline_(options_.host) {
  id_ = static_cast<int>(store_->add(kMembers, 1));
  store_->add(pulse_key(id_), 1);
  pulse_ = std::thread([this, connection = store_->clone()]() mutable {
    std::unique_lock lock(mutex_);
    try {
      while (!stop_.wait_for(lock, kPulse, [this] { return stopping_; })) {
        lock.unlock();
        beat(*connection);
        lock.lock();
      }
      connection->set(pulse_key(id_), store_bytes(kHasLeft));
    } catch (const std::exception& error) {
      // The store is gone, or this process is cut off from it: then it is in no world any more.
      log::debug("the store does not answer: ", error.what());
      called_ = true;
    }
  });
}

Membership::~Membership() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_all();
  pulse_.join();
}

// On the thread of the pulse.
void Membership::beat(c10d::Store& store) {
  lifeline_.hang_up();
  int id = 0;
  std::int64_t generation = 0;
  std::vector<Candidate> ranks;
  c10::intrusive_ptr<c10d::Store> board;
  bool makes_world = false;
  {
    const std::lock_guard lock(mutex_);
    id = id_;
    generation = generation_;
    ranks = ranks_;
    board = board_;
    makes_world = makes_world_;
  }
  store.add(pulse_key(id), 1);
  look(store, ids_of(ranks));
  if (comm::StoreLog(store, key("asked", generation + 1)).exists()) {
    const std::lock_guard lock(mutex_);
    if (generation == generation_) called_ = true;
  }
  if (board == nullptr) return;
  const int mine = rank_in(ranks, id);
  if (makes_world || called_ || comm::failure_was_posted(*board)) look_at_lifelines(ranks);
  tell_of_the_dead(*board, ranks, mine);
}

void Membership::look(c10d::Store& store, const std::vector<int>& ids) {
  if (ids.empty()) return;
  std::vector<std::string> keys;
  for (const int id : ids) keys.push_back(pulse_key(id));
  const auto values = store.multiGet(keys);
  const auto now = Clock::now();
  const std::lock_guard lock(mutex_);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const std::string value(values[i].begin(), values[i].end());
    const auto [found, is_first] = signs_.try_emplace(ids[i], Sign{.value = value, .seen = now});
    Sign& sign = found->second;
    if (!is_first && sign.value != value) {
      sign.value = value;
      sign.seen = now;
    }
    sign.has_left = value == kHasLeft;
  }
}

void Membership::look_at_lifelines(const std::vector<Candidate>& ranks) {
  std::vector<std::string> addresses;
  for (const Candidate& rank : ranks) addresses.push_back(rank.lifeline);
  const std::vector<Answer> answers = look_at(addresses, kLookAtLifelines);
  const std::lock_guard lock(mutex_);
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    const auto sign = signs_.find(ranks[i].id);
    if (sign == signs_.end()) continue;
    sign->second.has_a_line = sign->second.has_a_line || answers[i] == Answer::kAccepted;
    sign->second.has_ended = sign->second.has_a_line && answers[i] == Answer::kRefused;
  }
}

bool Membership::lives(int id) {
  const std::lock_guard lock(mutex_);
  if (id == id_) return true;
  const auto found = signs_.find(id);
  if (found == signs_.end()) return true;
  const Sign& sign = found->second;
  return !sign.has_left && !sign.has_ended && Clock::now() - sign.seen < options_.dead_after;
}

void Membership::tell_of_the_dead(c10d::Store& board, const std::vector<Candidate>& ranks,
                                  int mine) {
  std::vector<int> dead;
  for (int rank = 0; rank < std::ssize(ranks); ++rank) {
    const int id = ranks[static_cast<std::size_t>(rank)].id;
    if (lives(id)) continue;
    {
      const std::lock_guard lock(mutex_);
      if (!posted_.insert(id).second) continue;
    }
    comm::post_death(board, rank);
    dead.push_back(rank);
  }
  if (dead.empty()) return;
  comm::post_report(board, {comm::FailureReport::Kind::kComm, mine, kWatching,
                            concat("rank(s) ", comm::list_of(dead), " of ", ranks.size(),
                                   " have ended, or have given no sign of life for ",
                                   static_cast<double>(options_.dead_after.count()) / 1000, " s")});
}

void Membership::watch(const c10d::ProcessGroup& group) {
  auto board = comm::DuplicateStore::board_of(group.getStore())->clone();
  const std::lock_guard lock(mutex_);
  board_ = std::move(board);
  makes_world_ = true;
  posted_.clear();
}

void Membership::world_is_made() {
  const std::lock_guard lock(mutex_);
  makes_world_ = false;
}

void Membership::watch_no_longer() {
  const std::lock_guard lock(mutex_);
  board_ = nullptr;
}

std::string Membership::key(const std::string& name, std::int64_t generation) const {
  return concat(name, "/", generation);
}

// Who writes a roster counts it afterwards, or dies before.
std::int64_t Membership::latest_generation() {
  std::int64_t latest = store_->add(kLatest, 0);
  while (store_->check({key("roster", latest + 1)})) ++latest;
  return latest;
}

std::vector<Candidate> Membership::living_candidates(std::int64_t generation) {
  std::vector<Candidate> candidates;
  for (const comm::LogEntry& entry : comm::StoreLog(*store_, key("asked", generation)).read()) {
    const Candidate candidate = candidate_from_text(entry.text);
    // Who has given up and asks again counts once, as it is now.
    const auto known = std::ranges::find(candidates, candidate.id, &Candidate::id);
    if (known != candidates.end()) {
      *known = candidate;
      continue;
    }
    candidates.push_back(candidate);
  }
  std::vector<Candidate> all = candidates;
  for (const Candidate& rank : roster_.ranks)
    if (rank_in(all, rank.id) < 0) all.push_back(rank);
  look(*store_, ids_of(all));
  if (Clock::now() - looked_at_lifelines_ >= kPulse) {
    look_at_lifelines(all);
    looked_at_lifelines_ = Clock::now();
  }
  std::erase_if(candidates, [&](const Candidate& one) { return !lives(one.id); });
  return candidates;
}

bool Membership::is_complete(const std::vector<Candidate>& candidates) {
  if (roster_.generation == 0) return std::ssize(candidates) >= options_.expected;
  std::int64_t kept = 0;
  for (const Candidate& rank : roster_.ranks) {
    const bool asks = std::ranges::find(candidates, rank.id, &Candidate::id) != candidates.end();
    if (!asks && lives(rank.id)) return false;
    kept += asks ? 1 : 0;
  }
  // With a number that the program has named, whoever comes counts.
  return (options_.min_ranks > 0 ? std::ssize(candidates) : kept) >=
         quorum(roster_, options_.min_ranks);
}

std::string Membership::who_is_missing(const std::vector<Candidate>& candidates) {
  if (roster_.generation == 0)
    return concat(candidates.size(), " of ", options_.expected,
                  " ranks have come to begin the training");
  std::vector<int> missing;
  for (int rank = 0; rank < roster_.size(); ++rank) {
    const int id = roster_.ranks[static_cast<std::size_t>(rank)].id;
    if (std::ranges::find(candidates, id, &Candidate::id) == candidates.end())
      missing.push_back(rank);
  }
  return concat(candidates.size(), " rank(s) are here, rank(s) ", comm::list_of(missing), " of ",
                roster_.size(), " are missing, and at least ", quorum(roster_, options_.min_ranks),
                options_.min_ranks > 0 ? " (min_ranks)" : ", more than half,",
                " must go on together");
}

bool Membership::join_next(bool is_new, const std::vector<std::int64_t>& finished) {
  watch_no_longer();
  has_finished_ = false;
  bool was_left_out = false;
  std::int64_t asked = 0;
  const auto deadline = Clock::now() + options_.patience;
  try {
    while (true) {
      const std::int64_t latest = latest_generation();
      if (latest > roster_.generation) {
        const Roster known = roster_from_text(store_->get_to_str(key("roster", latest)));
        const bool is_in = known.rank_of(id_) >= 0;
        was_left_out = was_left_out || (roster_.rank_of(id_) >= 0 && !is_in);
        {
          const std::lock_guard lock(mutex_);
          roster_ = known;
          generation_ = known.generation;
          ranks_ = known.ranks;
          called_ = false;
        }
        if (is_in && asked == known.generation) {
          // While they live, so that a refusal later means something.
          look(*store_, ids_of(roster_.ranks));
          look_at_lifelines(roster_.ranks);
          return !was_left_out;
        }
      }
      const std::int64_t next = latest + 1;
      if (asked < next) {
        if (was_left_out) {
          is_new = true;
          const int id = static_cast<int>(store_->add(kMembers, 1));
          store_->add(pulse_key(id), 1);
          const std::lock_guard lock(mutex_);
          id_ = id;
        }
        const Candidate mine{id_, options_.hint, is_new, finished, lifeline_.address()};
        comm::StoreLog(*store_, key("asked", next)).append(id_, to_text(mine));
        asked = next;
      }
      const std::vector<Candidate> candidates = living_candidates(next);
      if (is_complete(candidates)) {
        Roster complete = make_roster(roster_, candidates);
        complete.writer = id_;
        const std::string text = to_text(complete);
        const std::string first = store_->compareSet(key("roster", next), "", text);
        if (first == text) store_->add(kLatest, 1);
        continue;
      }
      if (store_->check({kHasEnded})) throw CommError(-1, kNextWorld, 0, "the training has ended");
      if (Clock::now() > deadline) throw CommError(-1, kNextWorld, 0, who_is_missing(candidates));
      std::this_thread::sleep_for(kLook);
    }
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw CommError(-1, kNextWorld, 0,
                    concat("the job's store does not answer: ", comm::error_text(error)));
  }
}

void Membership::finish() {
  if (std::exchange(has_finished_, true)) return;
  comm::StoreLog(*store_, key("finished", roster_.generation)).append(id_, "");
}

bool Membership::all_have_finished() {
  std::vector<int> finished;
  for (const comm::LogEntry& entry :
       comm::StoreLog(*store_, key("finished", roster_.generation)).read())
    finished.push_back(entry.rank);
  const bool all = std::ranges::all_of(roster_.ranks, [&](const Candidate& rank) {
    return std::ranges::find(finished, rank.id) != finished.end() || !lives(rank.id);
  });
  if (all) store_->set(kHasEnded, store_bytes("1"));
  return all;
}

}  // namespace thinwire::launch
