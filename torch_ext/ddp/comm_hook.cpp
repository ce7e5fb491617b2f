#include "thinwire/torch_ext/ddp/comm_hook.h"

#include <ATen/core/ivalue.h>
#include <ATen/core/jit_type.h>

#include "thinwire/common/error.h"

namespace thinwire {

c10::intrusive_ptr<c10::ivalue::Future> CompressionHook::runHook(c10d::GradBucket& bucket) {
  comm::Bucket job{bucket.getIndex(), bucket.getBuffer(), {}, may_hold_unused_layers_};
  const auto parameters = bucket.getParameters();
  const auto gradients = bucket.getGradients();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const auto name = names_.find(parameters[i].unsafeGetTensorImpl());
    check(name != names_.end(), "bucket ", bucket.getIndex(),
          " holds the gradient of a parameter that the hook was not given, of shape ",
          parameters[i].sizes());
    job.layers.push_back({name->second, gradients[i].storage_offset() - job.buffer.storage_offset(),
                          parameters[i].sizes().vec()});
  }
  auto future = c10::make_intrusive<c10::ivalue::Future>(c10::TensorType::get());
  exchange_->submit(std::move(job), bucket.isLast(),
                    [future, buffer = bucket.getBuffer()](std::exception_ptr failure) {
                      if (failure) {
                        future->setError(failure);
                      } else {
                        future->markCompleted(buffer);
                      }
                    });
  return future;
}

}  // namespace thinwire
