#include "thinwire/torch_ext/backend/backend_options.h"

#include <utility>

#include "thinwire/common/env.h"
#include "thinwire/common/error.h"
#include "thinwire/common/spec.h"
#include "thinwire/compressors/allocation/policy.h"

namespace thinwire {
namespace {

thread_local std::string current_feedback_key;

comm::LayerSetting setting_for(const char* operation, const std::string& spec) {
  check(
      spec.empty() || !lgreco::is_policy(Spec::parse(spec).name),
      "a process group takes a codec for its ", operation, ", got '", spec,
      "'; policies are for thinwire.compress() and DistributedDataParallel, which know the layers");
  comm::LayerSetting setting = comm::parse_layer_setting(spec.empty() ? "none" : spec);
  // Nothing would be gained, and other bits than those of the wrapped backend risked.
  if (setting.codec && setting.codec->traits().lossless) setting = {};
  return setting;
}

}  // namespace

std::string BackendSettings::text() const {
  return concat("all_reduce and reduce_scatter: ", reduce.text(),
                "\nall_gather: ", all_gather.text(), "\nall_to_all: ", all_to_all.text(),
                "\nmin_numel: ", min_numel, "\nseed: ", seed);
}

BackendSettings make_settings(const BackendOptions& options) {
  check(options.min_numel >= 0, "min_numel must not be negative, got ", options.min_numel);
  BackendSettings made{
      .reduce = setting_for(
          "sums", options.compression.empty() ? Env::get().compression : options.compression),
      .all_gather = setting_for("all_gather", options.all_gather),
      .all_to_all = setting_for("all_to_all", options.all_to_all),
      .min_numel = options.min_numel,
      .seed = options.seed};
  check(!made.all_gather.momentum && !made.all_to_all.momentum,
        "momentum= is for gradients, hence for the spec of all_reduce and reduce_scatter");
  check(works_without_key(made.all_to_all), "all_to_all has no feedback, and '", options.all_to_all,
        "' leaves out what only feedback brings; take quantize, cast or terngrad, or say "
        "error_feedback=off");
  return made;
}

FeedbackKey::FeedbackKey(std::string name) : outer_(std::move(name)) {
  check(!outer_.empty(), "a feedback key needs a name, got an empty text");
  std::swap(outer_, current_feedback_key);
}
FeedbackKey::~FeedbackKey() {
  std::swap(outer_, current_feedback_key);
}
const std::string& FeedbackKey::current() {
  return current_feedback_key;
}

bool works_without_key(const comm::LayerSetting& setting) {
  if (!setting.codec) return true;
  if (setting.momentum) return false;
  if (!setting.uses_feedback()) return true;
  // Those of one size per block code every element; one bit is too little to do without feedback.
  const bool dense = setting.codec->traits().fixed_size;
  return dense && setting.feedback.mode == ErrorFeedbackOptions::Mode::kAuto &&
         setting.codec->facts().id != CodecId::kOnebit;
}

}  // namespace thinwire
