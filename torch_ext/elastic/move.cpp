#include "thinwire/torch_ext/elastic/move.h"

#include <ATen/ops/empty.h>
#include <c10/core/ScalarType.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "thinwire/comm/failure/watched_group.h"
#include "thinwire/comm/state/merge.h"
#include "thinwire/common/error.h"

namespace thinwire::detail {
namespace {

// Of what comm::to_tensors() gives, that which every rank has of its own.
bool is_own_of_a_rank(const std::string& name) {
  constexpr std::array<std::string_view, 4> kOwn = {"residual/", "velocity/", "momentum_residual/",
                                                    "second_residual/"};
  return std::ranges::any_of(
      kOwn, [&](std::string_view own) { return name.starts_with(concat(kAveragerPrefix, own)); });
}

// Name, type and shape of each.
nlohmann::json contents_of(const NamedTensors& tensors) {
  auto contents = nlohmann::json::array();
  for (const auto& [name, tensor] : tensors)
    contents.push_back({name, static_cast<int>(tensor.scalar_type()), tensor.sizes().vec()});
  return contents;
}

// Names, types and shapes of a state; far more than any has.
constexpr std::int64_t kMostContents = std::int64_t{1} << 28;

std::uint64_t memory_of_host() {
  return static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) *
         static_cast<std::uint64_t>(sysconf(_SC_PAGE_SIZE));
}

// Memory for what rank 0 announces, FrameError where no state can be so.
NamedTensors announced(const std::string& contents) {
  NamedTensors all;
  std::uint64_t left = memory_of_host();
  const auto refuse = [](const auto&... what) {
    throw FrameError(concat("rank 0 announces no state that can be: ", what...));
  };
  try {
    for (const auto& entry : nlohmann::json::parse(contents)) {
      const auto name = entry.at(0).get<std::string>();
      const int type = entry.at(1).get<int>();
      const auto shape = entry.at(2).get<std::vector<std::int64_t>>();
      if (type < 0 || type >= static_cast<int>(at::ScalarType::Undefined))
        refuse("'", name, "' is of type ", type);
      std::uint64_t bytes = c10::elementSize(static_cast<at::ScalarType>(type));
      for (const std::int64_t extent : shape)
        if (extent < 0 || __builtin_mul_overflow(bytes, static_cast<std::uint64_t>(extent), &bytes))
          refuse("'", name, "' has the shape ", at::IntArrayRef(shape));
      if (bytes > left)
        refuse("with '", name, "' of ", bytes, " bytes it has more than this host's memory, ",
               memory_of_host(), " bytes");
      left -= bytes;
      all.emplace(name, at::empty(shape, static_cast<at::ScalarType>(type)));
    }
  } catch (const nlohmann::json::exception& error) {
    refuse(error.what());
  }
  return all;
}

}  // namespace

NamedTensors tensors_of_rank_0(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                               const NamedTensors& mine, const std::string& operation) {
  check(group != nullptr, operation, " needs a process group, got a null pointer");
  if (group->getSize() == 1) return mine;
  const auto watched = comm::watched(group);
  const auto broadcast = [&](const std::vector<at::Tensor>& tensors) {
    comm::broadcast(watched, tensors, /*root=*/0, operation, /*sequence=*/0);
  };
  const bool gives = group->getRank() == 0;
  at::Tensor text = gives ? text_tensor(contents_of(mine).dump()) : at::Tensor();
  const at::Tensor length = integer_tensor(gives ? text.numel() : 0);
  broadcast({length});
  if (!gives) {
    const auto bytes = length.item<std::int64_t>();
    if (bytes < 0 || bytes > kMostContents)
      throw FrameError(concat(operation, ": rank 0 announces ", bytes,
                              " bytes of names and shapes, at most ", kMostContents, " can be"));
    text = at::empty({bytes}, at::kByte);
  }
  broadcast({text});
  NamedTensors all;
  if (gives) {
    for (const auto& [name, tensor] : mine)
      all.emplace(name, tensor.detach().cpu().contiguous().clone());
  } else {
    all = announced(text_of({{"contents", text}}, "contents"));
  }
  std::vector<at::Tensor> tensors;
  for (const auto& [name, tensor] : all)
    if (tensor.numel() > 0) tensors.push_back(tensor);
  broadcast(tensors);
  return all;
}

NamedTensors shared_part(const NamedTensors& mine) {
  NamedTensors shared = mine;
  std::erase_if(shared, [](const auto& named) { return is_own_of_a_rank(named.first); });
  return shared;
}

NamedTensors with_shared_part(const NamedTensors& of_rank_0, const NamedTensors& mine,
                              Standing standing) {
  NamedTensors state = of_rank_0;
  if (standing == Standing::kNew) return state;
  for (const auto& [name, tensor] : mine)
    if (is_own_of_a_rank(name)) state.emplace(name, tensor);
  return state;
}

}  // namespace thinwire::detail
