#include "thinwire/comm/wire/peers.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "thinwire/comm/failure/failure.h"
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
  std::int64_t total = 0;
  for (std::size_t p = 0; p < sizes_.size(); ++p) {
    offsets_[p] = static_cast<std::size_t>(total);
    total += sizes_[p];
  }
  tensor_ = at::empty({total}, at::kByte);
}

std::span<std::byte> Messages::of(int peer) {
  const auto p = static_cast<std::size_t>(peer);
  auto* data = static_cast<std::byte*>(tensor_.mutable_data_ptr());
  return {data + offsets_[p], static_cast<std::size_t>(sizes_[p])};
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

std::vector<std::int64_t> Peers::all_gather(std::span<const std::int64_t> numbers,
                                            const char* operation, std::uint64_t sequence) const {
  if (alone()) return {numbers.begin(), numbers.end()};
  at::Tensor mine, all;
  c10::intrusive_ptr<c10d::Work> work;
  try {
    mine = at::empty({static_cast<std::int64_t>(numbers.size())}, at::kLong);
    all = at::empty({mine.numel() * group_->getSize()}, at::kLong);
    std::ranges::copy(numbers, mine.mutable_data_ptr<std::int64_t>());
    work = group_->_allgather_base(all, mine);
  } catch (...) {
    raise_collective_failure(*group_, operation, sequence, std::current_exception());
  }
  wait(*group_, work, operation, sequence);
  std::vector<std::int64_t> result;
  for (const int member : members_) {
    const auto* first = all.const_data_ptr<std::int64_t>() + member * mine.numel();
    result.insert(result.end(), first, first + mine.numel());
  }
  return result;
}

}  // namespace thinwire::comm
