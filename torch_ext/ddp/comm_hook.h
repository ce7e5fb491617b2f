// The hook through which c10d's Reducer (and so PyTorch's own DistributedDataParallel) hands its
// gradient buckets to thinwire.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include <torch/csrc/distributed/c10d/comm.hpp>

#include "thinwire/torch_ext/ddp/gradient_exchange.h"

namespace thinwire {

// The hook averages each bucket in place; the Reducer then copies it to the gradients. It divides
// by the number of ranks itself, as the Reducer expects of a hook. Register it before the first
// backward pass, once per Reducer.
//
// A step is over when every parameter has come once. A parameter that the hook was not given, that
// comes twice in a step, or that is missing in the Reducer's last bucket ends the backward pass
// with InvalidArgument, on the other ranks too.
class CompressionHook : public c10d::CommHookInterface {
 public:
  // `names` maps the tensor (by TensorImpl) of every parameter of the Reducer to its name.
  // `may_hold_unused_layers`: the Reducer drops what is averaged for parameters that no rank used,
  // as it does where it was made with find_unused_parameters or has a static graph; see Bucket.
  // `is_used` then tells whether this rank used one (detail::locally_used()).
  CompressionHook(std::shared_ptr<GradientExchange> exchange,
                  std::unordered_map<const c10::TensorImpl*, std::string> names,
                  bool may_hold_unused_layers = false,
                  std::function<bool(const c10::TensorImpl*)> is_used = {})
      : exchange_(std::move(exchange)),
        names_(std::move(names)),
        may_hold_unused_layers_(may_hold_unused_layers),
        is_used_(std::move(is_used)) {}

  c10::intrusive_ptr<c10::ivalue::Future> runHook(c10d::GradBucket& bucket) override;
  at::Tensor parseHookResult(const c10::IValue& result) override { return result.toTensor(); }

  // Begins a step anew, whatever has come of the last one.
  void begin_step();
  // The averages of this step are multiplied by so much.
  void set_scale(double scale) { scale_ = scale; }

 private:
  comm::Bucket bucket_of(const c10d::GradBucket& bucket);

  std::shared_ptr<GradientExchange> exchange_;
  std::unordered_map<const c10::TensorImpl*, std::string> names_;
  const bool may_hold_unused_layers_;
  const std::function<bool(const c10::TensorImpl*)> is_used_;
  // Of the step under way.
  std::unordered_set<const c10::TensorImpl*> seen_;
  std::size_t buckets_ = 0;
  double scale_ = 1;
};

}  // namespace thinwire
