#include "thinwire/examples/support/moe_language_model.h"

#include "thinwire/common/error.h"

namespace thinwire::examples {

namespace nn = torch::nn;

constexpr std::int64_t kBytes = 256;

// Of a mixture's name in the model, and of the names of its tensors in a state.
std::string name_of_mixture(std::size_t layer) {
  return concat("mixture", layer);
}

nn::LayerNorm layer_norm(std::int64_t dim) {
  return nn::LayerNorm(nn::LayerNormOptions({dim}));
}

// Attention and the norms of one layer; the mixture belongs to the model.
class TransformerBlock : public nn::Module {
 public:
  TransformerBlock(std::int64_t dim, std::int64_t heads) : nn::Module("Block"), heads_(heads) {
    attention_norm_ = register_module("attention_norm", layer_norm(dim));
    mixture_norm_ = register_module("mixture_norm", layer_norm(dim));
    qkv_ = register_module("qkv", nn::Linear(dim, 3 * dim));
    out_ = register_module("out", nn::Linear(dim, dim));
  }

  torch::Tensor attend(const torch::Tensor& x) {
    const std::int64_t batch = x.size(0), length = x.size(1), dim = x.size(2);
    const auto parts = qkv_(attention_norm_(x))
                           .view({batch, length, 3, heads_, dim / heads_})
                           .permute({2, 0, 3, 1, 4})
                           .unbind(0);
    const torch::Tensor mixed =
        at::scaled_dot_product_attention(parts[0], parts[1], parts[2], {}, 0.0, /*is_causal=*/true);
    return x + out_(mixed.transpose(1, 2).reshape({batch, length, dim}));
  }
  torch::Tensor normalize(const torch::Tensor& x) { return mixture_norm_(x); }

 private:
  std::int64_t heads_;
  nn::LayerNorm attention_norm_{nullptr}, mixture_norm_{nullptr};
  nn::Linear qkv_{nullptr}, out_{nullptr};
};

MoELanguageModel::MoELanguageModel(const LanguageModelOptions& options,
                                   const c10::intrusive_ptr<c10d::ProcessGroup>& group)
    : nn::Module("MoELanguageModel"), options_(options) {
  check(options.layers >= 1 && options.dim >= 1 && options.context >= 1,
        "a model needs layers, dim and context of at least 1, got ", options.layers, ", ",
        options.dim, " and ", options.context);
  check(options.heads >= 1 && options.dim % options.heads == 0, "the width ", options.dim,
        " cannot be divided among ", options.heads, " heads");
  token_ = register_module("token", nn::Embedding(kBytes, options.dim));
  position_ = register_module("position", nn::Embedding(options.context, options.dim));
  for (const auto& embedding : {token_, position_}) nn::init::normal_(embedding->weight, 0, 0.02);
  for (std::int64_t layer = 0; layer < options.layers; ++layer) {
    const std::string name = std::to_string(layer);
    blocks_.push_back(register_module(
        "block" + name, std::make_shared<TransformerBlock>(options.dim, options.heads)));
    moe::MoEOptions moe = options.moe;
    moe.router.dim = options.dim;
    moe.layer = static_cast<std::uint32_t>(layer);
    moe.seed = options.seed * 1'000 + static_cast<std::uint64_t>(layer);
    mixtures_.push_back(register_module(name_of_mixture(static_cast<std::size_t>(layer)),
                                        std::make_shared<moe::MoELayer>(moe, group)));
  }
  norm_ = register_module("norm", layer_norm(options.dim));
  head_ = register_module("head", nn::Linear(options.dim, kBytes));
}

std::pair<torch::Tensor, torch::Tensor> MoELanguageModel::forward(const torch::Tensor& bytes) {
  check(bytes.dim() == 2 && bytes.size(1) <= options_.context,
        "bytes of shape [B, T <= ", options_.context, "] expected, got ", bytes.sizes());
  torch::Tensor x = token_(bytes) + position_(torch::arange(bytes.size(1)));
  torch::Tensor auxiliary = torch::zeros({});
  for (std::size_t layer = 0; layer < blocks_.size(); ++layer) {
    x = blocks_[layer]->attend(x);
    const moe::MoEOutput mixed = mixtures_[layer]->forward(blocks_[layer]->normalize(x));
    x = x + mixed.output;
    auxiliary = auxiliary + mixed.loss;
  }
  return {head_(norm_(x)), auxiliary};
}

moe::MoESummary MoELanguageModel::summary() const {
  moe::MoESummary sum;
  for (const auto& mixture : mixtures_) sum += mixture->summary();
  return sum;
}

std::vector<std::pair<std::string, torch::Tensor>> MoELanguageModel::own_parameters() const {
  std::vector<std::pair<std::string, torch::Tensor>> own;
  for (const auto& item : named_parameters()) {
    // The mixtures say themselves what a state holds of them.
    if (!item.key().starts_with("mixture")) own.emplace_back("model." + item.key(), item.value());
  }
  return own;
}

NamedTensors MoELanguageModel::gather(NamedTensors (moe::MoELayer::*of_mixture)() const) const {
  NamedTensors state;
  for (const auto& [name, parameter] : own_parameters()) state.emplace(name, parameter.detach());
  for (std::size_t layer = 0; layer < mixtures_.size(); ++layer)
    insert_part(state, name_of_mixture(layer) + ".", ((*mixtures_[layer]).*of_mixture)());
  return state;
}

NamedTensors MoELanguageModel::weights() const {
  return gather(&moe::MoELayer::weights);
}
NamedTensors MoELanguageModel::local_state() const {
  return gather(&moe::MoELayer::local_state);
}
NamedTensors MoELanguageModel::full_state() const {
  NamedTensors state = gather(&moe::MoELayer::full_state);
  for (auto& [name, tensor] : state) tensor = tensor.clone();
  return state;
}

void MoELanguageModel::load_state(const NamedTensors& state) {
  const torch::NoGradGuard no_grad;
  for (const auto& [name, parameter] : own_parameters()) {
    const auto found = state.find(name);
    check(found != state.end(), "the state has no tensor '", name, "'");
    check(found->second.sizes() == parameter.sizes(), "'", name, "' has shape ",
          found->second.sizes(), " in the state, ", parameter.sizes(), " in the model");
    parameter.detach().copy_(found->second);
  }
  for (std::size_t layer = 0; layer < mixtures_.size(); ++layer) {
    const std::string prefix = name_of_mixture(layer) + ".";
    NamedTensors part;
    for (const auto& [name, tensor] : state) {
      if (name.starts_with(prefix)) part.emplace(name.substr(prefix.size()), tensor);
    }
    mixtures_[layer]->load_state(part, moe::MoELayer::Merging::kKeepOptions);
  }
}

}  // namespace thinwire::examples
