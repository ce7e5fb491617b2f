#include "thinwire/torch_ext/ddp/comm_hook.h"

#include <ATen/core/ivalue.h>
#include <ATen/core/jit_type.h>

#include <exception>
#include <vector>

#include "thinwire/comm/failure/guard.h"
#include "thinwire/common/error.h"

namespace thinwire {

void CompressionHook::begin_step() {
  seen_.clear();
  buckets_ = 0;
}

comm::Bucket CompressionHook::bucket_of(const c10d::GradBucket& bucket) {
  const auto parameters = bucket.getParameters();
  // After a backward pass that an exception ended the next one begins with the first bucket again.
  if (bucket.getIndex() == 0 && seen_.contains(parameters.front().unsafeGetTensorImpl()))
    begin_step();
  // Not the Reducer's index, which is 0 for all buckets of the first step of a static graph.
  comm::Bucket job{buckets_, bucket.getBuffer(), {}, may_hold_unused_layers_};
  const auto gradients = bucket.getGradients();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const auto name = names_.find(parameters[i].unsafeGetTensorImpl());
    check(name != names_.end(), "bucket ", buckets_,
          " holds the gradient of a parameter that the hook was not given, of shape ",
          parameters[i].sizes());
    check(seen_.insert(name->first).second, "parameter '", name->second,
          "' comes a second time in a step of which only ", seen_.size(), " of ", names_.size(),
          " parameters have come");
    comm::BucketLayer layer{name->second,
                            gradients[i].storage_offset() - job.buffer.storage_offset(),
                            parameters[i].sizes().vec()};
    if (parameters[i].is_complex() && !job.buffer.is_complex()) {
      // Such a bucket holds pairs of real numbers, but counts them as one element each.
      layer.offset *= 2;
      layer.shape.push_back(2);
    }
    layer.in_use = is_used_ && is_used_(name->first);
    job.layers.push_back(std::move(layer));
  }
  return job;
}

c10::intrusive_ptr<c10::ivalue::Future> CompressionHook::runHook(c10d::GradBucket& bucket) {
  comm::Bucket job;
  bool last = false;
  // What is wrong here is so on this rank alone, while the others wait for its bucket.
  comm::guard(*exchange_->group(), "handing over a bucket of gradients", buckets_, [&] {
    job = bucket_of(bucket);
    last = seen_.size() == names_.size();
    check(last || !bucket.isLast(), "the Reducer's buckets hold ", seen_.size(), " of the ",
          names_.size(), " parameters that the hook was given");
  });
  ++buckets_;
  if (last) begin_step();
  // One that knows of a device has those who wait for it wait for the stream on which it became
  // complete.
  std::vector<c10::Device> devices;
  if (!job.buffer.is_cpu()) devices.push_back(job.buffer.device());
  auto future = c10::make_intrusive<c10::ivalue::Future>(c10::TensorType::get(), devices);
  exchange_->submit(std::move(job), last,
                    [future, buffer = bucket.getBuffer(),
                     scale = scale_](const std::exception_ptr& failure) mutable {
                      if (failure) {
                        future->setError(failure);
                        return;
                      }
                      try {
                        if (scale != 1) buffer.mul_(scale);
                      } catch (...) {
                        future->setError(std::current_exception());
                        return;
                      }
                      future->markCompleted(buffer);
                    });
  return future;
}

}  // namespace thinwire
