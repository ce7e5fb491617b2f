#include "thinwire/comm/average/device_plan.h"

#include <algorithm>

#include "thinwire/comm/backend/process_group.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/kernels/piece_task.h"

namespace thinwire::comm {

void check_device_setting(std::string_view layer, const LayerSetting& setting) {
  if (!setting.codec) return;
  check(
      setting.codec->piece_format().has_value(), "layer '", layer, "' is in GPU memory, where ",
      setting.codec->spec(),
      " has no kernels yet: quantize, cast, onebit and terngrad have; choose one of these or none, "
      "or train on the CPU");
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

void check_device_group(c10d::ProcessGroup& group, at::Device device) {
  const auto types = group.getDeviceTypes();
  const auto takes = [&](c10::DeviceType type) {
    return std::ranges::any_of(types, [&](const c10::Device& one) { return one.type() == type; });
  };
  const std::string name = backend_name(group);
  check(takes(device.type()), "gradients on ", device, " cannot be averaged over ", name,
        ", which takes tensors in host memory alone; use nccl, or gloo");
  check(takes(c10::DeviceType::CPU), "averaging gradients on ", device,
        " needs a process group that takes tensors in host memory too, for the ranks' agreements, "
        "and this one has ",
        name,
        " alone; make it with make_process_group(\"nccl\", ...), or with PyTorch's backend "
        "\"cpu:gloo,cuda:nccl\"");
}

}  // namespace thinwire::comm
