#include "thinwire/comm/failure/agreement.h"

#include <ATen/ops/empty.h>
#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <vector>

#include "thinwire/comm/failure/failure.h"
#include "thinwire/comm/failure/guard.h"
#include "thinwire/comm/join/error_text.h"
#include "thinwire/comm/join/store_meeting.h"
#include "thinwire/comm/join/store_poll.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

// The outcomes of the meeting: all have one text, rank R (the number follows) is the first whose
// text is not that of rank 0, or a rank has none and says why.
constexpr std::string_view kSame = "same", kDiffers = "differs ", kRefused = "refused ";

// The first line in which two texts differ, as "'a' on rank 0, 'b' on rank 2".
std::string first_difference(std::string_view zero, std::string_view other, int rank) {
  std::size_t line = 1;
  while (!zero.empty() || !other.empty()) {
    const std::string_view a = zero.substr(0, zero.find('\n'));
    const std::string_view b = other.substr(0, other.find('\n'));
    if (a != b) {
      const auto quoted = [](std::string_view text) {
        return text.empty() ? std::string("nothing") : concat("'", text, "'");
      };
      return concat("line ", line, " is ", quoted(a), " on rank 0 and ", quoted(b), " on rank ",
                    rank);
    }
    zero.remove_prefix(std::min(zero.size(), a.size() + 1));
    other.remove_prefix(std::min(other.size(), b.size() + 1));
    ++line;
  }
  return "they differ in trailing newlines";
}

std::chrono::milliseconds timeout_of(const c10d::ProcessGroup& group, const c10d::Store& store) {
  try {
    return group.getDefaultBackend()->getBackendOptions()->timeout;
  } catch (const c10::Error&) {
    return store.getTimeout();  // the backend has no options
  }
}

std::string hash_word(std::string_view text) {
  return std::to_string(XXH3_64bits(text.data(), text.size()));
}

// On rank 0: which rank, if any, is the first that differs from it.
std::string compare_words(const std::vector<LogEntry>& words) {
  const auto zero = std::ranges::find(words, 0, &LogEntry::rank);
  THINWIRE_ASSERT(zero != words.end());
  const LogEntry* odd = nullptr;
  for (const LogEntry& word : words)
    if (word.text != zero->text && (odd == nullptr || word.rank < odd->rank)) odd = &word;
  return std::string(odd == nullptr ? kSame : kDiffers) +
         (odd == nullptr ? "" : std::to_string(odd->rank));
}

// One agreement of this rank with the others.
class TextAgreement {
 public:
  TextAgreement(const c10d::ProcessGroup& group, std::string_view key, std::string_view what)
      : group_(group),
        store_(group.getStore()),
        key_(concat("agree/", key)),
        what_(what),
        operation_(concat("comparing ", what)) {
    THINWIRE_ASSERT(store_);
    timeout_ = timeout_of(group, *store_);
    deadline_ = StorePoll::Clock::now() + timeout_;
    next_look_ = StorePoll::Clock::now() + kAskEvery;
  }

  void agree(std::string_view text) {
    const std::string outcome = within_the_group([&] {
      StoreMeeting meeting = make_meeting();
      StorePoll poll(group_.getSize(), deadline_);
      std::string end = meeting.attend(hash_word(text), compare_words, [&] {
        look_for_failures();
        if (!poll.pause()) give_up(meeting.absent());
      });
      if (end == kSame) meeting.leave();
      return end;
    });
    if (outcome != kSame) refuse(outcome, text);
  }

  [[noreturn]] void refuse_for(const std::string& reason) {
    const std::string mine = concat(kRefused, "rank ", group_.getRank(), ": ", reason);
    refuse(within_the_group([&] { return make_meeting().end(mine); }), "");
  }

 private:
  StoreMeeting make_meeting() { return {*store_, key_, group_.getRank(), group_.getSize()}; }

  template <typename Action>
  auto within_the_group(const Action& action) -> decltype(action()) {
    try {
      return action();
    } catch (...) {
      raise_collective_failure(group_, operation_, 0, std::current_exception());
    }
  }

