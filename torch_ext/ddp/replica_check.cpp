#include "thinwire/torch_ext/ddp/replica_check.h"

#include <algorithm>
#include <map>
#include <span>
#include <string>

#include "thinwire/comm/failure/guard.h"
#include "thinwire/comm/join/store_meeting.h"
#include "thinwire/comm/wire/peers.h"
#include "thinwire/common/crc32c.h"
#include "thinwire/common/error.h"

namespace thinwire::detail {
namespace {

constexpr const char* kComparing = "comparing the replicas";

std::int64_t checksum_of(const at::Tensor& tensor) {
  const at::Tensor values = tensor.detach().cpu().contiguous();
  return thinwire::crc32c(
      std::as_bytes(std::span(static_cast<const char*>(values.const_data_ptr()), values.nbytes())));
}

// Throws unless all ranks have the same checksum of one tensor.
void check_tensor(const std::string& name, const std::vector<std::int64_t>& checksums,
                  std::uint64_t sequence) {
  std::map<std::int64_t, std::vector<int>> ranks_of;
  for (std::size_t rank = 0; rank < checksums.size(); ++rank)
    ranks_of[checksums[rank]].push_back(static_cast<int>(rank));
  if (ranks_of.size() == 1) return;
  std::vector<std::vector<int>> groups;
  for (const auto& [checksum, ranks] : ranks_of) groups.push_back(ranks);
  std::ranges::sort(groups, [](const auto& a, const auto& b) {
    return a.size() != b.size() ? a.size() > b.size() : a.front() < b.front();
  });
  const bool most_agree = groups[0].size() > groups[1].size();
  std::vector<int> odd;
  for (auto group = groups.begin() + 1; group != groups.end(); ++group)
    odd.insert(odd.end(), group->begin(), group->end());
  std::ranges::sort(odd);
  throw CommError(
      most_agree ? odd.front() : -1, kComparing, sequence,
      concat("'", name, "' has other bits on rank(s) ", comm::list_of(odd), " than on ",
             comm::list_of(groups[0]),
             ": the program changed it there alone, or the memory of one of the hosts is at fault; "
             "go on from a checkpoint of an earlier step"));
}

}  // namespace

void check_replicas(c10d::ProcessGroup& group, const std::vector<NamedTensor>& tensors,
                    std::uint64_t sequence) {
  const auto own = comm::guard(group, kComparing, sequence, [&] {
    std::vector<std::int64_t> checksums;
    for (const NamedTensor& item : tensors) checksums.push_back(checksum_of(item.tensor));
    return checksums;
  });
  const auto all = comm::Peers(group).all_gather(own, kComparing, sequence);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    std::vector<std::int64_t> of_ranks;
    for (std::size_t at = i; at < all.size(); at += tensors.size()) of_ranks.push_back(all[at]);
    check_tensor(tensors[i].name, of_ranks, sequence);
  }
}

}  // namespace thinwire::detail
