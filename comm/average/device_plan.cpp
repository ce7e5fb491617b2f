#include "thinwire/comm/average/device_plan.h"

#include "thinwire/common/error.h"

namespace thinwire::comm {

void check_device_setting(std::string_view layer, const LayerSetting& setting) {
  if (!setting.codec) return;
  check(setting.codec->piece_format().has_value(), "layer '", layer, "' is in GPU memory, where ",
        setting.codec->spec(),
        " has no kernels yet: quantize and cast have; choose one of these or none, or train on the "
        "CPU");
  check(!setting.momentum, "layer '", layer,
        "' is in GPU memory, where momentum correction has no kernels yet");
}

void check_device_strategy(const std::optional<Strategy>& strategy) {
  if (!strategy) return;
  check(*strategy == Strategy::kScatterReduce, "gradients are in GPU memory, where strategy ",
        name_of(*strategy), " has no kernels yet: scatter_reduce has; name it, or auto");
}

void check_device_plan(const Plan& plan, const std::optional<Strategy>& strategy) {
  if (plan.compresses()) check_device_strategy(strategy);
  for (const auto& [name, setting] : plan.layers()) check_device_setting(name, setting);
}

}  // namespace thinwire::comm
