#include "thinwire/comm/wire/peers.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "thinwire/comm/failure/failure.h"
#include "thinwire/comm/failure/guard.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

std::vector<int> all_ranks(const c10d::ProcessGroup& group) {
  std::vector<int> ranks(static_cast<std::size_t>(group.getSize()));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

}  // namespace

Messages::Messages(std::vector<std::int64_t> sizes)
    : sizes_(std::move(sizes)), offsets_(sizes_.size()) {
  for (std::size_t p = 0; p < sizes_.size(); ++p) {
    offsets_[p] = total_;
    total_ += static_cast<std::size_t>(sizes_[p]);
  }
}

void Messages::place(Arena& arena) {
  tensor_ = arena.tensor(total_);
}

std::span<std::byte> Messages::of(int peer) {
  const auto p = static_cast<std::size_t>(peer);
  auto* data = static_cast<std::byte*>(tensor_.mutable_data_ptr());
  return {data + offsets_[p], static_cast<std::size_t>(sizes_[p])};
}

std::vector<std::int64_t> PendingNumbers::wait(const char* operation, std::uint64_t sequence) {
  if (work_) comm::wait(*group_, work_, operation, sequence);
  const auto columns = received_.numel() / group_->getSize();
  std::vector<std::int64_t> result;
  for (const int row : rows_) {
    const auto* first = received_.const_data_ptr<std::int64_t>() + row * columns;
    result.insert(result.end(), first, first + columns);
  }
  return result;
}

Peers::Peers(c10d::ProcessGroup& group) : Peers(group, all_ranks(group)) {}

Peers::Peers(c10d::ProcessGroup& group, std::vector<int> members)
    : group_(&group), members_(std::move(members)) {
  THINWIRE_ASSERT(std::is_sorted(members_.begin(), members_.end()));
  const auto self = std::find(members_.begin(), members_.end(), group.getRank());
  THINWIRE_ASSERT(self != members_.end());
  rank_ = static_cast<int>(self - members_.begin());
}

std::vector<std::int64_t> Peers::by_group_rank(const std::vector<std::int64_t>& by_peer) const {
  std::vector<std::int64_t> sizes(static_cast<std::size_t>(group_->getSize()));
  for (std::size_t p = 0; p < by_peer.size(); ++p) {
    sizes[static_cast<std::size_t>(members_[p])] = by_peer[p];
  }
  return sizes;
}

c10::intrusive_ptr<c10d::Work> Peers::all_to_all(Messages& received, Messages& sent) const {
  auto received_sizes = by_group_rank(received.sizes_);
  auto sent_sizes = by_group_rank(sent.sizes_);
  return group_->alltoall_base(received.tensor_, sent.tensor_, received_sizes, sent_sizes);
}

PendingNumbers Peers::pending(std::span<const std::int64_t> numbers) const {
  PendingNumbers pending;
  pending.group_ = group_;
  pending.rows_ = members_;
  pending.sent_ = at::empty({static_cast<std::int64_t>(numbers.size())}, at::kLong);
  std::ranges::copy(numbers, pending.sent_.mutable_data_ptr<std::int64_t>());
  return pending;
}

PendingNumbers Peers::start_all_gather(std::span<const std::int64_t> numbers) const {
  PendingNumbers gathering = pending(numbers);
  if (alone()) {
    gathering.received_ = gathering.sent_;
    return gathering;
  }
  gathering.received_ = at::empty({gathering.sent_.numel() * group_->getSize()}, at::kLong);
  gathering.work_ = group_->_allgather_base(gathering.received_, gathering.sent_);
  gathering.sent_bytes_ =
      gathering.sent_.nbytes() * static_cast<std::size_t>(group_->getSize() - 1);
  return gathering;
}

PendingNumbers Peers::start_all_to_all(std::span<const std::int64_t> numbers) const {
  THINWIRE_ASSERT(numbers.size() == members_.size());
  PendingNumbers swapping = pending(by_group_rank({numbers.begin(), numbers.end()}));
  swapping.received_ = at::empty_like(swapping.sent_);
  if (alone()) {
    swapping.received_ = swapping.sent_;
    return swapping;
  }
  std::vector<std::int64_t> even;  // splits of one element each
  swapping.work_ = group_->alltoall_base(swapping.received_, swapping.sent_, even, even);
  swapping.sent_bytes_ = sizeof(std::int64_t) * static_cast<std::size_t>(group_->getSize() - 1);
  return swapping;
}

std::vector<std::int64_t> Peers::all_gather(std::span<const std::int64_t> numbers,
                                            const char* operation, std::uint64_t sequence) const {
  PendingNumbers gathering =
      guard(*group_, operation, sequence, [&] { return start_all_gather(numbers); });
  return gathering.wait(operation, sequence);
}

}  // namespace thinwire::comm