  void look_for_failures() {
    const auto now = StorePoll::Clock::now();
    if (now < next_look_) return;
    next_look_ = now + kAskEvery;
    if (another_rank_has_failed(group_))
      throw CommError(-1, operation_, 0, "another rank has failed");
  }

  [[noreturn]] void give_up(const std::vector<int>& absent) const {
    // All have come, but rank 0 did not say what it found.
    const int rank = absent.empty() ? 0 : absent.front();
    throw CommError(rank, operation_, 0,
                    concat("it did not say what it has within ",
                           static_cast<double>(timeout_.count()) / 1000, " s"));
  }

  [[noreturn]] void refuse(std::string_view outcome, std::string_view text) {
    std::string reason(outcome.substr(kRefused.size()));
    if (!outcome.starts_with(kRefused)) {
      const int odd = std::stoi(std::string(outcome.substr(kDiffers.size())));
      const auto [zero, other] = within_the_group([&] { return fetch_texts(odd, text); });
      reason = concat("the ranks disagree on ", what_, ": ", first_difference(zero, other, odd));
    }
    within_the_group([&] { make_meeting().leave(kStayToRefuse); });
    throw InvalidArgument(reason);
  }

  // The texts of rank 0 and of rank `odd`, which those two post now.
  std::pair<std::string, std::string> fetch_texts(int odd, std::string_view mine) {
    const auto text_key = [&](int rank) {
      return concat("thinwire/", key_, "/text/", std::to_string(rank));
    };
    if (group_.getRank() == 0 || group_.getRank() == odd)
      store_->set(text_key(group_.getRank()), std::vector<std::uint8_t>(mine.begin(), mine.end()));
    StorePoll poll(group_.getSize(), deadline_);
    while (!store_->check({text_key(0), text_key(odd)})) {
      look_for_failures();
      if (!poll.pause()) give_up({store_->check({text_key(0)}) ? odd : 0});
    }
    return {store_->get_to_str(text_key(0)), store_->get_to_str(text_key(odd))};
  }

  const c10d::ProcessGroup& group_;
  c10::intrusive_ptr<c10d::Store> store_;
  std::string key_, what_, operation_;
  std::chrono::milliseconds timeout_{};
  StorePoll::Clock::time_point deadline_, next_look_;
};

}  // namespace

void agree_on_text(const c10d::ProcessGroup& group, std::string_view key, std::string_view what,
                   std::string_view text) {
  if (group.getSize() == 1) return;
  TextAgreement(group, key, what).agree(text);
}

void agree_on_result(const c10d::ProcessGroup& group, std::string_view key, std::string_view what,
                     const std::function<std::string()>& make) {
  if (group.getSize() == 1) {
    make();
    return;
  }
  TextAgreement agreement(group, key, what);
  std::string text, reason;
  bool failed = false;
  try {
    text = make();
  } catch (const std::exception& error) {
    failed = true;
    reason = error_text(error);
  }
  if (failed) agreement.refuse_for(reason);
  agreement.agree(text);
}

HashAgreement::HashAgreement(c10d::ProcessGroup& group, std::uint64_t sequence, std::uint64_t hash,
                             at::Device device)
    : group_(group), sequence_(sequence) {
  if (group.getSize() == 1) return;
  mine_ = at::empty({kNumbers}, at::kLong);
  auto* record = mine_.mutable_data_ptr<std::int64_t>();
  record[0] = static_cast<std::int64_t>(hash);
  record[1] = static_cast<std::int64_t>(sequence);
  mine_ = mine_.to(device);
  all_ = at::empty({kNumbers * group.getSize()}, mine_.options());
  work_ = guard(group, "agreement", sequence, [&] { return group._allgather_base(all_, mine_); });
}

bool HashAgreement::wait() {
  if (!work_) return true;
  comm::wait(group_, work_, "agreement", sequence_);
  const at::Tensor all = all_.cpu();
  const at::Tensor mine = mine_.cpu();
  const auto* theirs = all.const_data_ptr<std::int64_t>();
  const auto* ours = mine.const_data_ptr<std::int64_t>();
  for (int rank = 0; rank < group_.getSize(); ++rank) {
    if (!std::equal(ours, ours + kNumbers, theirs + kNumbers * rank)) return false;
  }
  return true;
}

}  // namespace thinwire::comm
