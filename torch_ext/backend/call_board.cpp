#include "thinwire/torch_ext/backend/call_board.h"

#include <utility>

#include "thinwire/comm/failure/failure.h"
#include "thinwire/common/error.h"

namespace thinwire::detail {
namespace {

std::string board_key(std::uint64_t number, int rank) {
  return concat("thinwire/calls/", number, "/", rank);
}

}  // namespace

CallBoard::CallBoard(c10::intrusive_ptr<c10d::ProcessGroup> group,
                     std::chrono::milliseconds patience)
    : group_(std::move(group)), patience_(patience) {}

// All compare with rank 0: one that differs from another differs from rank 0, or that one does.
void CallBoard::compare(std::uint64_t number, const std::string& text, bool& compared) {
  if (compared || group_->getRank() == 0) return;
  const auto store = group_->getStore();
  const std::string leader = board_key(number, 0);
  if (!store->check({leader})) return;
  compared = true;
  const std::string theirs = store->get_to_str(leader);
  check(theirs == text, "call #", number, " of the process group is ", theirs, " on rank 0 and ",
        text, " on rank ", group_->getRank(), "; every rank must make the same calls");
}

void CallBoard::watch(std::uint64_t number, const std::string& text,
                      const std::function<bool(std::chrono::milliseconds)>& finished_within) {
  if (finished_within(patience_)) return;
  try {
    if (group_->getRank() == 0) {
      group_->getStore()->set(board_key(number, 0),
                              std::vector<std::uint8_t>(text.begin(), text.end()));
    }
    bool compared = false;
    while (!finished_within(comm::kAskEvery)) {
      if (comm::another_rank_has_failed(*group_))
        throw CommError(-1, text, number, "another rank has failed");
      compare(number, text, compared);
    }
    if (group_->getRank() == 0) group_->getStore()->deleteKey(board_key(number, 0));
  } catch (...) {
    comm::raise_collective_failure(*group_, text, number, std::current_exception());
  }
}

}  // namespace thinwire::detail
