#include "thinwire/comm/state/merge.h"

#include "thinwire/comm/average/state_tensors.h"
#include "thinwire/comm/state/names.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/allocation/plan_file.h"

namespace thinwire {
namespace {

std::uint64_t hash_of_plan(const NamedTensors& state) {
  try {
    return lgreco::plan_hash(lgreco::parse_plan(text_of(state, kPlanName), "the saved plan"));
  } catch (const FileError& error) {
    throw InvalidArgument(error.what());
  }
}

bool same_value(const std::string& name, const NamedTensors& a, const NamedTensors& b) {
  if (name == kPlanName) return hash_of_plan(a) == hash_of_plan(b);
  return same_bits(a.at(name), b.at(name));
}

// What a message says of a number that differs; nothing for other tensors.
std::string shown(const NamedTensors& state, const std::string& name) {
  const at::Tensor& tensor = state.at(name);
  if (tensor.scalar_type() != at::kLong || tensor.numel() != 1) return "";
  return concat(" (", tensor.item<std::int64_t>(), ")");
}

}  // namespace

NamedTensors merge_states(const std::vector<NamedTensors>& of_all_ranks, int world_size) {
  check(world_size > 0, "a job has at least one rank, got ", world_size);
  check(!of_all_ranks.empty(), "there are no states to merge");
  NamedTensors merged;
  std::vector<comm::AveragerState> averagers;
  for (std::size_t rank = 0; rank < of_all_ranks.size(); ++rank) {
    const NamedTensors& state = of_all_ranks[rank];
    if (state.contains(kWorldName)) {
      const std::int64_t world = integer_of(state, kWorldName);
      check(world == static_cast<std::int64_t>(of_all_ranks.size()), "the states of all ", world,
            " ranks are needed, got ", of_all_ranks.size());
    }
    averagers.push_back(comm::state_from_tensors(part_of(state, kAveragerPrefix)));
    for (const auto& [name, tensor] : state) {
      // A job of another size cuts its gradients in another way, and may average other parameters.
      if (name.starts_with(kAveragerPrefix) || name.starts_with(kNextPlanPrefix) ||
          name == kBucketsName)
        continue;
      const auto [found, fresh] = merged.emplace(name, tensor);
      if (!fresh)
        check(same_value(name, merged, state), "state ", rank,
              " is not of the same step and model as those before it: '", name, "'",
              shown(state, name), " differs", shown(merged, name));
    }
  }
  insert_part(merged, kAveragerPrefix, comm::to_tensors(comm::merge_states(averagers)));
  if (merged.contains(kWorldName)) merged[kWorldName] = integer_tensor(world_size);
  return merged;
}

}  // namespace thinwire
