#include "thinwire/torch_ext/adapter/lora.h"

#include <ATen/core/grad_mode.h>
#include <torch/nn/init.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <sstream>

#include "thinwire/common/error.h"
#include "thinwire/common/pattern.h"
#include "thinwire/compressors/peft/adapter_types.h"
#include "thinwire/compressors/peft/json_strict.h"
#include "thinwire/torch_ext/compression/compression.h"

namespace thinwire {
namespace {

using peft::detail::Json;

constexpr std::string_view kPrefix = "base_model.model.";
constexpr std::string_view kFactors[] = {".lora_A.weight", ".lora_B.weight"};

// The `weight` member of a module that can be adapted, null for others.
at::Tensor* weight_of(torch::nn::Module& module) {
  if (auto* linear = module.as<torch::nn::LinearImpl>()) return &linear->weight;
  if (auto* convolution = module.as<torch::nn::Conv2dImpl>()) return &convolution->weight;
  return nullptr;
}

void check_options(const LoraOptions& options) {
  check(options.rank > 0, "the rank of LoRA must be positive, got ", options.rank);
  check(options.alpha > 0 && std::isfinite(options.alpha), "lora_alpha must be positive, got ",
        options.alpha);
}

double scale_for(const LoraOptions& options, std::int64_t rank) {
  const auto r = static_cast<double>(rank);
  return options.alpha / (options.rslora ? std::sqrt(r) : r);
}

// Whether a key of the config has a value that asks for something.
bool asks_for(const Json& config, const char* key) {
  const auto found = config.find(key);
  if (found == config.end() || found->is_null()) return false;
  if (found->is_boolean()) return found->get<bool>();
  if (found->is_string()) return *found != "none";
  return !found->empty();
}

LoraOptions options_of(const std::string& text) {
  const Json config = parse_json(text, "adapter_config.json", 64);
  const std::string type = peft::detail::string_member(config, "peft_type", "adapter_config.json");
  check(type == "LORA", "the adapter is of type ", type, "; Lora takes LORA");
  for (const char* key : {"use_dora", "bias", "lora_bias", "fan_in_fan_out", "alpha_pattern",
                          "modules_to_save", "layer_replication", "trainable_token_indices"})
    if (asks_for(config, key))
      throw InvalidArgument(
          concat("adapters with ", key, " = ", config[key].dump(), " are not supported"));
  const auto whole = peft::AdapterConfig::parse(text, "adapter_config.json");
  check(!whole.changes_base(), "adapters with init_lora_weights = '", whole.init_weights,
        "' are relative to a base that the initialisation has changed; convert the adapter when it "
        "is saved (the PEFT library's path_initial_model_for_weight_conversion)");
  LoraOptions options;
  options.alpha = peft::detail::number_member(config, "lora_alpha", "adapter_config.json");
  options.rank = peft::detail::integer_member(config, "r", "adapter_config.json");
  options.rslora = asks_for(config, "use_rslora");
  check_options(options);
  return options;
}

std::string new_config(const LoraOptions& options, const std::vector<std::string>& targets) {
  const auto whole = static_cast<std::int64_t>(options.alpha);
  const Json alpha =
      static_cast<double>(whole) == options.alpha ? Json(whole) : Json(options.alpha);
  const Json config = {{"base_model_name_or_path", nullptr},
                       {"bias", "none"},
                       {"fan_in_fan_out", false},
                       {"inference_mode", true},
                       {"init_lora_weights", true},
                       {"lora_alpha", alpha},
                       {"lora_dropout", 0.0},
                       {"modules_to_save", nullptr},
                       {"peft_type", "LORA"},
                       {"r", options.rank},
                       {"target_modules", targets},
                       {"task_type", nullptr},
                       {"use_dora", false},
                       {"use_rslora", options.rslora}};
  return config.dump(2) + "\n";
}

// The path of the module that a tensor of an adapter belongs to, "" where the name is no factor's.
std::string path_of(std::string_view name) {
  if (!name.starts_with(kPrefix)) return "";
  for (const std::string_view factor : kFactors)
    if (name.ends_with(factor) && name.size() > kPrefix.size() + factor.size())
      return std::string(name.substr(kPrefix.size(), name.size() - kPrefix.size() - factor.size()));
  return "";
}

}  // namespace

Lora::Lora(std::shared_ptr<torch::nn::Module> base, LoraOptions options)
    : torch::nn::Module("Lora"), base_(std::move(base)), options_(std::move(options)) {
  check(base_ != nullptr, "Lora needs a module, got a null pointer");
  check_options(options_);
  std::vector<bool> used(options_.target_modules.size(), false);
  for (const auto& item : base_->named_modules("", /*include_self=*/false)) {
    if (weight_of(*item.value()) == nullptr) continue;
    bool chosen = false;
    for (std::size_t i = 0; i < used.size(); ++i) {
      if (!matches_pattern(options_.target_modules[i], item.key())) continue;
      used[i] = chosen = true;
    }
    if (chosen) adopt(item.key(), item.value(), options_.rank);
  }
  for (std::size_t i = 0; i < used.size(); ++i)
    check(used[i], "the pattern '", options_.target_modules[i],
          "' matches no Linear or Conv2d module inside ", base_->name());
  check(!layers_.empty(), "there is no Linear or Conv2d module to adapt");
  config_ = new_config(options_, target_modules());
  freeze();
}

Lora::Lora(std::shared_ptr<torch::nn::Module> base, const AdapterState& adapter)
    : torch::nn::Module("Lora"),
      base_(std::move(base)),
      options_(options_of(adapter.config)),
      config_(adapter.config) {
  check(base_ != nullptr, "Lora needs a module, got a null pointer");
  const auto modules = base_->named_modules("", /*include_self=*/false);
  std::map<std::string, std::int64_t> ranks;
  for (const auto& [name, tensor] : adapter.tensors) {
    const std::string path = path_of(name);
    const auto* module = path.empty() ? nullptr : modules.find(path);
    check(module != nullptr && weight_of(**module) != nullptr, "the adapter's tensor '", name,
          "' belongs to no Linear or Conv2d module inside ", base_->name());
    if (name.ends_with(kFactors[0])) ranks[path] = tensor.dim() > 0 ? tensor.size(0) : 0;
  }
  for (const auto& item : modules) {
    const auto rank = ranks.find(item.key());
    if (rank == ranks.end()) continue;
    const std::string first = adopt(item.key(), item.value(), rank->second);
    check(first.empty(), "the adapter has factors for '", item.key(),
          "', whose weight is that of '", first, "'");
  }
  check(!layers_.empty(), "the adapter has no factor of LoRA");
  load_state(adapter);
  options_.target_modules = target_modules();
  freeze();
}

Lora::~Lora() {
  if (merged_) unmerge();
  for (Layer& layer : layers_)
    for (at::Tensor* weight : layer.weights) *weight = layer.base;
  for (at::Tensor& parameter : frozen_) parameter.requires_grad_(true);
}

void Lora::freeze() {
  for (at::Tensor& parameter : base_->parameters()) {
    if (!parameter.requires_grad()) continue;
    frozen_.push_back(parameter);
    parameter.requires_grad_(false);
  }
}

std::string Lora::adopt(const std::string& path, const std::shared_ptr<torch::nn::Module>& module,
                        std::int64_t rank) {
  check(rank > 0, "the factors of '", path, "' have rank ", rank);
  at::Tensor* weight = weight_of(*module);
  check(weight->is_leaf(), "module '", path, "' carries another adapter already");
  for (Layer& layer : layers_) {
    if (!layer.base.is_same(*weight)) continue;
    if (std::find(layer.weights.begin(), layer.weights.end(), weight) == layer.weights.end()) {
      layer.modules.push_back(module);
      layer.weights.push_back(weight);
    }
    return layer.path;
  }
  std::vector<std::int64_t> a_shape = weight->sizes().vec(), b_shape(a_shape.size(), 1);
  if (const auto* convolution = module->as<torch::nn::Conv2dImpl>())
    check(convolution->options.groups() == 1, "module '", path, "' is a Conv2d with ",
          convolution->options.groups(), " groups; Lora takes those with one");
  b_shape[0] = a_shape[0];
  b_shape[1] = a_shape[0] = rank;

  // A child for every word of the path, so that the parameters have PEFT's names.
  torch::nn::Module* at = this;
  std::istringstream words(path);
  const auto child = [&](const std::string& word) {
    const auto children = at->named_children();
    const auto* found = children.find(word);
    at = found != nullptr
             ? found->get()
             : at->register_module(word, std::make_shared<torch::nn::Module>(word)).get();
  };
  for (std::string word; std::getline(words, word, '.');) child(word);
  torch::nn::Module* place = at;
  const auto factor = [&](const std::string& name, at::IntArrayRef shape) {
    at = place;
    child(name);
    return at->register_parameter(
        "weight", at::zeros(shape, at::TensorOptions(at::kFloat).device(weight->device())));
  };
  Layer layer{path,
              {module},
              {weight},
              *weight,
              {},
              factor("lora_A", a_shape),
              factor("lora_B", b_shape),
              scale_for(options_, rank)};
  // By the CPU's generator, so that the same seed gives the same adapter on any device.
  const at::NoGradGuard no_grad;
  layer.a.copy_(torch::nn::init::kaiming_uniform_(at::empty(a_shape, at::kFloat), std::sqrt(5.0)));
  layers_.push_back(std::move(layer));
  return {};
}

at::Tensor Lora::effective(const Layer& layer) const {
  const at::Tensor product = layer.b.flatten(1).mm(layer.a.flatten(1)).view(layer.base.sizes());
  return at::add(layer.base.to(at::kFloat), product, layer.scale).to(layer.base.scalar_type());
}

void Lora::refresh() {
  if (merged_) return;
  for (Layer& layer : layers_) {
    const at::Tensor adapted = effective(layer);
    for (at::Tensor* weight : layer.weights) *weight = adapted;
  }
}

void Lora::merge() {
  if (merged_) return;
  at::NoGradGuard no_grad;
  // All memory first: a base that is merged in part would be of no use.
  std::vector<at::Tensor> merged;
  for (Layer& layer : layers_) {
    merged.push_back(effective(layer));
    layer.kept = layer.base.detach().clone();
  }
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    layers_[i].base.copy_(merged[i]);
    for (at::Tensor* weight : layers_[i].weights) *weight = layers_[i].base;
  }
  merged_ = true;
}

