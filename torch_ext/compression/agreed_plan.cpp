#include "thinwire/torch_ext/compression/agreed_plan.h"

#include "thinwire/comm/average/selector.h"
#include "thinwire/comm/failure/agreement.h"
#include "thinwire/common/env.h"
#include "thinwire/common/error.h"

namespace thinwire::detail {
namespace {

// Every rank writes a file of its own, whose path may differ.
std::string recording_text(const CompressionOptions& options) {
  if (options.record_gradients.empty()) return "records no gradients\n";
  return concat("records gradients of ", options.record_steps, " steps from ", options.record_from,
                "\n");
}

}  // namespace

CompressionPlan agreed_plan(c10d::ProcessGroup& group, const std::string& name,
                            std::string_view what, const std::string& model,
                            const std::vector<LayerInfo>& layers, const CompressionOptions& options,
                            const std::function<std::string(const CompressionPlan&)>& more) {
  comm::agree_on_text(group, name + "/model", "the model", model);
  CompressionPlan made;
  comm::agree_on_result(group, name + "/settings", what, [&] {
    made = make_plan(layers, options);
    if (options.strategy != "auto") comm::parse_strategy(options.strategy);
    return concat("seed ", options.seed, "\nwarm-up steps ", options.warmup_steps, "\n",
                  "strategy ", options.strategy,
                  "\nTHINWIRE_CHECK_REPLICAS=", Env::get().check_replicas_every, "\n",
                  recording_text(options), made.text(), more ? more(made) : std::string());
  });
  return made;
}

}  // namespace thinwire::detail
