#include "thinwire/torch_ext/checkpoint/optimizer_state.h"

#include <ATen/ops/as_strided.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/api/include/torch/optim/adagrad.h>
#include <torch/csrc/api/include/torch/optim/adam.h>
#include <torch/csrc/api/include/torch/optim/adamw.h>
#include <torch/csrc/api/include/torch/optim/rmsprop.h>
#include <torch/csrc/api/include/torch/optim/sgd.h>

#include <algorithm>
#include <memory>
#include <typeinfo>
#include <utility>
#include <vector>

#include "thinwire/common/error.h"

namespace thinwire {
namespace {

using torch::optim::OptimizerParamState;

// The members of a parameter's state: a counter, or null, and tensors of the parameter's shape.
struct Moments {
  std::int64_t* step = nullptr;
  std::vector<std::pair<const char*, at::Tensor*>> tensors;
};

// Of a state of unknown type; empty where it is none that is known.
Moments moments_of(OptimizerParamState& state) {
  using namespace torch::optim;
  const auto adam = [](auto& s) {
    return Moments{&s.step(),
                   {{"exp_avg", &s.exp_avg()},
                    {"exp_avg_sq", &s.exp_avg_sq()},
                    {"max_exp_avg_sq", &s.max_exp_avg_sq()}}};
  };
  if (auto* s = dynamic_cast<AdamWParamState*>(&state)) return adam(*s);
  if (auto* s = dynamic_cast<AdamParamState*>(&state)) return adam(*s);
  if (auto* s = dynamic_cast<SGDParamState*>(&state))
    return {nullptr, {{"momentum_buffer", &s->momentum_buffer()}}};
  if (auto* s = dynamic_cast<RMSpropParamState*>(&state))
    return {&s->step(),
            {{"square_avg", &s->square_avg()},
             {"momentum_buffer", &s->momentum_buffer()},
             {"grad_avg", &s->grad_avg()}}};
  if (auto* s = dynamic_cast<AdagradParamState*>(&state)) return {&s->step(), {{"sum", &s->sum()}}};
  return {};
}

std::unique_ptr<OptimizerParamState> fresh_state(const torch::optim::Optimizer& optimizer) {
  using namespace torch::optim;
  if (dynamic_cast<const AdamW*>(&optimizer)) return std::make_unique<AdamWParamState>();
  if (dynamic_cast<const Adam*>(&optimizer)) return std::make_unique<AdamParamState>();
  if (dynamic_cast<const SGD*>(&optimizer)) return std::make_unique<SGDParamState>();
  if (dynamic_cast<const RMSprop*>(&optimizer)) return std::make_unique<RMSpropParamState>();
  if (dynamic_cast<const Adagrad*>(&optimizer)) return std::make_unique<AdagradParamState>();
  throw InvalidArgument(
      "the moments of SGD, Adam, AdamW, RMSprop and Adagrad can be saved by name; add another "
      "optimizer to a checkpoint without names");
}

// The pieces that lie in a parameter's memory.
std::vector<std::pair<std::string, at::Tensor>> pieces_of(const at::Tensor& parameter,
                                                          const NamedTensors& pieces) {
  std::vector<std::pair<std::string, at::Tensor>> found;
  const auto* begin = static_cast<const char*>(parameter.const_data_ptr());
  const auto* end = begin + parameter.nbytes();
  for (const auto& [name, piece] : pieces) {
    const auto* at = static_cast<const char*>(piece.const_data_ptr());
    if (piece.numel() > 0 && begin <= at && at < end) found.emplace_back(name, piece);
  }
  return found;
}

// The part of `moment`, which has the strides of `parameter`, that belongs to a piece.
at::Tensor part_of_moment(const at::Tensor& moment, const at::Tensor& parameter,
                          const at::Tensor& piece) {
  THINWIRE_ASSERT(moment.sizes() == parameter.sizes());
  THINWIRE_ASSERT(moment.strides() == parameter.strides());
  return at::as_strided(
      moment, piece.sizes(), piece.strides(),
      moment.storage_offset() + piece.storage_offset() - parameter.storage_offset());
}

// Fills the state of one parameter; returns whether there was anything to fill it with.
bool load_parameter(const at::Tensor& parameter, const NamedTensors& pieces,
                    const NamedTensors& saved, OptimizerParamState& state) {
  const Moments moments = moments_of(state);
  bool first = true, any = false;
  for (const auto& [name, piece] : pieces_of(parameter, pieces)) {
    const NamedTensors of_piece = part_of(saved, name + "/");
    if (moments.step != nullptr && !of_piece.empty()) {
      const std::int64_t steps = integer_of(of_piece, "step");
      check(first || steps == *moments.step, "'", name, "' has seen ", steps,
            " steps of the optimizer, the rest of its parameter ", *moments.step);
      *moments.step = steps;
    }
    first = false;
    for (const auto& [key, moment] : moments.tensors) {
      const auto found = of_piece.find(key);
      if (found == of_piece.end()) continue;
      check(found->second.sizes() == piece.sizes(), "the saved '", name, "/", key, "' has shape ",
            found->second.sizes(), ", its parameter ", piece.sizes());
      if (!moment->defined())
        *moment = at::zeros_like(parameter.detach().to(found->second.scalar_type()));
      part_of_moment(*moment, parameter, piece).copy_(found->second);
      any = true;
    }
  }
  return any;
}

}  // namespace

NamedTensors optimizer_state(const torch::optim::Optimizer& optimizer, const NamedTensors& pieces) {
  fresh_state(optimizer);  // refuses what it does not know
  NamedTensors saved;
  for (const auto& group : optimizer.param_groups()) {
    for (const at::Tensor& parameter : group.params()) {
      const auto found = optimizer.state().find(parameter.unsafeGetTensorImpl());
      if (found == optimizer.state().end()) continue;
      const Moments moments = moments_of(*found->second);
      const auto parts = pieces_of(parameter, pieces);
      check(!parts.empty(), "a parameter of shape ", parameter.sizes(),
            " that the optimizer has moments for is none of the pieces");
      for (const auto& [name, piece] : parts) {
        if (moments.step != nullptr) saved[name + "/step"] = integer_tensor(*moments.step);
        for (const auto& [key, moment] : moments.tensors)
          if (moment->defined())
            saved[concat(name, "/", key)] = part_of_moment(*moment, parameter, piece);
      }
    }
  }
  return saved;
}

void load_optimizer_state(torch::optim::Optimizer& optimizer, const NamedTensors& pieces,
                          const NamedTensors& state) {
  std::vector<std::pair<void*, std::unique_ptr<OptimizerParamState>>> loaded;
  for (const auto& group : optimizer.param_groups()) {
    for (const at::Tensor& parameter : group.params()) {
      auto fresh = fresh_state(optimizer);
      // torch makes the state of a parameter at its first gradient.
      if (load_parameter(parameter, pieces, state, *fresh))
        loaded.emplace_back(parameter.unsafeGetTensorImpl(), std::move(fresh));
    }
  }
  optimizer.state().clear();
  for (auto& [parameter, fresh] : loaded) optimizer.state()[parameter] = std::move(fresh);
}

namespace detail {
namespace {

template <typename Optimizer, typename State>
bool remembers_just(const torch::optim::Optimizer& optimizer) {
  return typeid(optimizer) == typeid(Optimizer) &&
         std::ranges::all_of(optimizer.state(), [](const auto& item) {
           const OptimizerParamState& state = *item.second;
           return typeid(state) == typeid(State);
         });
}

std::vector<at::Tensor> parameters_of(const torch::optim::Optimizer& optimizer) {
  std::vector<at::Tensor> all;
  for (const auto& group : optimizer.param_groups())
    all.insert(all.end(), group.params().begin(), group.params().end());
  return all;
}

}  // namespace

bool has_known_moments(const torch::optim::Optimizer& optimizer) {
  using namespace torch::optim;
  return remembers_just<AdamW, AdamWParamState>(optimizer) ||
         remembers_just<Adam, AdamParamState>(optimizer) ||
         remembers_just<SGD, SGDParamState>(optimizer) ||
         remembers_just<RMSprop, RMSpropParamState>(optimizer) ||
         remembers_just<Adagrad, AdagradParamState>(optimizer);
}

NamedTensors numbered_moments(const torch::optim::Optimizer& optimizer) {
  NamedTensors saved;
  const std::vector<at::Tensor> parameters = parameters_of(optimizer);
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const auto found = optimizer.state().find(parameters[i].unsafeGetTensorImpl());
    if (found == optimizer.state().end()) continue;
    const Moments moments = moments_of(*found->second);
    if (moments.step != nullptr) saved[concat(i, "/step")] = integer_tensor(*moments.step);
    for (const auto& [key, moment] : moments.tensors)
      if (moment->defined()) saved[concat(i, "/", key)] = *moment;
  }
  return saved;
}

void load_numbered_moments(torch::optim::Optimizer& optimizer, const NamedTensors& saved) {
  const std::vector<at::Tensor> parameters = parameters_of(optimizer);
  std::size_t known = 0;
  std::vector<std::unique_ptr<OptimizerParamState>> loaded(parameters.size());
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const NamedTensors of_parameter = part_of(saved, concat(i, "/"));
    if (of_parameter.empty()) continue;
    auto state = fresh_state(optimizer);
    const Moments moments = moments_of(*state);
    if (moments.step != nullptr) {
      *moments.step = integer_of(of_parameter, "step");
      ++known;
    }
    for (const auto& [key, moment] : moments.tensors) {
      const auto found = of_parameter.find(key);
      if (found == of_parameter.end()) continue;
      check(found->second.sizes() == parameters[i].sizes(), "the saved '", i, "/", key,
            "' has shape ", found->second.sizes(), ", its parameter ", parameters[i].sizes());
      *moment = at::empty_like(
          parameters[i].detach(),
          parameters[i].options().dtype(found->second.scalar_type()).requires_grad(false));
      moment->copy_(found->second);
      ++known;
    }
    loaded[i] = std::move(state);
  }
  check(known == saved.size(), "a saved state of an optimizer has ", saved.size(),
        " moments and counters, of which ", known, " belong to the ", parameters.size(),
        " parameters of this one");
  optimizer.state().clear();
  for (std::size_t i = 0; i < parameters.size(); ++i)
    if (loaded[i]) optimizer.state()[parameters[i].unsafeGetTensorImpl()] = std::move(loaded[i]);
}

}  // namespace detail
}  // namespace thinwire
