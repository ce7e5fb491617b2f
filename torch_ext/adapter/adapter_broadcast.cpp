#include "thinwire/torch_ext/adapter/adapter_broadcast.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <vector>

#include "thinwire/comm/failure/guard.h"
#include "thinwire/common/crc32c.h"
#include "thinwire/common/error.h"

namespace thinwire {
namespace {

constexpr const char* kOperation = "broadcast of an expert";
// Sent at once: large enough for the wire, small enough for every backend's message size.
constexpr std::int64_t kPiece = std::int64_t{64} << 20;

// What every rank tells all others: a number, and what is wrong with it.
struct Report {
  std::int64_t value = 0;
  std::int64_t root = 0;
  std::array<char, 1008> problem{};
};
static_assert(sizeof(Report) == 1024);

// Everyone's reports; throws the first problem, on all ranks alike.
std::vector<Report> exchange(c10d::ProcessGroup& group, int root, std::int64_t value,
                             const std::string& problem, std::uint64_t stage) {
  Report mine{value, root, {}};
  std::copy_n(problem.begin(), std::min(problem.size(), mine.problem.size() - 1),
              mine.problem.begin());
  const auto size = static_cast<std::size_t>(group.getSize());
  std::vector<Report> all(size, mine);
  if (size > 1)
    comm::guard(group, kOperation, stage, [&] {
      at::Tensor in = at::empty({sizeof(Report)}, at::kByte);
      at::Tensor out = at::empty({static_cast<std::int64_t>(sizeof(Report) * size)}, at::kByte);
      std::memcpy(in.mutable_data_ptr(), &mine, sizeof(Report));
      comm::run_collective(group, kOperation, stage,
                           [&] { return group._allgather_base(out, in); });
      std::memcpy(all.data(), out.const_data_ptr(), out.nbytes());
    });
  for (std::size_t rank = 0; rank < size; ++rank)
    check(all[rank].root == all[0].root, kOperation, ": rank 0 names rank ", all[0].root,
          " as the one that has it, rank ", rank, " names ", all[rank].root);
  for (std::size_t rank = 0; rank < size; ++rank) {
    all[rank].problem.back() = '\0';
    if (all[rank].problem[0] != '\0')
      throw FileError(concat(kOperation, ": rank ", rank, ": ", all[rank].problem.data()));
  }
  return all;
}

}  // namespace

std::string broadcast_expert(AdapterSwitch& target, c10d::ProcessGroup& group, int root,
                             const std::filesystem::path& file) {
  at::Tensor content = at::empty({0}, at::kByte);
  std::string problem;
  if (group.getRank() == root) {
    try {
      const peft::PackedFile packed(file);
      const peft::SafetensorsFile raw(file);
      const auto bytes = raw.file_bytes();
      content = at::empty({static_cast<std::int64_t>(bytes.size())}, at::kByte);
      std::memcpy(content.mutable_data_ptr(), bytes.data(), bytes.size());
    } catch (const std::exception& error) {  // out of memory too: nobody may wait for the root
      problem = error.what();
    }
  }
  const auto sizes = exchange(group, root, content.numel(), problem, 0);
  // The same on all ranks by now.
  check(root >= 0 && root < group.getSize(), "root ", root, " is not one of ", group.getSize(),
        " ranks");
  const std::int64_t size = sizes[static_cast<std::size_t>(root)].value;
  std::vector<std::byte> received;
  std::optional<AdapterSwitch::Staged> staged;
  std::int64_t checksum = 0;
  try {
    if (group.getRank() != root) content = at::empty({size}, at::kByte);
    received.resize(static_cast<std::size_t>(size));
  } catch (const std::exception& error) {
    problem = concat("no memory for ", size, " bytes: ", error.what());
  }
  exchange(group, root, 0, problem, 1);
  for (std::int64_t at = 0; at < size && group.getSize() > 1; at += kPiece) {
    std::vector<at::Tensor> piece = {content.narrow(0, at, std::min(kPiece, size - at))};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    comm::run_collective(group, kOperation, 2, [&] { return group.broadcast(piece, options); });
  }
  try {
    std::memcpy(received.data(), content.const_data_ptr(), received.size());
    checksum = crc32c(received);
    staged.emplace(
        target.stage(peft::PackedFile(std::move(received), concat("the expert of rank ", root))));
  } catch (const std::exception& error) {
    problem = error.what();
  }
  const auto outcomes = exchange(group, root, checksum, problem, 3);
  for (std::size_t rank = 0; rank < outcomes.size(); ++rank)
    if (outcomes[rank].value != outcomes[0].value)
      throw FileError(concat(kOperation, ": rank ", rank, " received the CRC-32C ",
                             outcomes[rank].value, ", rank 0 ", outcomes[0].value));
  const std::string id = staged->id();
  target.commit(std::move(*staged));
  return id;
}

}  // namespace thinwire
