#include "thinwire/torch_ext/agreed_plan.h"

#include <exception>

#include "thinwire/comm/agreement.h"
#include "thinwire/comm/reductions/selector.h"
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
  comm::Plan plan;
  std::string settings;
  std::exception_ptr mistake;
  try {
    plan = make_plan(layers, options);
    settings = concat("seed ", options.seed, "\nwarm-up steps ", options.warmup_steps, "\n",
                      "strategy ", options.strategy, "\n", plan.text(), more);
    if (options.strategy != "auto") comm::parse_strategy(options.strategy);
  } catch (const InvalidArgument& error) {
    mistake = std::current_exception();
    settings = concat("invalid: ", error.what());
  }
  comm::agree_on_text(group, name + "/model", "the model", model);
  comm::agree_on_text(group, name + "/settings", what, settings);
  if (mistake) std::rethrow_exception(mistake);
  return plan;
}

}  // namespace thinwire::detail
