#include "thinwire/torch_ext/ddp/device_compression.h"

#include <optional>
#include <set>
#include <string>

#include "thinwire/comm/average/device_plan.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/allocation/curves.h"
#include "thinwire/compressors/cuda/cuda_module.h"

namespace thinwire {
namespace {

// Of all that a policy may choose.
void check_device_candidates(at::Device device, const AdaptiveCompression& adaptive,
                             const std::optional<comm::Strategy>& strategy) {
  check(adaptive.policy.objective == lgreco::Objective::kBytes,
        "lgreco(objective=time) goes by the speeds of codecs on the CPU, and these gradients are "
        "on ",
        device, "; take objective=bytes");
  std::set<std::string> checked;
  for (const LayerInfo& layer : adaptive.layers) {
    for (const Spec& spec : lgreco::candidate_set(adaptive.policy, layer.shape).specs) {
      if (!checked.insert(spec.str()).second) continue;
      comm::Plan one;
      one.set(layer.name, adaptive.setting(spec.str()));
      comm::check_device_plan(one, strategy);
    }
  }
}

}  // namespace

void check_device_averages(at::Device device, const CompressionPlan& plan,
                           const CompressionOptions& options, c10d::ProcessGroup& group) {
  if (device.is_cpu()) return;
  CudaModule::get();
  comm::check_device_group(group, device);
  check(!plan.automatic,
        "compression 'auto' goes by the times of averages on the CPU, and these "
        "gradients are on ",
        device, "; name a codec");
  std::optional<comm::Strategy> strategy;
  if (options.strategy != "auto") strategy = comm::parse_strategy(options.strategy);
  comm::check_device_plan(plan.plan, strategy);
  if (plan.adaptive) check_device_candidates(device, *plan.adaptive, strategy);
}

}  // namespace thinwire
