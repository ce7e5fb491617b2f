#include "thinwire/torch_ext/ddp/uneven_inputs.h"

#include <ATen/ops/empty.h>

#include <array>
#include <string>

#include "thinwire/comm/failure/guard.h"
#include "thinwire/common/error.h"

namespace thinwire::detail {
namespace {

// What one rank says: the event, and what goes with it, as bits.
constexpr std::size_t kWords = 2;
constexpr std::int64_t kSync = 1, kBroadcast = 2, kDivideByInitial = 4, kThrow = 8;
constexpr std::int64_t kOptions = kDivideByInitial | kThrow;

std::string doing(UnevenInputs::Event event, std::int64_t bits) {
  if (event == UnevenInputs::Event::kBackward) return "a backward pass";
  return concat("a forward pass", bits & kSync ? "" : " within no_sync()",
                bits & kBroadcast ? "" : " that broadcasts no buffers");
}

}  // namespace

UnevenInputs::Round UnevenInputs::meet(Event mine, bool sync, bool broadcast) {
  const int world = group_->getSize();
  const at::Tensor record = at::empty({kWords}, at::kLong);
  auto* words = record.mutable_data_ptr<std::int64_t>();
  words[0] = static_cast<std::int64_t>(mine);
  words[1] = (sync ? kSync : 0) | (broadcast ? kBroadcast : 0) |
             (options_.divide_by_initial_world_size ? kDivideByInitial : 0) |
             (options_.throw_on_early_termination ? kThrow : 0);
  at::Tensor all = record;
  if (world > 1) {
    all = at::empty({static_cast<std::int64_t>(kWords) * world}, at::kLong);
    at::Tensor own = record;
    comm::run_collective(*group_, "join()", rounds_,
                         [&] { return group_->_allgather_base(all, own); });
  }
  ++rounds_;
  const auto* said = all.const_data_ptr<std::int64_t>();
  Round round;
  int leader = -1;
  std::string without;
  for (int rank = 0; rank < world; ++rank) {
    const auto event = static_cast<Event>(said[2 * rank]);
    const std::int64_t bits = said[2 * rank + 1];
    check((bits & kOptions) == (said[1] & kOptions), "join() has other options on rank ", rank,
          " than on rank 0");
    if (event == Event::kNoInputs) {
      without += concat(without.empty() ? "" : ", ", rank);
      continue;
    }
    ++round.active;
    if (leader < 0) leader = rank;
    check(event == static_cast<Event>(said[2 * leader]) && bits == said[2 * leader + 1],
          "within join() rank ", leader, " does ",
          doing(static_cast<Event>(said[2 * leader]), said[2 * leader + 1]), ", rank ", rank, " ",
          doing(event, bits));
  }
  check(!options_.throw_on_early_termination || leader < 0 || without.empty(), "rank(s) ", without,
        " of ", world, " have no inputs left");
  if (leader >= 0) {
    last_first_active_ = leader;
    round.event = static_cast<Event>(said[2 * leader]);
    round.sync = said[2 * leader + 1] & kSync;
    round.broadcast = said[2 * leader + 1] & kBroadcast;
  }
  round.first_active = last_first_active_;
  return round;
}

double UnevenInputs::scale(const Round& round) const {
  if (options_.divide_by_initial_world_size || round.active == 0) return 1;
  return static_cast<double>(group_->getSize()) / round.active;
}

}  // namespace thinwire::detail
