#include "thinwire/comm/agreement.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <vector>

#include "thinwire/comm/failure.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

std::vector<std::uint8_t> bytes_of(std::string_view text) {
  return {text.begin(), text.end()};
}

std::string store_key(std::string_view key, int rank) {
  return concat("thinwire/agree/", key, "/", rank);
}

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

}  // namespace

void agree_on_text(const c10d::ProcessGroup& group, std::string_view key, std::string_view what,
                   std::string_view text) {
  if (group.getSize() == 1) return;
  const auto store = group.getStore();
  THINWIRE_ASSERT(store);
  store->set(store_key(key, group.getRank()), bytes_of(text));
  std::vector<std::string> texts(static_cast<std::size_t>(group.getSize()));
  for (int rank = 0; rank < group.getSize(); ++rank) {
    try {
      const auto bytes = store->get(store_key(key, rank));
      texts[static_cast<std::size_t>(rank)].assign(bytes.begin(), bytes.end());
    } catch (const std::exception& error) {
      throw CommError(rank, concat("comparing ", what), 0,
                      concat("it did not say what it has: ", error.what()));
    }
  }
  for (int rank = 1; rank < group.getSize(); ++rank) {
    const auto& other = texts[static_cast<std::size_t>(rank)];
    check(other == texts[0], "the ranks disagree on ", what, ": ",
          first_difference(texts[0], other, rank));
  }
}

HashAgreement::HashAgreement(c10d::ProcessGroup& group, std::uint64_t sequence, std::uint64_t hash,
                             at::Device device)
    : group_(group), sequence_(sequence) {
  if (group.getSize() == 1) return;
  mine_ = at::empty({2}, at::kLong);
  auto* record = mine_.mutable_data_ptr<std::int64_t>();
  record[0] = static_cast<std::int64_t>(hash);
  record[1] = static_cast<std::int64_t>(sequence);
  mine_ = mine_.to(device);
  all_ = at::empty({2 * group.getSize()}, mine_.options());
  work_ = group._allgather_base(all_, mine_);
}

bool HashAgreement::wait() {
  if (!work_) return true;
  comm::wait(group_, work_, "agreement", sequence_);
  const at::Tensor all = all_.cpu();
  const at::Tensor mine = mine_.cpu();
  const auto* theirs = all.const_data_ptr<std::int64_t>();
  const auto* ours = mine.const_data_ptr<std::int64_t>();
  for (int rank = 0; rank < group_.getSize(); ++rank) {
    if (!std::equal(ours, ours + 2, theirs + 2 * rank)) return false;
  }
  return true;
}

}  // namespace thinwire::comm
