#include "thinwire/compressors/peft/adapter_types.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/json_strict.h"

namespace thinwire::peft {
namespace {

// A word that one of the dot-separated parts of a tensor's name begins with. The bases are the
// library's initial values with which an adapter is the identity (tuners/*/layer.py), or, for
// factors that start at random, zero: there the product of all factors is nothing.
struct KnownTensor {
  std::string_view peft_type, word;
  float base;
};
constexpr std::array kKnown = {
    KnownTensor{"LORA", "lora_A", 0},
    KnownTensor{"LORA", "lora_B", 0},
    KnownTensor{"LORA", "lora_embedding_A", 0},
    KnownTensor{"LORA", "lora_embedding_B", 0},
    KnownTensor{"ADALORA", "lora_A", 0},
    KnownTensor{"ADALORA", "lora_B", 0},
    KnownTensor{"ADALORA", "lora_E", 0},
    KnownTensor{"IA3", "ia3_l", 1},
    KnownTensor{"LOHA", "hada_w", 0},
    KnownTensor{"LOHA", "hada_t", 0},
    KnownTensor{"LOKR", "lokr_", 0},
    KnownTensor{"VERA", "vera_lambda_b", 0},
    KnownTensor{"RANDLORA", "randlora_lambda", 0},
    KnownTensor{"FOURIERFT", "fourierft_spectrum", 0},
    KnownTensor{"WAVEFT", "waveft_spectrum", 0},
    KnownTensor{"C3A", "c3a_kernel", 0},
    KnownTensor{"MISS", "miss_block", 0},
    KnownTensor{"SHIRA", "shira_weight", 0},
    KnownTensor{"OFT", "oft_R", 0},
    KnownTensor{"BOFT", "boft_R", 0},
    KnownTensor{"BOFT", "boft_s", 1},
    KnownTensor{"ROAD", "road_theta", 0},
    KnownTensor{"ROAD", "road_alpha", 1},
};

// The part of a parameter's name that begins with `word`, empty where none does.
std::string_view part_with(std::string_view name, std::string_view word) {
  for (std::size_t at = 0; at <= name.size();) {
    const std::size_t dot = std::min(name.find('.', at), name.size());
    const std::string_view part = name.substr(at, dot - at);
    if (part.starts_with(word)) return part;
    at = dot + 1;
  }
  return {};
}

// What init_lora_weights may say without the base being changed.
constexpr std::array<std::string_view, 4> kPlainInits = {"gaussian", "eva", "orthogonal", "mica"};

std::string text_or_empty(const detail::Json& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_string() ? found->get<std::string>() : std::string();
}

bool flag_of(const detail::Json& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_boolean() && found->get<bool>();
}

}  // namespace

std::optional<float> base_of_tensor(std::string_view peft_type, std::string_view tensor) {
  for (const KnownTensor& known : kKnown)
    if (known.peft_type == peft_type && !part_with(tensor, known.word).empty()) return known.base;
  return std::nullopt;
}

bool has_bases(std::string_view peft_type) {
  return std::any_of(kKnown.begin(), kKnown.end(),
                     [&](const KnownTensor& known) { return known.peft_type == peft_type; });
}

std::string role_of(std::string_view tensor) {
  for (const char* word : {"lora_A", "lora_embedding_A", "lora_down"})
    if (tensor.find(word) != std::string_view::npos) return "A";
  for (const char* word : {"lora_B", "lora_embedding_B", "lora_up"})
    if (tensor.find(word) != std::string_view::npos) return "B";
  for (const char* word : {"lora_E", "hada_", "lokr_", "boft_", "road_"})
    if (const std::string_view part = part_with(tensor, word); !part.empty())
      return std::string(part);
  return "other";
}

AdapterConfig AdapterConfig::parse(const std::string& text, const std::string& where) {
  // The depth that JSON writers and readers cope with; a config is flat in practice.
  const detail::Json json = parse_json(text, where, 64);
  AdapterConfig config;
  config.peft_type = detail::string_member(json, "peft_type", where);
  config.base_model = text_or_empty(json, "base_model_name_or_path");
  config.revision = text_or_empty(json, "revision");
  config.init_weights = text_or_empty(json, "init_lora_weights");
  config.rslora = flag_of(json, "use_rslora");
  config.dora = flag_of(json, "use_dora");
  for (const auto& [alpha, rank] : {std::pair{"lora_alpha", "r"}, {"alpha", "r"}}) {
    if (config.scales() || !json.contains(alpha) || !json.at(alpha).is_number()) continue;
    config.alpha = detail::number_member(json, alpha, where);
    if (json.contains(rank) && json.at(rank).is_number())
      config.rank = detail::integer_member(json, rank, where);
  }
  for (const char* key : {"alpha_pattern", "rank_pattern"})
    if (json.contains(key) && json.at(key).is_object() && !json.at(key).empty())
      config.patterns += concat(key, ' ', json.at(key).dump(), ' ');
  return config;
}

bool AdapterConfig::changes_base() const {
  return !init_weights.empty() &&
         std::find(kPlainInits.begin(), kPlainInits.end(), init_weights) == kPlainInits.end();
}

std::string AdapterConfig::scaling() const {
  return concat("lora_alpha ", alpha, rslora ? " with rslora" : "");
}

double scale_between(const AdapterConfig& from, const AdapterConfig& to, const std::string& which) {
  const auto refuse = [&](bool ok, const auto&... what) { check(ok, which, ": ", what...); };
  refuse(from.peft_type == to.peft_type, "adapters of the types ", from.peft_type, " and ",
         to.peft_type, " do not go together");
  refuse(from.base_model.empty() || to.base_model.empty() || from.base_model == to.base_model,
         "the adapters are for the base models '", from.base_model, "' and '", to.base_model, "'");
  refuse(from.revision.empty() || to.revision.empty() || from.revision == to.revision,
         "the adapters are for the revisions '", from.revision, "' and '", to.revision,
         "' of the base model");
  refuse(from.dora == to.dora, "one of the adapters has use_dora, the other has not");
  refuse(from.init_weights == to.init_weights || (!from.changes_base() && !to.changes_base()),
         "the adapters have init_lora_weights '", from.init_weights, "' and '", to.init_weights,
         "', which change the base");
  if (from.alpha == to.alpha && from.rslora == to.rslora && from.rank == to.rank &&
      from.patterns == to.patterns)
    return 1;
  refuse(from.patterns.empty() && to.patterns.empty(),
         "the adapters have patterns and other scales (", from.scaling(), ", ", to.scaling(), "; ",
         from.patterns, to.patterns, "); what each module is scaled by cannot be matched");
  refuse(from.alpha > 0 && to.alpha > 0 && from.rank > 0 && from.rank == to.rank,
         "the adapters have the ranks ", from.rank, " and ", to.rank, " and ", from.scaling(), ", ",
         to.scaling(), ", which cannot be matched");
  refuse(from.peft_type == "LORA" || from.alpha == to.alpha, "adapters of type ", from.peft_type,
         " with ", from.scaling(), " and ", to.scaling(), " cannot be matched");
  const auto scale = [](const AdapterConfig& config) {
    const auto r = static_cast<double>(config.rank);
    return config.alpha / (config.rslora ? std::sqrt(r) : r);
  };
  return scale(from) / scale(to);
}

}  // namespace thinwire::peft
