// What is known of the tensors of the PEFT library's adapters.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace thinwire::peft {

// The value that a tensor of an adapter has where the adapter changes nothing, so that what
// training made of it is a small delta against it: 0 for LoRA's factors, 1 for IA3's vectors.
// Nothing for tensors and types of adapters of which no such value is known; those travel as they
// are. `peft_type` as in adapter_config.json, "LORA"; `tensor` as in adapter_model.safetensors.
std::optional<float> base_of_tensor(std::string_view peft_type, std::string_view tensor);
// Whether base_of_tensor() knows any tensor of such adapters.
bool has_bases(std::string_view peft_type);

// The factor that a tensor is, by its name: "A" and "B" for LoRA's (of the PEFT library and of
// kohya's files, lora_down and lora_up), the name's own word for other factors ("hada_w1_a"),
// "other" for all else. The product of an adapter's factors vanishes with any one of them.
std::string role_of(std::string_view tensor);

// What adapter_config.json says about the function that an adapter's factors are used in.
struct AdapterConfig {
  std::string peft_type;
  std::string base_model;  // base_model_name_or_path; empty where it says none
  std::string revision;
  // Of LORA, ADALORA and their like. 0 where the config has none.
  double alpha = 0;
  std::int64_t rank = 0;
  bool rslora = false;
  bool dora = false;
  std::string patterns;      // alpha_pattern and rank_pattern as JSON, empty where there are none
  std::string init_weights;  // init_lora_weights where it is a text, "pissa"

  // Throws FileError, beginning with `where`.
  static AdapterConfig parse(const std::string& text, const std::string& where);
  // Whether the factors are deltas against a base that the initialisation has changed (PiSSA, OLoRA
  // and others take the factors' start out of the weights): against the model that base_model names
  // they mean something else.
  bool changes_base() const;
  bool scales() const { return alpha != 0; }  // factors are multiplied by alpha / rank
  std::string scaling() const;                // "lora_alpha 8 with rslora", for messages
};

// What the factors of `from` have to be multiplied by to mean with the config of `to` what they
// mean with their own. Throws InvalidArgument, beginning with `which`, where there is no such
// factor: another type, base model, DoRA or pattern.
double scale_between(const AdapterConfig& from, const AdapterConfig& to, const std::string& which);

}  // namespace thinwire::peft
