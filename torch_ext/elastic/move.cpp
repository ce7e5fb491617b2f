#include "thinwire/torch_ext/elastic/move.h"

#include <ATen/ops/empty.h>

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
  if (!gives) text = at::empty({length.item<std::int64_t>()}, at::kByte);
  broadcast({text});
  NamedTensors all;
  if (gives) {
    for (const auto& [name, tensor] : mine)
      all.emplace(name, tensor.detach().cpu().contiguous().clone());
  } else {
    const NamedTensors named = {{"contents", text}};
    for (const auto& entry : nlohmann::json::parse(text_of(named, "contents"))) {
      all.emplace(entry.at(0).get<std::string>(),
                  at::empty(entry.at(2).get<std::vector<std::int64_t>>(),
                            static_cast<at::ScalarType>(entry.at(1).get<int>())));
    }
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
