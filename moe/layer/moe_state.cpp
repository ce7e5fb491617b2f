// Checkpoints of a layer. Names carry the experts' global numbers, so that a state fits any number
// of ranks.

#include <ATen/ATen.h>

#include <cstdlib>
#include <cstring>

#include <torch/csrc/jit/serialization/pickle.h>

#include "thinwire/comm/failure/failure.h"
#include "thinwire/common/error.h"
#include "thinwire/moe/layer/moe_layer.h"

namespace thinwire::moe {
namespace {

constexpr const char* kMergingOptions = "dedup.options";
constexpr const char* kMergingState = "dedup.state";
constexpr const char* kProbes = "dedup.probes.";  // and the rank that they are of
constexpr const char* kGuard = "dedup.guard.";    // likewise

void append(NamedTensors& all, const std::string& prefix, const torch::nn::Module& module) {
  for (const auto& item : module.named_parameters()) {
    all.emplace_back(prefix + item.key(), item.value().detach());
  }
  for (const auto& item : module.named_buffers())
    all.emplace_back(prefix + item.key(), item.value());
}

// One rank's tensors, as bytes, to all ranks.
MoEState broadcast(c10d::ProcessGroup& group, const MoEState& mine, int root) {
  std::vector<char> bytes;
  if (group.getRank() == root) bytes = to_bytes(mine);
  c10d::BroadcastOptions options;
  options.rootRank = root;
  std::vector<at::Tensor> size = {at::tensor({static_cast<std::int64_t>(bytes.size())}, at::kLong)};
  const auto sequence = static_cast<std::uint64_t>(root);
  comm::wait(group, group.broadcast(size, options), "gathering the experts", sequence);
  std::vector<at::Tensor> data = {at::empty({size[0].item<std::int64_t>()}, at::kByte)};
  if (group.getRank() == root)
    std::copy(bytes.begin(), bytes.end(), data[0].data_ptr<std::uint8_t>());
  comm::wait(group, group.broadcast(data, options), "gathering the experts", sequence);

  const auto* received = data[0].const_data_ptr<std::uint8_t>();
  return state_from_bytes({received, received + data[0].numel()});
}

}  // namespace

std::vector<char> to_bytes(const MoEState& state) {
  c10::Dict<std::string, at::Tensor> dictionary;
  for (const auto& [name, tensor] : state) dictionary.insert(name, tensor.cpu());
  return torch::jit::pickle_save(dictionary);
}

MoEState state_from_bytes(const std::vector<char>& bytes) {
  MoEState state;
  const auto value = torch::jit::pickle_load(bytes);
  for (const auto& entry : value.toGenericDict()) {
    state.emplace(entry.key().toStringRef(), entry.value().toTensor());
  }
  return state;
}

MoEState MoELayer::local_state() const {
  NamedTensors tensors;
  append(tensors, "router.", *router_);
  if (shared_ != nullptr) append(tensors, "shared.", *shared_);
  for (const auto& [name, tensor] : experts_->expert_state()) {
    tensors.emplace_back("experts." + name, tensor);
  }
  for (const auto& item : exchange_->state()) tensors.push_back(item);
  const std::string merging = spec_of(dedup_.options());
  tensors.emplace_back(kMergingOptions,
                       at::empty({static_cast<std::int64_t>(merging.size())}, at::kByte));
  std::copy(merging.begin(), merging.end(), tensors.back().second.data_ptr<std::uint8_t>());
  tensors.emplace_back(kMergingState, dedup_.state());
  if (dedup_.options().bandwidth > 0) {
    tensors.emplace_back(concat(kGuard, exchange_->rank()), dedup_.guard_state());
  }
  const auto& probes = dedup_.pending_sums();
  if (probes[1] != 0) {
    tensors.emplace_back(concat(kProbes, exchange_->rank()),
                         at::tensor({probes[0], probes[1]}, at::kDouble));
  }
  MoEState state;
  for (const auto& [name, tensor] : tensors) state.emplace(name, tensor.clone());
  return state;
}

MoEState MoELayer::full_state() const {
  const MoEState mine = local_state();
  if (exchange_->ranks() == 1) return mine;
  MoEState all;
  for (int root = 0; root < exchange_->ranks(); ++root) {
    all.merge(broadcast(*exchange_->group(), mine, root));
  }
  return all;
}

void MoELayer::load_state(const MoEState& state, Merging merging) {
  NamedTensors targets;
  append(targets, "router.", *router_);
  if (shared_ != nullptr) append(targets, "shared.", *shared_);
  for (const auto& [name, tensor] : experts_->expert_state()) {
    targets.emplace_back("experts." + name, tensor);
  }
  for (const auto& [name, tensor] : targets) {
    const auto found = state.find(name);
    check(found != state.end(), "the state has no tensor '", name, "'");
    check(found->second.sizes() == tensor.sizes(), "'", name, "' has shape ", found->second.sizes(),
          " in the state, ", tensor.sizes(), " in the layer");
  }
  // States of models that never sent a row may lack the rest.
  const auto options = state.find(kMergingOptions);
  if (merging == Merging::kFromState && options != state.end()) {
    const at::Tensor text = options->second.to(at::kCPU, at::kByte).contiguous();
    const auto* bytes = text.const_data_ptr<std::uint8_t>();
    options_.dedup = parse_dedup(std::string(bytes, bytes + text.numel()));
    dedup_ = Dedup(options_.dedup, options_.router.dim, options_.layer, options_.seed);
    exchange_->set_agreement(agreement_of(options_));
  }
  const auto counters = state.find(kMergingState);
  if (counters != state.end()) dedup_.load_state(counters->second);
  // A rank that the saved model did not have expects what a new one does.
  const auto guard = state.find(concat(kGuard, exchange_->rank()));
  if (guard != state.end()) dedup_.load_guard_state(guard->second);
  for (const auto& [name, sums] : state) {
    if (!name.starts_with(kProbes) || sums.numel() != 2) continue;
    // With another number of ranks their sum stays what it was.
    const int source = std::atoi(name.c_str() + std::strlen(kProbes));
    if (source % exchange_->ranks() != exchange_->rank()) continue;
    dedup_.add_pending_sums({sums[0].item<double>(), sums[1].item<double>()});
  }
  exchange_->load_state({state.begin(), state.end()});
  const at::NoGradGuard no_grad;
  for (auto& [name, tensor] : targets) tensor.copy_(state.at(name));
}

}  // namespace thinwire::moe
