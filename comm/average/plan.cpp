#include "thinwire/comm/average/plan.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <utility>
#include <vector>

#include "thinwire/common/error.h"
#include "thinwire/common/spec.h"
#include "thinwire/compressors/codecs/codec_table.h"

namespace thinwire::comm {
namespace {

// What a layer's spec says of error feedback, and what of momentum correction.
constexpr std::array<std::string_view, 4> kFeedbackKeys = {"error_feedback", "residual_decay",
                                                           "residual_reset", "second_residual"};
constexpr std::array<std::string_view, 3> kMomentumKeys = {"momentum", "nesterov", "ramp"};

// The warm-up of DGC takes four epochs, each of one density.
constexpr int kRampStages = 4;

bool is_layer_key(const Spec::Argument& argument) {
  return is_feedback_key(argument.key) ||
         std::ranges::find(kMomentumKeys, argument.key) != kMomentumKeys.end();
}

// The codec with higher and higher densities before its own.
std::vector<CodecPtr> ramp_of(const Codec& codec) {
  std::vector<CodecPtr> stages;
  for (int stage = 0; stage < kRampStages; ++stage) {
    stages.push_back(
        codec.with_density(warmup_density(*codec.facts().density, stage, kRampStages)));
  }
  return stages;
}

}  // namespace

bool is_feedback_key(std::string_view key) {
  return std::ranges::find(kFeedbackKeys, key) != kFeedbackKeys.end();
}

const CodecPtr& LayerSetting::codec_at(std::int64_t step, int* stage) const {
  const bool ramping = !ramp.empty() && step < ramp_steps;
  const auto index =
      ramping ? static_cast<std::size_t>(step) * ramp.size() / static_cast<std::size_t>(ramp_steps)
              : 0;
  if (stage) *stage = ramping ? static_cast<int>(index) + 1 : 0;
  return ramping ? ramp[index] : codec;
}

std::string LayerSetting::spec() const {
  if (!codec) return "none";
  std::string more;
  const auto add = [&](const auto&... words) {
    more += concat(more.empty() ? "" : ", ", words...);
  };
  // Named is what differs from what the codec does by itself.
  if (momentum) {
    add(kMomentumKeys[0], "=", momentum->momentum);
    if (momentum->nesterov) add(kMomentumKeys[1], "=on");
  } else if (uses_feedback() != codec->traits().needs_error_feedback) {
    add(kFeedbackKeys[0], "=", uses_feedback() ? "on" : "off");
  }
  if (uses_feedback() && feedback.decay != 1) add(kFeedbackKeys[1], "=", feedback.decay);
  if (uses_feedback() && feedback.reset_every > 0) add(kFeedbackKeys[2], "=", feedback.reset_every);
  if (uses_second_residual() != uses_feedback()) {
    add(kFeedbackKeys[3], "=", uses_second_residual() ? "on" : "off");
  }
  if (!ramp.empty()) add(kMomentumKeys[2], "=", ramp_steps);

  std::string text = codec->spec();
  if (more.empty()) return text;
  if (text.back() != ')') return concat(text, "(", more, ")");
  text.pop_back();
  return concat(text, ", ", more, ")");
}

std::string LayerSetting::text() const {
  return codec && !may_be_skipped ? spec() + " on any link" : spec();
}

LayerSetting parse_layer_setting(std::string_view text) {
  Spec codec_spec = Spec::parse(text);
  Spec feedback_spec = codec_spec;
  std::erase_if(codec_spec.arguments, is_layer_key);
  std::erase_if(feedback_spec.arguments,
                [](const auto& argument) { return !is_layer_key(argument); });

  LayerSetting setting;
  SpecReader read(feedback_spec);
  setting.feedback.mode = static_cast<ErrorFeedbackOptions::Mode>(
      read.choice(kFeedbackKeys[0], {"auto", "on", "off"}, 0));
  setting.feedback.decay = read.number(kFeedbackKeys[1], 1.0, 0.0, 1.0);
  setting.feedback.reset_every = read.integer(kFeedbackKeys[2], 0, 0, 1'000'000'000);
  setting.feedback.second_residual = static_cast<ErrorFeedbackOptions::Mode>(
      read.choice(kFeedbackKeys[3], {"auto", "on", "off"}, 0));
  if (read.has("momentum")) {
    setting.momentum.emplace();
    setting.momentum->momentum = read.number("momentum", 0.9, 0.0, 1.0);
    check(setting.momentum->momentum < 1, "momentum must be in [0, 1), got ",
          setting.momentum->momentum, " in '", text, "'");
    setting.momentum->nesterov = read.flag("nesterov", false);
    check(setting.feedback.mode != ErrorFeedbackOptions::Mode::kOff,
          "momentum correction keeps a residual, so error_feedback cannot be off: '", text, "'");
    for (const auto key : {kFeedbackKeys[1], kFeedbackKeys[2]}) {
      check(!read.has(key), "'", key, "' belongs to error feedback and has no meaning with ",
            "momentum: '", text, "'");
    }
  }
  setting.ramp_steps = read.integer("ramp", 0, 0, 1'000'000'000'000);
  read.finish();

  if (codec_spec.name == "none") {
    check(codec_spec.arguments.empty() && feedback_spec.arguments.empty(),
          "'none' sends a layer uncompressed and takes no parameters, got '", text, "'");
    return setting;
  }
  setting.codec = make_codec(codec_spec);
  check(!(setting.momentum || setting.ramp_steps > 0) || setting.codec->facts().density.has_value(),
        "momentum and ramp are for codecs that send chosen entries (topk, randomk, ternary), got '",
        text, "'");
  // Its second residuals become part of the first one whenever the basis changes.
  check(setting.codec->facts().id != CodecId::kSpectral || setting.uses_feedback() ||
            !setting.uses_second_residual(),
        "second_residual=on needs error_feedback with spectral, got '", text, "'");
  if (setting.ramp_steps > 0) setting.ramp = ramp_of(*setting.codec);
  // identity would only add frames to what an all-reduce does better.
  if (setting.codec->traits().lossless) setting.codec = nullptr;
  return setting;
}

void Plan::set(std::string name, LayerSetting setting) {
  static std::atomic<std::uint64_t> last_id = 0;
  id_ = ++last_id;
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
