#include "thinwire/comm/average/dense_mean.h"

#include <ATen/ScalarOps.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/mul.h>

#include "thinwire/comm/failure/failure.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

// Calls action(layer's part of the bucket, its place among the packed layers).
template <typename Action>
void for_each_packed_layer(const BucketInFlight& in_flight, const Action& action) {
  std::int64_t at = 0;
  for (const std::size_t i : in_flight.layout->dense) {
    at::Tensor part = gradient_of(in_flight.bucket, i);
    at::Tensor packed = in_flight.dense.values.narrow(0, at, part.numel());
    action(part, packed);
    at += part.numel();
  }
}

}  // namespace

void start_dense_mean(c10d::ProcessGroup& group, BucketInFlight& in_flight, Residuals& residuals) {
  const BucketLayout& layout = *in_flight.layout;
  Bucket& bucket = in_flight.bucket;
  DenseMean& mean = in_flight.dense;
  mean = {};
  for (const std::size_t i : layout.dense) {
    const BucketLayer& layer = bucket.layers[i];
    if (!residuals.carries(layer.name)) continue;
    const auto debt = in_flight.workspace.arena.floats(static_cast<std::size_t>(layer.numel()));
    std::ranges::fill(debt, 0.0f);
    residuals.correct(layer.name, debt, layout.layers[i].setting, {}, group.getSize(),
                      in_flight.step);
    at::Tensor part = gradient_of(bucket, i);
    part.add_(
        at::from_blob(debt.data(), {layer.numel()}, at::kFloat).to(bucket.buffer.scalar_type()));
    mean.paid.push_back(i);
  }
  mean.packed = layout.dense.size() < bucket.layers.size();
  mean.values = bucket.buffer;
  if (mean.packed) {
    std::int64_t numel = 0;
    for (const std::size_t i : layout.dense) numel += bucket.layers[i].numel();
    const auto bytes = static_cast<std::size_t>(numel) * bucket.buffer.element_size();
    mean.values = in_flight.workspace.arena.tensor(bytes).view(bucket.buffer.scalar_type());
    for_each_packed_layer(in_flight, [](auto& part, auto& into) { into.copy_(part); });
  }
  // The one place where an uncompressed gradient is divided by the number of ranks.
  if (group.getSize() > 1) {
    at::mul_out(mean.values, mean.values, at::native::wrapped_scalar_tensor(1.0 / group.getSize()));
    std::vector<at::Tensor> tensors = {mean.values};
    mean.work = group.allreduce(tensors);
  }
}

std::uint64_t finish_dense_mean(c10d::ProcessGroup& group, BucketInFlight& in_flight,
                                Residuals& residuals, Timeline* timeline, PhaseSeconds* phases) {
  const BucketLayout& layout = *in_flight.layout;
  const Bucket& bucket = in_flight.bucket;
  DenseMean& mean = in_flight.dense;
  const auto bytes = static_cast<std::int64_t>(mean.values.nbytes());
  if (mean.work) {
    PhaseSpan span(timeline, timeline ? concat("bucket ", bucket.index) : std::string(), phases,
                   Phase::kExchange, bytes);
    wait(group, mean.work, "all_reduce", in_flight.sequence);
  }
  if (mean.packed) {
    for_each_packed_layer(in_flight, [](auto& part, auto& from) { part.copy_(from); });
  }
  for (const std::size_t i : mean.paid) {
    if (!at::isfinite(gradient_of(bucket, i)).all().item<bool>()) continue;
    residuals.commit(bucket.layers[i].name, layout.layers[i].setting, {});
  }
  mean = {};
  return ring_bytes(bytes, group.getSize());
}

}  // namespace thinwire::comm
