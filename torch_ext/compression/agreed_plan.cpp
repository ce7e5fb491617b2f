#include "thinwire/torch_ext/compression/agreed_plan.h"

#include "thinwire/comm/average/selector.h"
#include "thinwire/comm/failure/agreement.h"
#include "thinwire/common/env.h"
#include "thinwire/common/error.h"

namespace thinwire::detail {

std::string next_name(c10d::ProcessGroup& group, std::string_view purpose) {
  const auto store = group.getStore();
  check(store != nullptr,
        "the process group has no store, so thinwire cannot duplicate it; make it "
        "with launch::init() or comm::make_process_group()");
  const std::int64_t calls = store->add(concat("thinwire/exchanges/", purpose), 1);
  return concat(purpose, (calls - 1) / group.getSize());
}

comm::Plan agreed_plan(c10d::ProcessGroup& group, const std::string& name, std::string_view what,
                       const std::string& model, const std::vector<LayerInfo>& layers,
                       const CompressionOptions& options, const std::string& more) {
  comm::agree_on_text(group, name + "/model", "the model", model);
  comm::Plan plan;
  comm::agree_on_result(group, name + "/settings", what, [&] {
    plan = make_plan(layers, options);
    if (options.strategy != "auto") comm::parse_strategy(options.strategy);
    return concat("seed ", options.seed, "\nwarm-up steps ", options.warmup_steps, "\n",
                  "strategy ", options.strategy,
                  "\nTHINWIRE_CHECK_REPLICAS=", Env::get().check_replicas_every, "\n", plan.text(),
                  more);
  });
  return plan;
}

}  // namespace thinwire::detail