void Lora::unmerge() {
  if (!merged_) return;
  at::NoGradGuard no_grad;
  for (Layer& layer : layers_) {
    layer.base.copy_(layer.kept);
    layer.kept.reset();
  }
  merged_ = false;
}

NamedTensors Lora::factors() const {
  NamedTensors all;
  for (const Layer& layer : layers_) {
    const std::string stem = concat(kPrefix, layer.path);
    all[concat(stem, kFactors[0])] = layer.a;
    all[concat(stem, kFactors[1])] = layer.b;
  }
  return all;
}

AdapterState Lora::state() const {
  AdapterState adapter{config_, factors()};
  for (auto& [name, factor] : adapter.tensors) factor = factor.detach().clone();
  return adapter;
}

void Lora::load_state(const AdapterState& adapter) {
  check(!merged_, "unmerge before loading other factors");
  const LoraOptions theirs = options_of(adapter.config);
  check(theirs.alpha == options_.alpha && theirs.rslora == options_.rslora,
        "the adapter has lora_alpha ", theirs.alpha, theirs.rslora ? " with rslora" : "",
        ", expected ", options_.alpha, options_.rslora ? " with rslora" : "");
  check(adapter.tensors.size() == 2 * layers_.size(), "the adapter has ", adapter.tensors.size(),
        " tensors, the ", layers_.size(), " adapted modules need two each");
  const auto each = [&](auto&& action) {
    for (Layer& layer : layers_) {
      action(concat(kPrefix, layer.path, kFactors[0]), layer.a);
      action(concat(kPrefix, layer.path, kFactors[1]), layer.b);
    }
  };
  each([&](const std::string& name, at::Tensor& factor) {
    const auto found = adapter.tensors.find(name);
    check(found != adapter.tensors.end(), "the adapter lacks '", name, "'");
    check(found->second.sizes() == factor.sizes(), "'", name, "' has the shape ",
          found->second.sizes(), ", expected ", factor.sizes());
    const at::ScalarType type = found->second.scalar_type();
    check(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf, "'", name, "' is ",
          toString(type),
          ", which the float32 factors cannot hold; expected Float, BFloat16 or "
          "Half");
  });
  at::NoGradGuard no_grad;
  each(
      [&](const std::string& name, at::Tensor& factor) { factor.copy_(adapter.tensors.at(name)); });
}

std::vector<std::string> Lora::target_modules() const {
  std::vector<std::string> paths;
  for (const Layer& layer : layers_) paths.push_back(layer.path);
  return paths;
}

double Lora::scale_of(const std::string& path) const {
  for (const Layer& layer : layers_)
    if (layer.path == path) return layer.scale;
  throw InvalidArgument(concat("module '", path, "' is not adapted"));
}

}  // namespace thinwire
