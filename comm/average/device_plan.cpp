#include "thinwire/comm/average/device_plan.h"

#include <algorithm>

#include "thinwire/comm/backend/process_group.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/ecsq.h"
#include "thinwire/compressors/codecs/powersgd.h"
#include "thinwire/compressors/kernels/sparse_task.h"

namespace thinwire::comm {
namespace {

bool has_factors(const Codec& codec) {
  return codec.facts().form == CodecFacts::Form::kLowRank;
}

bool factors_have_kernels(const Codec& codec) {
  return has_factors(codec) && !have_one_step(*codec.facts().factors);
}

// Entropy-coded slots, of goals that take no sums of squares.
bool has_slots(const Codec& codec) {
  const EcsqOptions* options = ecsq_options(codec);
  using Goal = EcsqOptions::Goal;
  return options != nullptr && !options->basis &&
         (options->goal == Goal::kBits || options->goal == Goal::kStep);
}

}  // namespace

void check_device_setting(std::string_view layer, const LayerSetting& setting) {
  if (!setting.codec) return;
  const bool known = setting.codec->piece_format() || setting.codec->entry_form() ||
                     setting.codec->traits().summable || factors_have_kernels(*setting.codec) ||
                     has_slots(*setting.codec);
  check(known, "layer '", layer, "' is in GPU memory, where ", setting.codec->spec(),
        " has no kernels yet: quantize, cast, onebit, terngrad, randomk, powersgd(factors=fp32, "
        "bf16, int8 or int4), topk(select=exact, values=fp32, fp16 or bf16), ternary(scale=mean) "
        "and ecsq(bits or step) have; choose one of these or none, or train on the CPU");
  check(!setting.momentum || !has_slots(*setting.codec), "layer '", layer,
        "' is in GPU memory, where ", setting.codec->spec(),
        " has no momentum correction: leave momentum out, or train on the CPU");
}

Strategy device_strategy(const Codec& codec, const std::optional<Strategy>& asked) {
  Strategy one = Strategy::kScatterReduce;
  if (codec.entry_form()) one = Strategy::kGatherReduce;
  if (codec.traits().summable) one = Strategy::kDense;
  if (has_factors(codec)) one = Strategy::kLowRank;
  if (!asked || *asked == one) return one;
  if (*asked == Strategy::kHierarchical && codec.piece_format()) return *asked;
  throw InvalidArgument(
      concat("gradients are in GPU memory, where ", codec.spec(), " is averaged by ", name_of(one),
             codec.piece_format() ? " or hierarchical" : "", " alone: strategy ", name_of(*asked),
             " has no kernels yet; name ", name_of(one), ", or auto"));
}

void check_device_plan(const Plan& plan, const std::optional<Strategy>& strategy) {
  for (const auto& [name, setting] : plan.layers()) {
    check_device_setting(name, setting);
    if (setting.codec) device_strategy(*setting.codec, strategy);
  }
}

void check_device_group(c10d::ProcessGroup& group, at::Device device) {
  const auto types = group.getDeviceTypes();
  const auto takes = [&](c10::DeviceType type) {
    return std::ranges::any_of(types, [&](const c10::Device& one) { return one.type() == type; });
  };
  const std::string name = backend_name(group);
  check(takes(device.type()), "tensors on ", device, " cannot be exchanged over ", name,
        ", which takes tensors in host memory alone; use nccl, or gloo");
  check(takes(c10::DeviceType::CPU), "exchanging tensors on ", device,
        " needs a process group that takes tensors in host memory too, for the ranks' agreements, "
        "and this one has ",
        name,
        " alone; make it with make_process_group(\"nccl\", ...), or with PyTorch's backend "
        "\"cpu:gloo,cuda:nccl\"");
}

}  // namespace thinwire::comm
