#include "thinwire/comm/reductions/plan.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "thinwire/common/error.h"
#include "thinwire/common/spec.h"
#include "thinwire/compressors/codec_table.h"

namespace thinwire::comm {
namespace {

constexpr std::string_view kFeedbackKeys[] = {"error_feedback", "residual_decay", "residual_reset"};

bool is_feedback_key(const Spec::Argument& argument) {
  return std::find(std::begin(kFeedbackKeys), std::end(kFeedbackKeys), argument.key) !=
         std::end(kFeedbackKeys);
}

}  // namespace

std::string LayerSetting::text() const {
  if (!codec) return "none";
  std::string text = codec->spec();
  if (uses_feedback()) {
    text += concat(" with error feedback, decay ", feedback.decay);
    if (feedback.reset_every > 0) text += concat(", reset every ", feedback.reset_every);
  }
  return text;
}

LayerSetting parse_layer_setting(std::string_view text) {
  Spec codec_spec = Spec::parse(text);
  Spec feedback_spec = codec_spec;
  std::erase_if(codec_spec.arguments, is_feedback_key);
  std::erase_if(feedback_spec.arguments,
                [](const auto& argument) { return !is_feedback_key(argument); });

  LayerSetting setting;
  SpecReader read(feedback_spec);
  setting.feedback.mode = static_cast<ErrorFeedbackOptions::Mode>(
      read.choice(kFeedbackKeys[0], {"auto", "on", "off"}, 0));
  setting.feedback.decay = read.number(kFeedbackKeys[1], 1.0, 0.0, 1.0);
  setting.feedback.reset_every = read.integer(kFeedbackKeys[2], 0, 0, 1'000'000'000);
  read.finish();

  if (codec_spec.name == "none") {
    check(codec_spec.arguments.empty(),
          "'none' sends a layer uncompressed and takes no parameters, got '", text, "'");
    return setting;
  }
  setting.codec = make_codec(codec_spec);
  // identity would only add frames to what an all-reduce does better.
  if (setting.codec->traits().lossless) setting.codec = nullptr;
  return setting;
}

void Plan::set(std::string name, LayerSetting setting) {
  layers_.insert_or_assign(std::move(name), std::move(setting));
  compresses_ = std::any_of(layers_.begin(), layers_.end(),
                            [](const auto& layer) { return layer.second.codec != nullptr; });
}

const LayerSetting& Plan::of(std::string_view name) const {
  static const LayerSetting kUncompressed;
  const auto found = layers_.find(name);
  return found == layers_.end() ? kUncompressed : found->second;
}

std::string Plan::text() const {
  std::string text;
  for (const auto& [name, setting] : layers_) text += concat(name, ": ", setting.text(), "\n");
  return text;
}

}  // namespace thinwire::comm
