#include "thinwire/moe/router/router.h"

#include <ATen/ATen.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <numeric>

#include "thinwire/common/error.h"
#include "thinwire/common/spec.h"
#include "thinwire/moe/router/initialize.h"

namespace thinwire::moe {
namespace {

constexpr std::pair<const char*, Gate> kGates[] = {{"topk", Gate::kTopK},
                                                   {"noisy", Gate::kNoisyTopK},
                                                   {"switch", Gate::kSwitch},
                                                   {"gshard", Gate::kGShard},
                                                   {"expert_choice", Gate::kExpertChoice},
                                                   {"sigmoid_bias", Gate::kSigmoidBias}};

RouterOptions checked(RouterOptions options) {
  check(options.dim >= 1, "a router needs the dimension of its tokens, got ", options.dim);
  check(options.experts >= 1, "a router needs at least one expert, got ", options.experts);
  if (options.gate == Gate::kSwitch) {
    check(options.top_k == 1,
          "the switch gate sends a token to one expert, got top_k=", options.top_k);
  }
  if (options.gate == Gate::kGShard) {
    check(options.top_k == 2,
          "the gshard gate sends a token to two experts, got top_k=", options.top_k);
  }
  if (options.gate == Gate::kSigmoidBias) options.score = Score::kSigmoid;
  // A single weight divided by itself is 1, and the router would get no gradient.
  if (options.top_k == 1) options.normalize = false;
  check(options.top_k >= 1 && options.top_k <= options.experts, "top_k must lie in [1, ",
        options.experts, "], the number of experts, got ", options.top_k);
  check(options.jitter >= 0 && options.jitter < 1, "jitter must lie in [0, 1), got ",
        options.jitter);
  check(options.capacity_factor > 0, "the capacity factor of expert choice must be above 0, got ",
        options.capacity_factor);
  return options;
}

// Numbers of the tokens that count.
std::vector<std::int32_t> valid_tokens(const at::Tensor& padding, std::int64_t tokens) {
  std::vector<std::int32_t> valid;
  if (!padding.defined()) {
    valid.resize(static_cast<std::size_t>(tokens));
    std::iota(valid.begin(), valid.end(), 0);
    return valid;
  }
  const at::Tensor mask = padding.to(at::kCPU, at::kBool).contiguous();
  const bool* is_padding = mask.const_data_ptr<bool>();
  for (std::int64_t t = 0; t < tokens; ++t) {
    if (!is_padding[t]) valid.push_back(static_cast<std::int32_t>(t));
  }
  return valid;
}

}  // namespace

Gate gate_of(const std::string& name) {
  std::vector<std::string> names;
  for (const auto& [known, gate] : kGates) {
    if (name == known) return gate;
    names.emplace_back(known);
  }
  const std::string near = nearest_name(name, names);
  throw InvalidArgument(concat("unknown gate '", name, "', known are topk, noisy, switch, gshard, ",
                               "expert_choice and sigmoid_bias",
                               near.empty() ? "" : concat(" (did you mean ", near, "?)")));
}

std::string name_of(Gate gate) {
  for (const auto& [name, known] : kGates) {
    if (known == gate) return name;
  }
  return "unknown";
}

Router::Router(const RouterOptions& options)
    : torch::nn::Module("Router"), options_(checked(options)) {
  const std::int64_t shape[] = {options_.experts, options_.dim};
  weight_ =
      register_parameter("weight", uniform_weights(shape, options_.dim, options_.seed, 1 << 20));
  if (options_.gate == Gate::kNoisyTopK) {
    noise_weight_ = register_parameter("noise_weight", at::zeros(shape));
  }
  if (options_.gate == Gate::kSigmoidBias) {
    bias_ = register_buffer("bias", at::zeros({options_.experts}));
  }
}

at::Tensor Router::logits_of(const at::Tensor& tokens) {
  const auto dtype = tokens.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  at::Tensor input = tokens.to(dtype);
  if (options_.gate == Gate::kSwitch && options_.jitter > 0 && is_training()) {
    input = input * at::empty_like(input).uniform_(1 - options_.jitter, 1 + options_.jitter);
  }
  at::Tensor logits = at::linear(input, weight_.to(dtype));
  if (options_.gate == Gate::kNoisyTopK && is_training()) {
    const at::Tensor deviation = at::softplus(at::linear(input, noise_weight_.to(dtype)));
    logits = logits + deviation * at::randn_like(logits);
  }
  return logits;
}

Routing Router::forward(const at::Tensor& tokens, const at::Tensor& padding) {
  check(tokens.dim() == 2 && tokens.size(1) == options_.dim, "tokens of shape [T, ", options_.dim,
        "] expected, got ", tokens.sizes());
  check(!padding.defined() || (padding.dim() == 1 && padding.size(0) == tokens.size(0)),
        "a padding mask of shape [", tokens.size(0), "] expected, got ",
        padding.defined() ? concat(padding.sizes()) : "none");
  // Autocast would compute the logits in half precision and send tokens elsewhere.
  const c10::impl::ExcludeDispatchKeyGuard in_full_precision(c10::autocast_dispatch_keyset);
  const auto valid = valid_tokens(padding, tokens.size(0));
  const at::Tensor logits = logits_of(
      padding.defined() ? tokens.index_select(0, index_tensor(valid, tokens.device())) : tokens);
  at::Tensor scores, probabilities;
  if (options_.score == Score::kSoftmax) {
    scores = probabilities = at::softmax(logits, 1);
  } else {
    scores = at::sigmoid(logits);
    probabilities = scores / scores.sum(1, true);
  }
  Routing routing = options_.gate == Gate::kExpertChoice ? choose_tokens(scores, valid)
                                                         : choose_experts(scores, valid);
  if (options_.weight_factor != 1.0) routing.weight = routing.weight * options_.weight_factor;
  routing.logits = logits;
  routing.probabilities = probabilities;
  return routing;
}

Routing Router::choose_experts(const at::Tensor& scores, const std::vector<std::int32_t>& token) {
  const std::int64_t k = options_.top_k;
  at::Tensor ranking = scores.detach();
  if (bias_.defined()) ranking = ranking + bias_;
  // A stable sort: of equal scores the expert with the lower number wins.
  const at::Tensor chosen =
      std::get<1>(at::sort(ranking, /*stable=*/true, 1, /*descending=*/true)).narrow(1, 0, k);
  at::Tensor weight = scores.gather(1, chosen);
  if (options_.normalize) {
    // Scores of sigmoid gates may all underflow to 0.
    weight = weight / weight.sum(1, true).clamp_min(1e-20);
  }
  weight = weight.reshape({-1});

  at::Tensor keep;  // [T, 2] bool, gshard in training
  if (options_.gate == Gate::kGShard && is_training()) {
    const at::Tensor second = weight.detach().view({-1, 2}).select(1, 1);
    keep = (second * 2 > at::rand_like(second)).cpu();
  }
  Routing routing;
  const at::Tensor host = chosen.cpu().contiguous();
  const auto* expert = host.const_data_ptr<std::int64_t>();
  std::vector<std::int32_t> kept;
  for (std::size_t t = 0; t < token.size(); ++t) {
    for (std::int64_t c = 0; c < k; ++c) {
      if (c == 1 && keep.defined() && !keep.const_data_ptr<bool>()[t]) continue;
      const std::int64_t flat = static_cast<std::int64_t>(t) * k + c;
      routing.pairs.token.push_back(token[t]);
      routing.pairs.expert.push_back(static_cast<std::int32_t>(expert[flat]));
      routing.pairs.choice.push_back(static_cast<std::int32_t>(c));
      kept.push_back(static_cast<std::int32_t>(flat));
    }
  }
  routing.weight =
      keep.defined() ? weight.index_select(0, index_tensor(kept, weight.device())) : weight;
  return routing;
}

Routing Router::choose_tokens(const at::Tensor& scores, const std::vector<std::int32_t>& token) {
  const auto tokens = static_cast<std::int64_t>(token.size());
  const std::int64_t capacity =
      expert_capacity(tokens, options_.top_k, options_.experts, options_.capacity_factor);
  // NaN would sort before everything else.
  const at::Tensor ranking = at::nan_to_num(scores.detach(), -1.0).t();
  const at::Tensor chosen = std::get<1>(at::sort(ranking, /*stable=*/true, 1, /*descending=*/true))
                                .narrow(1, 0, capacity);
  Routing routing;
  routing.weight = scores.t().gather(1, chosen).reshape({-1});
  const at::Tensor host = chosen.cpu().contiguous();
  const auto* index = host.const_data_ptr<std::int64_t>();
  for (std::int64_t e = 0; e < options_.experts; ++e) {
    for (std::int64_t c = 0; c < capacity; ++c) {
      routing.pairs.token.push_back(token[static_cast<std::size_t>(index[e * capacity + c])]);
      routing.pairs.expert.push_back(static_cast<std::int32_t>(e));
      routing.pairs.choice.push_back(0);
    }
  }
  return routing;
}

void Router::update_bias(const std::vector<std::int64_t>& expert_rows) {
  check(options_.gate == Gate::kSigmoidBias, "only the sigmoid_bias gate has a bias");
  check(static_cast<std::int64_t>(expert_rows.size()) == options_.experts, "rows of ",
        options_.experts, " experts expected, got ", expert_rows.size());
  const double mean = static_cast<double>(std::accumulate(expert_rows.begin(), expert_rows.end(),
                                                          std::int64_t{0})) /
                      static_cast<double>(options_.experts);
  at::Tensor step = at::empty({options_.experts}, at::kFloat);
  for (std::size_t e = 0; e < expert_rows.size(); ++e) {
    const double lack = mean - static_cast<double>(expert_rows[e]);
    step.data_ptr<float>()[e] = static_cast<float>(options_.bias_step * ((lack > 0) - (lack < 0)));
  }
  bias_.add_(step.to(bias_.device()));
}

}  // namespace thinwire::moe
