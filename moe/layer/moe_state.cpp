// Checkpoints of a layer. Names carry the experts' global numbers, so that a state fits any number
// of ranks.

#include <ATen/ATen.h>

#include <cstdlib>
#include <cstring>

#include <torch/csrc/jit/serialization/pickle.h>

#include "thinwire/comm/failure/failure.h"
#include "thinwire/comm/failure/guard.h"
#include "thinwire/common/error.h"
#include "thinwire/moe/layer/moe_layer.h"

namespace thinwire::moe {
namespace {

constexpr const char* kMergingOptions = "dedup.options";
constexpr const char* kMergingState = "dedup.state";
constexpr const char* kProbes = "dedup.probes.";  // and the rank that they are of
constexpr const char* kGuard = "dedup.guard.";    // likewise

void append_module(NamedTensors& all, const std::string& prefix, const torch::nn::Module& module) {
  for (const auto& item : module.named_parameters()) {
    all.emplace(prefix + item.key(), item.value().detach());
  }
  for (const auto& item : module.named_buffers()) all.emplace(prefix + item.key(), item.value());
}

// A state as bytes, for messages, and back.
std::vector<char> to_bytes(const NamedTensors& state) {
  c10::Dict<std::string, at::Tensor> dictionary;
  for (const auto& [name, tensor] : state) dictionary.insert(name, tensor.cpu());
  return torch::jit::pickle_save(dictionary);
}
NamedTensors state_of(const std::vector<char>& bytes) {
  NamedTensors state;
  const auto value = torch::jit::pickle_load(bytes);
  for (const auto& entry : value.toGenericDict()) {
    state.emplace(entry.key().toStringRef(), entry.value().toTensor());
  }
  return state;
}

// What only one rank holds; the rest of a local state is equal on all.
bool is_own(const std::string& name) {
  const bool of_rows = name.starts_with("rows.") &&
                       (name.ends_with(".moments") || name.find(".fresh.") != std::string::npos);
  return of_rows || name.starts_with("experts.") || name.starts_with(kProbes) ||
         name.starts_with(kGuard);
}

// The bytes of every rank, on all ranks.
std::vector<std::vector<char>> gather(c10d::ProcessGroup& group, const std::vector<char>& mine) {
  constexpr const char* kOperation = "gathering the experts";
  const int ranks = group.getSize();
  at::Tensor size = at::tensor({static_cast<std::int64_t>(mine.size())}, at::kLong);
  at::Tensor sizes = at::empty({ranks}, at::kLong);
  comm::wait(group, group._allgather_base(sizes, size), kOperation, 0);
  std::vector<at::Tensor> data;
  std::vector<c10::intrusive_ptr<c10d::Work>> under_way;
  for (int rank = 0; rank < ranks; ++rank) {
    data.push_back(at::empty({sizes[rank].item<std::int64_t>()}, at::kByte));
    if (rank == group.getRank()) {
      std::copy(mine.begin(), mine.end(), data.back().data_ptr<std::uint8_t>());
    }
    c10d::BroadcastOptions options;
    options.rootRank = rank;
    std::vector<at::Tensor> one = {data.back()};
    under_way.push_back(group.broadcast(one, options));
  }
  for (const auto& work : under_way) comm::wait(group, work, kOperation, 0);
  std::vector<std::vector<char>> all;
  for (const at::Tensor& bytes : data) {
    const auto* begin = bytes.const_data_ptr<std::uint8_t>();
    all.emplace_back(begin, begin + bytes.numel());
  }
  return all;
}

}  // namespace

NamedTensors MoELayer::local_state() const {
  NamedTensors state = weights();
  state.merge(dispatcher_->state());
  state.emplace(kMergingOptions, text_tensor(spec_of(dedup_.options())));
  state.emplace(kMergingState, dedup_.state());
  if (dedup_.options().bandwidth > 0) {
    state.emplace(concat(kGuard, dispatcher_->rank()), dedup_.guard_state());
  }
  const auto& probes = dedup_.pending_sums();
  if (probes[1] != 0) {
    state.emplace(concat(kProbes, dispatcher_->rank()),
                  at::tensor({probes[0], probes[1]}, at::kDouble));
  }
  for (auto& [name, tensor] : state) tensor = tensor.clone();
  return state;
}

NamedTensors MoELayer::shard() const {
  NamedTensors state = local_state();
  if (dispatcher_->rank() != 0) {
    std::erase_if(state, [](const auto& item) { return !is_own(item.first); });
  }
  return state;
}

NamedTensors MoELayer::full_state() const {
  if (dispatcher_->ranks() == 1) return local_state();
  c10d::ProcessGroup& group = *dispatcher_->group();
  return comm::guard(group, "gathering the experts", 0, [&] {
    NamedTensors all;
    for (const std::vector<char>& bytes : gather(group, to_bytes(shard()))) {
      all.merge(state_of(bytes));
    }
    return all;
  });
}

NamedTensors MoELayer::weights() const {
  NamedTensors targets;
  append_module(targets, "router.", *router_);
  if (shared_ != nullptr) append_module(targets, "shared.", *shared_);
  for (const auto& [name, tensor] : experts_->expert_state()) {
    targets.emplace("experts." + name, tensor);
  }
  return targets;
}

void MoELayer::check_state(const NamedTensors& state, const DedupOptions& merging) const {
  for (const auto& [name, tensor] : weights()) {
    const auto found = state.find(name);
    check(found != state.end(), "the state has no tensor '", name, "'");
    check(found->second.sizes() == tensor.sizes(), "'", name, "' has shape ", found->second.sizes(),
          " in the state, ", tensor.sizes(), " in the layer");
    check(found->second.scalar_type() == tensor.scalar_type(), "'", name, "' is ",
          toString(found->second.scalar_type()), " in the state, ", toString(tensor.scalar_type()),
          " in the layer; convert one of them");
  }
  dispatcher_->check_state(state);
  Dedup trial(merging, options_.router.dim, options_.layer, options_.seed);
  load_merging(state, trial);
}

// States of models that never sent a row may lack all of it.
void MoELayer::load_merging(const NamedTensors& state, Dedup& dedup) const {
  const auto counters = state.find(kMergingState);
  if (counters != state.end()) dedup.load_state(counters->second);
  // A rank that the saved model did not have expects what a new one does.
  const auto guard = state.find(concat(kGuard, dispatcher_->rank()));
  if (guard != state.end()) dedup.load_guard_state(guard->second);
  for (const auto& [name, sums] : state) {
    if (!name.starts_with(kProbes)) continue;
    check(sums.numel() == 2 && sums.scalar_type() == at::kDouble, "'", name, "' has ", sums.numel(),
          " elements of ", toString(sums.scalar_type()), " in the state, 2 of Double expected");
    // With another number of ranks their sum stays what it was.
    const int source = std::atoi(name.c_str() + std::strlen(kProbes));
    if (source % dispatcher_->ranks() != dispatcher_->rank()) continue;
    dedup.add_pending_sums({sums[0].item<double>(), sums[1].item<double>()});
  }
}

void MoELayer::load_state(const NamedTensors& state, Merging merging) {
  const std::string saved = merging == Merging::kFromState && state.contains(kMergingOptions)
                                ? text_of(state, kMergingOptions)
                                : std::string();
  DedupOptions dedup = options_.dedup;
  agree("the state of a mixture of experts", [&]() -> std::string {
    if (!saved.empty()) dedup = parse_dedup(saved);
    check_state(state, dedup);
    return concat("merging ", spec_of(dedup));
  });
  dispatcher_->guard("loading a mixture of experts", 0, [&] {
    if (!saved.empty()) {
      options_.dedup = dedup;
      dedup_ = Dedup(dedup, options_.router.dim, options_.layer, options_.seed);
      dispatcher_->set_agreement(agreement_of(options_));
    }
    load_merging(state, dedup_);
    dispatcher_->load_state(state);
    const at::NoGradGuard no_grad;
    for (auto& [name, tensor] : weights()) tensor.copy_(state.at(name));
  });
}

}  // namespace thinwire::moe
