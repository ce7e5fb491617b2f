#include "thinwire/comm/failure/agreement.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <thread>
#include <vector>

#include "thinwire/comm/failure/failure.h"
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

std::chrono::milliseconds timeout_of(const c10d::ProcessGroup& group, const c10d::Store& store) {
  try {
    return group.getDefaultBackend()->getBackendOptions()->timeout;
  } catch (const c10::Error&) {
    return store.getTimeout();  // the backend has no options
  }
}

// What every rank posted under `key`. Polls, since a rank that waited for a key could not learn
// that another one has failed.
std::vector<std::string> everyones_text(const c10d::ProcessGroup& group, c10d::Store& store,
                                        std::string_view key, const std::string& operation) {
  std::vector<std::string> texts(static_cast<std::size_t>(group.getSize()));
  std::vector<int> absent;
  for (int rank = 0; rank < group.getSize(); ++rank) absent.push_back(rank);
  const auto timeout = timeout_of(group, store);
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  auto pause = std::chrono::milliseconds(1);
  while (true) {
    std::erase_if(absent, [&](int rank) {
      if (!store.check({store_key(key, rank)})) return false;
      texts[static_cast<std::size_t>(rank)] = store.get_to_str(store_key(key, rank));
      return true;
    });
    if (absent.empty()) return texts;
    if (another_rank_has_failed(group))
      throw CommError(-1, operation, 0, "another rank has failed");
    if (std::chrono::steady_clock::now() >= deadline)
      throw CommError(absent.front(), operation, 0,
                      concat("it did not say what it has within ",
                             static_cast<double>(timeout.count()) / 1000, " s"));
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, std::chrono::milliseconds(50));
  }
}

}  // namespace

void agree_on_text(const c10d::ProcessGroup& group, std::string_view key, std::string_view what,
                   std::string_view text) {
  if (group.getSize() == 1) return;
  const auto store = group.getStore();
  THINWIRE_ASSERT(store);
  const std::string operation = concat("comparing ", what);
  std::vector<std::string> texts;
  try {
    store->set(store_key(key, group.getRank()), bytes_of(text));
    texts = everyones_text(group, *store, key, operation);
  } catch (...) {
    raise_collective_failure(group, operation, 0, std::current_exception());
  }
  for (int rank = 1; rank < group.getSize(); ++rank) {
    const auto& other = texts[static_cast<std::size_t>(rank)];
    check(other == texts[0], "the ranks disagree on ", what, ": ",
          first_difference(texts[0], other, rank));
  }
}

void agree_on_result(const c10d::ProcessGroup& group, std::string_view key, std::string_view what,
                     const std::function<std::string()>& make) {
  std::string text;
  std::exception_ptr mistake;
  try {
    text = make();
  } catch (const std::exception& error) {
    mistake = std::current_exception();
    text = concat("unusable: ", error.what());
  }
  agree_on_text(group, key, what, text);
  if (mistake) std::rethrow_exception(mistake);
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
