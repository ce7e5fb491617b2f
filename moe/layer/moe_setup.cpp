// Making a layer: what the ranks must agree on before its first pass.

#include <ATen/ops/tensor.h>

#include "thinwire/comm/failure/agreement.h"
#include "thinwire/comm/failure/failure.h"
#include "thinwire/comm/failure/guard.h"
#include "thinwire/comm/join/error_text.h"
#include "thinwire/comm/join/next_name.h"
#include "thinwire/comm/join/rank_local.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/sparse_values.h"
#include "thinwire/moe/layer/moe_layer.h"

namespace thinwire::moe {
namespace {

std::shared_ptr<ExpertGroup> make_experts(const MoEOptions& options,
                                          const ExpertPlacement& placement, int rank) {
  const std::int64_t first = placement.first(rank);
  const std::int64_t count = placement.count(rank);
  if (options.factory) return std::make_shared<CustomExperts>(first, count, options.factory);
  return std::make_shared<GroupedFfn>(first, count,
                                      FfnOptions{options.router.dim, options.hidden,
                                                 options.activation, options.bias, options.seed});
}

bool has_peers(const c10::intrusive_ptr<c10d::ProcessGroup>& group) {
  return group != nullptr && group->getSize() > 1;
}

// Groups that others have made may have no store to agree through; then the first pass compares.
bool can_agree(const c10::intrusive_ptr<c10d::ProcessGroup>& group) {
  return has_peers(group) && group->getStore() != nullptr;
}

// comm::agree_on_result() where the group can, else `make` alone.
void agree_in(const c10::intrusive_ptr<c10d::ProcessGroup>& group, const std::string& key,
              const char* what, const std::function<std::string()>& make) {
  if (can_agree(group)) {
    comm::agree_on_result(*group, key, what, make);
  } else {
    make();
  }
}

// The text of what `step` throws, "" where it does not; a rank that does not come is no mistake.
std::string mistake_in(const std::function<void()>& step) {
  try {
    step();
  } catch (const CommError&) {
    throw;
  } catch (const std::exception& error) {
    return comm::error_text(error);
  }
  return {};
}

}  // namespace

std::string agreement_of(const MoEOptions& options) {
  constexpr const char* kActivationNames[] = {"relu", "gelu", "silu", "swiglu"};
  const RouterOptions& router = options.router;
  return concat(
      "gate ", name_of(router.gate), "\ntop_k ", router.top_k, "\nscore ",
      router.score == Score::kSoftmax ? "softmax" : "sigmoid", "\nnormalize ",
      router.normalize ? "on" : "off", "\nweight factor ", number_text(router.weight_factor),
      "\nrouter capacity ", number_text(router.capacity_factor), "\nbias step ",
      number_text(router.bias_step), "\nhidden ", options.hidden, "\nactivation ",
      kActivationNames[static_cast<std::size_t>(options.activation)], "\nbias ",
      options.bias ? "on" : "off", "\nshared hidden ", options.shared_hidden, "\ncapacity ",
      options.capacity_factor, "\ndrop ",
      options.drop == DropPolicy::kPosition ? "position" : "probability", "\nexpert gradient ",
      options.expert_gradient == ExpertGradient::kMean ? "mean" : "sum", "\ndedup ",
      spec_of(options.dedup));
}

MoELayer::MoELayer(const MoEOptions& options, c10::intrusive_ptr<c10d::ProcessGroup> group,
                   c10::intrusive_ptr<c10d::ProcessGroup> replicas)
    : torch::nn::Module("MoELayer"), options_(options), replicas_(std::move(replicas)) {
  options_.router.seed = options.seed;
  if (can_agree(group)) name_ = comm::next_name(*group, "moe");
  const auto join_group = [&] {
    agree_in(group, name_, "a mixture of experts", [&] {
      build(group);
      return dispatcher_->options().agreement;
    });
  };
  if (has_peers(replicas_)) {
    join_replicas(group, join_group);
  } else {
    join_group();
  }
}

void MoELayer::build(const c10::intrusive_ptr<c10d::ProcessGroup>& group) {
  dedup_ = Dedup(options_.dedup, options_.router.dim, options_.layer, options_.seed);
  router_ = register_module("router", std::make_shared<Router>(options_.router));
  dispatcher_ = TokenDispatcher::make(group, {.dim = options_.router.dim,
                                              .experts = options_.router.experts,
                                              .rows = options_.rows,
                                              .chunks = options_.chunks,
                                              .share_rows = options_.share_rows,
                                              .layer = options_.layer,
                                              .seed = options_.seed,
                                              .agreement = agreement_of(options_)});
  experts_ = register_module("experts",
                             make_experts(options_, dispatcher_->placement(), dispatcher_->rank()));
  if (options_.shared_hidden > 0) {
    // A number that no routed expert has, for the initial weights.
    shared_ = register_module(
        "shared", std::make_shared<GroupedFfn>(
                      options_.router.experts, 1,
                      FfnOptions{options_.router.dim, options_.shared_hidden, options_.activation,
                                 options_.bias, options_.seed}));
  }
  load_.assign(static_cast<std::size_t>(options_.router.experts), 0);
  // With all experts on every rank they are replicas like any other parameter.
  if (dispatcher_->ranks() == 1) return;
  for (const at::Tensor& parameter : experts_->parameters()) comm::mark_rank_local(parameter);
  for (const at::Tensor& buffer : experts_->buffers()) comm::mark_rank_local(buffer);
}

// Note [Replicas agree]
// The groups are the rows of a table of all ranks, the replicas its columns. What one rank does
// wrong its row knows after a first agreement, and all columns, which are all ranks, after a second
// one. A mistake that only some columns find (replicas that were given other experts) their ranks
// tell their rows in a third. No rank leaves before: it would be missed where it did not speak.
void MoELayer::join_replicas(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                             const std::function<void()>& join_group) {
  constexpr const char* kWhat = "the replicas of experts";
  const std::string key = can_agree(replicas_) ? comm::next_name(*replicas_, "moe") : std::string();
  const std::string of_row = mistake_in(join_group);
  const std::string of_column = mistake_in([&] {
    agree_in(replicas_, key, kWhat, [&] {
      check(of_row.empty(), "in its group of experts, ", of_row);
      return concat("experts ", experts_->first_expert(), " to ",
                    experts_->first_expert() + experts_->count(), "\n",
                    dispatcher_->options().agreement);
    });
  });
  const std::string of_table = mistake_in([&] {
    agree_in(group, name_ + "/replicas", kWhat, [&] {
      check(of_column.empty(), "among its replicas, ", of_column);
      return std::string();
    });
  });
  if (!of_table.empty()) throw InvalidArgument(of_column.empty() ? of_table : of_column);
  // A factory may have drawn other weights.
  std::vector<at::Tensor> tensors = experts_->parameters();
  for (const at::Tensor& buffer : experts_->buffers()) tensors.push_back(buffer);
  constexpr const char* kOperation = "broadcasting the replicas of experts";
  comm::guard(*replicas_, kOperation, 0, [&] {
    for (const at::Tensor& tensor : tensors) {
      std::vector<at::Tensor> one = {tensor.detach()};
      comm::wait(*replicas_, replicas_->broadcast(one), kOperation, 0);
    }
  });
}

void MoELayer::agree(const char* what, const std::function<std::string()>& check) const {
  agree_in(dispatcher_->group(), concat(name_, "/", agreements_++), what, check);
}

}  // namespace thinwire::moe
