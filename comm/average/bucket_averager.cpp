#include "thinwire/comm/average/bucket_averager.h"

#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <utility>

#include "thinwire/comm/average/bucket_in_flight.h"
#include "thinwire/comm/average/bucket_layout.h"
#include "thinwire/comm/average/dense_mean.h"
#include "thinwire/comm/average/device_averager.h"
#include "thinwire/comm/average/gradient_recorder.h"
#include "thinwire/comm/average/layouts.h"
#include "thinwire/comm/average/reduce/exact_mean.h"
#include "thinwire/comm/average/reduce/hierarchical.h"
#include "thinwire/comm/average/state_tensors.h"
#include "thinwire/comm/average/used_layers.h"
#include "thinwire/comm/failure/agreement.h"
#include "thinwire/comm/failure/guard.h"
#include "thinwire/comm/wire/tensor_bridge.h"
#include "thinwire/common/crc32c.h"
#include "thinwire/common/shape.h"

namespace thinwire::comm {
namespace {

at::Tensor as_tensor(std::span<float> values) {
  return at::from_blob(values.data(), {static_cast<std::int64_t>(values.size())}, at::kFloat);
}

void check_bucket(const Bucket& bucket, const Plan& plan) {
  const at::Device device = bucket.buffer.device();
  check(bucket.buffer.dim() == 1 && bucket.buffer.is_contiguous() &&
            (device.is_cpu() || device.is_cuda()),
        "a bucket must be a contiguous one-dimensional tensor on the CPU or a CUDA device, got "
        "shape ",
        bucket.buffer.sizes(), " on ", device);
  check(has_codec_dtype(bucket.buffer) || plan.layers().empty(),
        "cannot average gradients of type ", toString(bucket.buffer.scalar_type()));
  for (const BucketLayer& layer : bucket.layers) {
    check(layer.offset >= 0 && layer.offset + layer.numel() <= bucket.buffer.numel(), "layer '",
          layer.name, "' lies outside its bucket: offset ", layer.offset, ", ", layer.numel(),
          " elements, the bucket has ", bucket.buffer.numel());
  }
}

std::string name_of(const Bucket& bucket) {
  return concat("bucket ", bucket.index);
}

Bucket host_bucket(const Bucket& bucket) {
  Bucket copy = bucket;
  copy.buffer = bucket.buffer.cpu();
  return copy;
}

// Whatever a rank meets alone while it averages becomes known to the others. What the ranks agree
// on stays outside, for they throw it alike.
template <typename Action>
void guarded(const c10d::ProcessGroup& group, const Bucket& bucket, std::uint64_t sequence,
             const Action& action) {
  guard(
      group, [&] { return concat("averaging bucket ", bucket.index); }, sequence, action);
}

}  // namespace

std::uint64_t ring_bytes(std::int64_t bytes, int world) {
  return static_cast<std::uint64_t>(2 * bytes * (world - 1) / world);
}

std::int64_t BucketLayer::numel() const {
  return numel_of(shape);
}

BucketAverager::BucketAverager(c10::intrusive_ptr<c10d::ProcessGroup> group,
                               AveragerOptions options)
    : group_(std::move(group)),
      peers_(*group_),
      options_(std::move(options)),
      layouts_(std::make_unique<Layouts>(options_, *group_, peers_, residuals_)) {
  if (!options_.record_gradients.empty()) {
    recorder_ = std::make_unique<GradientRecorder>(options_.record_gradients, group_->getRank(),
                                                   group_->getSize(), options_.record_from,
                                                   options_.record_steps);
  }
  const std::size_t hosts = options_.host_of_rank.size();
  check(hosts == 0 || hosts == static_cast<std::size_t>(group_->getSize()),
        "host_of_rank must name the host of each of ", group_->getSize(), " ranks, got ", hosts);
  if (hosts > 0 && options_.strategy == Strategy::kHierarchical) {
    check_hosts(options_.host_of_rank, group_->getSize());
  }
}
BucketAverager::~BucketAverager() = default;

void BucketAverager::average(Bucket& bucket, const Plan& plan, std::int64_t step) {
  BucketInFlight& in_flight = begin(bucket, plan, step);
  advance(in_flight);
  finish(in_flight);
  agree();
}

DeviceAverager& BucketAverager::on_device(at::Device device) {
  if (!device_) {
    device_ = std::make_unique<DeviceAverager>(*group_, options_.original_group, options_.seed,
                                               device, residuals_);
  }
  return *device_;
}

void BucketAverager::check_device() const {
  if (device_) device_->check();
}

void BucketAverager::settle() {
  if (device_) device_->settle();
}

void BucketAverager::watch(at::Device device, const std::string& operation,
                           std::uint64_t sequence) {
  if (device.is_cpu()) return;
  guard(*group_, operation, sequence, [&] {
    check(buckets_on_.value_or(device) == device, "buckets are on ", *buckets_on_, ", not on ",
          device);
    buckets_on_ = device;
    on_device(device).watch(operation, sequence);
  });
}

BucketInFlight& BucketAverager::free_place() {
  const auto free =
      std::ranges::find(places_, BucketInFlight::Stage::kFree, &BucketInFlight::stage);
  if (free != places_.end()) return **free;
  return *places_.emplace_back(std::make_unique<BucketInFlight>());
}

// Whether all ranks bring this layout now: asked where it has not followed the one before it yet,
// since whatever did so once does so on all ranks.
bool BucketAverager::ranks_agree_on(BucketLayout& layout) {
  const std::uint64_t before = std::exchange(last_layout_, layout.hash);
  if (std::ranges::find(layout.agreed_after, before) != layout.agreed_after.end()) return true;
  layout.agreed_after.push_back(before);
  traffic_.sent_bytes += HashAgreement::sent_bytes(peers_.size());
  return HashAgreement(*group_, sequence_, layout.hash).wait();
}

// The ranks brought different exchanges: names the difference, on all of them alike.
void BucketAverager::throw_difference(const Bucket& bucket, const BucketLayout& layout) {
  agree_on_text(*group_, concat("bucket/", sequence_),
                concat("the gradients of bucket ", bucket.index), layout.text);
  throw InternalError(concat("the ranks brought different exchanges to #", sequence_,
                             " of equal description: they are out of step"));
}

BucketInFlight& BucketAverager::begin(Bucket bucket, const Plan& plan, std::int64_t step) {
  THINWIRE_ASSERT(std::ranges::find(places_, BucketInFlight::Stage::kBegun,
                                    &BucketInFlight::stage) == places_.end());
  ++sequence_;
  last_step_ = step;
  if (device_) device_->begin();
  BucketInFlight* in_flight = nullptr;
  std::shared_ptr<BucketLayout> layout;
  bool same = false;
  guarded(*group_, bucket, sequence_, [&] {
    check_bucket(bucket, plan);
    const at::Device device = bucket.buffer.device();
    check(buckets_on_.value_or(device) == device, "bucket ", bucket.index, " is on ", device,
          ", the buckets before it on ", *buckets_on_,
          ": all gradients that are averaged together have to be on one device");
    buckets_on_ = device;
    if (!device.is_cpu()) on_device(device);
    if (recorder_) recorder_->record(host_bucket(bucket), step);
    in_flight = &free_place();
    layout = layouts_->of(bucket, plan, step);
    same = ranks_agree_on(*layout);
  });
  if (!same) throw_difference(bucket, *layout);
  traffic_.dense_bytes +=
      ring_bytes(static_cast<std::int64_t>(bucket.buffer.nbytes()), group_->getSize());
  guarded(*group_, bucket, sequence_, [&] {
    compressed_before_ = compressed_before_ || layout->compresses;
    in_flight->stage = BucketInFlight::Stage::kBegun;
    in_flight->bucket = std::move(bucket);
    in_flight->layout = std::move(layout);
    in_flight->step = step;
    in_flight->sequence = sequence_;
    in_flight->refusal = {};
    in_flight->workspace.arena.reset();
    expect_checksum(*in_flight);
    if (in_flight->bucket.may_hold_unused_layers && compressed_before_) {
      leave_out_unused(*in_flight, plan);
    }
    if (const at::Tensor& buffer = in_flight->bucket.buffer; !buffer.is_cpu()) {
      const DeviceAverager::Sent sent =
          on_device(buffer.device())
              .average(in_flight->bucket, *in_flight->layout, step, in_flight->sequence);
      traffic_.sent_bytes += sent.bytes;
      traffic_.mean_bytes += sent.means;
      if (marks_) device_->expect_agreement();
      return;
    }
    if (!in_flight->layout->dense.empty()) start_dense_mean(*group_, *in_flight, residuals_);
    fill_values(*in_flight);
    start_groups(*in_flight);
  });
  return *in_flight;
}

// What the bucket holds of layers that no rank uses is left as it is: zero.
void BucketAverager::leave_out_unused(BucketInFlight& in_flight, const Plan& plan) {
  Bucket& bucket = in_flight.bucket;
  const std::vector<bool> used = layers_in_use(*group_, bucket, in_flight.sequence);
  traffic_.sent_bytes +=
      ring_bytes(static_cast<std::int64_t>(bucket.layers.size()), group_->getSize());
  std::vector<BucketLayer> left;
  for (std::size_t i = 0; i < bucket.layers.size(); ++i) {
    if (used[i]) {
      left.push_back(bucket.layers[i]);
    } else {
      gradient_of(bucket, i).zero_();  // of either sign before
    }
  }
  if (left.size() == bucket.layers.size()) return;
  bucket.layers = std::move(left);
  in_flight.layout = layouts_->of(bucket, plan, in_flight.step, /*part=*/true);
}

// The gradients and what they are owed.
void BucketAverager::fill_values(BucketInFlight& in_flight) {
  const Bucket& bucket = in_flight.bucket;
  const BucketLayout& layout = *in_flight.layout;
  if (in_flight.residual_finite_size < layout.layers.size()) {
    in_flight.residual_finite = std::make_unique<bool[]>(layout.layers.size());
    in_flight.residual_finite_size = layout.layers.size();
  }
  in_flight.values.resize(std::max(in_flight.values.size(), layout.groups.size()));
  for (std::size_t g = 0; g < layout.groups.size(); ++g) {
    std::vector<LayerValues>& group_values = in_flight.values[g];
    group_values.clear();
    for (const std::size_t i : layout.groups[g].layers) {
      const BucketLayer& layer = bucket.layers[i];
      const BucketLayout::Layer& own = layout.layers[i];
      at::Tensor part = gradient_of(bucket, i);
      const auto numel = static_cast<std::size_t>(part.numel());
      std::span<float> values;
      if (bucket.buffer.scalar_type() == at::kFloat) {
        values = {part.mutable_data_ptr<float>(), numel};
      } else {
        values = in_flight.workspace.arena.floats(numel);
        as_tensor(values).copy_(part);
      }
      const bool compressed = own.codec != nullptr;
      const bool keeps = compressed && (own.setting.uses_feedback() || own.setting.momentum);
      const ErrorFeedback::Carried carried = residuals_.correct(
          layer.name, values, own.setting, own.way(), group_->getSize(), in_flight.step);
      in_flight.residual_finite[i] = true;
      group_values.push_back(
          {.id = own.id,
           .name = layer.name,
           .codec = compressed ? own.codec.get() : &identity_codec(),
           .shape = layer.shape,
           .values = values,
           .carried = carried.residual,
           .carried_factor = carried.factor,
           .residual = keeps ? values : std::span<float>(),
           .kept = carried.kept,
           .residual_finite = &in_flight.residual_finite[i],
           .second = own.keeps_second() ? &residuals_.second : nullptr,
           .second_decay = Residuals::second_decay(own.setting, in_flight.step)});
    }
  }
}

void BucketAverager::start_groups(BucketInFlight& in_flight) {
  const ReductionContext context{
      .peers = &peers_,
      .refusal = &in_flight.refusal,
      .workspace = &in_flight.workspace,
      .divisor = group_->getSize(),
      .sequence = in_flight.sequence,
      .step = static_cast<std::uint64_t>(in_flight.step),
      .seed = options_.seed,
      .layout = in_flight.layout->hash,
      .timeline = options_.timeline,
      .track = options_.timeline ? name_of(in_flight.bucket) : std::string(),
      .phases = &phases_};
  for (std::size_t g = 0; g < in_flight.layout->groups.size(); ++g) {
    in_flight.layout->groups[g].reduction->start(context.stage(1000 + g), in_flight.values[g]);
  }
}

void BucketAverager::advance(BucketInFlight& in_flight) {
  THINWIRE_ASSERT(in_flight.stage == BucketInFlight::Stage::kBegun);
  guarded(*group_, in_flight.bucket, in_flight.sequence, [&] {
    if (!in_flight.bucket.buffer.is_cpu()) return;  // begin() has queued everything
    for (const LayerGroup& group : in_flight.layout->groups) group.reduction->advance();
  });
  in_flight.stage = BucketInFlight::Stage::kAdvanced;
}

void BucketAverager::finish(BucketInFlight& in_flight) {
  THINWIRE_ASSERT(in_flight.stage == BucketInFlight::Stage::kAdvanced);
  guarded(*group_, in_flight.bucket, in_flight.sequence, [&] {
    const bool on_cpu = in_flight.bucket.buffer.is_cpu();
    if (on_cpu && !in_flight.layout->dense.empty()) {
      const std::uint64_t sent =
          finish_dense_mean(*group_, in_flight, residuals_, options_.timeline, &phases_);
      traffic_.sent_bytes += sent;
      traffic_.mean_bytes += sent / 2;
    }
    if (on_cpu) finish_groups(in_flight);
    note_checksum(in_flight);
    in_flight.layout.reset();
    in_flight.bucket = {};
    in_flight.stage = BucketInFlight::Stage::kFree;
  });
}

void BucketAverager::finish_groups(BucketInFlight& in_flight) {
  const BucketLayout& layout = *in_flight.layout;
  has_results_ = has_results_ || marks_;
  if (layout.groups.empty()) return;
  has_results_ = true;
  // The means are the same on all ranks, so all ranks keep or drop this step together.
  bool finite = true;
  for (const LayerGroup& group : layout.groups) {
    const Averaged averaged = group.reduction->receive();
    traffic_.sent_bytes += averaged.sent;
    traffic_.mean_bytes += averaged.means;
    finite = finite && averaged.finite;
  }
  if (!in_flight.refusal.any()) deliver(in_flight, finite);
  if (!in_flight.refusal.any() && finite) commit(in_flight);
  refusal_.add(in_flight.refusal,
               concat(name_of(in_flight.bucket), ", exchange #", in_flight.sequence));
}

// Where the mean is to be written lies what encoding lost.
void BucketAverager::deliver(BucketInFlight& in_flight, bool finite) {
  const Bucket& bucket = in_flight.bucket;
  const BucketLayout& layout = *in_flight.layout;
  for (std::size_t g = 0; g < layout.groups.size(); ++g) {
    const LayerGroup& group = layout.groups[g];
    for (std::size_t n = 0; n < group.layers.size(); ++n) {
      const std::size_t i = group.layers[n];
      const BucketLayout::Layer& own = layout.layers[i];
      if (own.codec && own.setting.momentum) {
        residuals_.commit_momentum(bucket.layers[i].name, in_flight.values[g][n].residual, finite);
      }
    }
    group.reduction->deliver(finite);
    if (bucket.buffer.scalar_type() == at::kFloat) continue;
    for (std::size_t n = 0; n < group.layers.size(); ++n) {
      gradient_of(bucket, group.layers[n]).copy_(as_tensor(in_flight.values[g][n].values));
    }
  }
}

void BucketAverager::commit(BucketInFlight& in_flight) {
  const BucketLayout& layout = *in_flight.layout;
  for (const LayerGroup& group : layout.groups) {
    group.reduction->commit();
    for (const std::size_t i : group.layers) {
      const BucketLayout::Layer& own = layout.layers[i];
      residuals_.commit(in_flight.bucket.layers[i].name, own.setting, own.way());
    }
  }
}

void BucketAverager::expect_checksum(BucketInFlight& in_flight) {
  in_flight.checksum.reset();
  const std::int64_t every = options_.check_replicas_every;
  if (every <= 0 || in_flight.step % every != 0) return;
  in_flight.checksum = checksums_.size();
  checksums_.push_back({name_of(in_flight.bucket)});
}

void BucketAverager::note_checksum(const BucketInFlight& in_flight) {
  if (!in_flight.checksum) return;
  has_results_ = true;
  const at::Tensor buffer = in_flight.bucket.buffer.cpu();
  checksums_[*in_flight.checksum].crc32c = crc32c(
      std::as_bytes(std::span(static_cast<const char*>(buffer.const_data_ptr()), buffer.nbytes())));
}

void BucketAverager::agree() {
  if (device_) traffic_.sent_bytes += device_->end_step(last_step_);
  if (!std::exchange(has_results_, false)) return;
  const Refusal refusal = std::exchange(refusal_, {});
  const std::vector<ReplicaChecksum> checksums = std::exchange(checksums_, {});
  traffic_.sent_bytes += refusal.agree(*group_, sequence_, concat("step ", last_step_), checksums);
}

AveragerMemory BucketAverager::memory() const {
  AveragerMemory memory{.residuals = residuals_.feedback.bytes(),
                        .second_residuals = residuals_.second.bytes(),
                        .momentum = residuals_.momentum.bytes(),
                        .layouts = layouts_->bytes()};
  for (const auto& [name, start] : residuals_.warm_starts) {
    memory.warm_starts += start.q.capacity() * sizeof(float);
  }
  for (const auto& [name, layer] : residuals_.bases) memory.bases += layer.basis.bytes();
  for (const auto& place : places_) memory.in_flight += place->workspace.bytes();
  if (device_) {
    memory.residuals += device_->memory().residual_bytes();
    memory.second_residuals += device_->memory().second_bytes();
    memory.momentum += device_->memory().momentum_bytes();
    memory.warm_starts += device_->memory().warm_start_bytes();
    memory.in_flight += device_->scratch_bytes();
  }
  return memory;
}

void BucketAverager::mark() {
  marks_ = true;
  if (device_) device_->settle_reports();  // of the step before, which is not to be taken back
  residuals_.mark();
  device_before_ = device_ ? std::make_unique<DeviceMemory>(device_->memory().copy()) : nullptr;
}

void BucketAverager::undo() {
  residuals_.undo();
  if (!device_) return;
  ErrorFeedback::State residuals = residuals_.feedback.state();
  MomentumCorrection::State momentum = residuals_.momentum.state();
  SecondResidual::State second = residuals_.second.state();
  WarmStarts& warm_starts = residuals_.warm_starts;
  if (device_before_) device_before_->copy_to(residuals, momentum, second, warm_starts);
  residuals_.feedback.load_state(std::move(residuals));
  residuals_.momentum.load_state(std::move(momentum));
  residuals_.second.load_state(std::move(second));
  device_->take(residuals_);
}

void BucketAverager::abandon() {
  if (device_) device_->abandon();
}

AveragerState BucketAverager::state() const {
  AveragerState state{.residuals = residuals_.feedback.state(),
                      .momentum = residuals_.momentum.state(),
                      .second = residuals_.second.state(),
                      .warm_starts = residuals_.warm_starts,
                      .shared_steps = residuals_.shared_steps.state(),
                      .bases = state_of(residuals_.bases)};
  if (device_) device_->copy_to(state);
  return state;
}

std::map<std::string, at::Tensor> BucketAverager::state_in_place() const {
  // What lies on a device is copied for the host.
  return device_ ? to_tensors(state()) : tensors_in_place(residuals_);
}

void BucketAverager::load_state(AveragerState state) {
  LayerBases bases = bases_of(std::move(state.bases));  // throws before anything changes
  compressed_before_ = true;
  residuals_.momentum.load_state(std::move(state.momentum));
  residuals_.feedback.load_state(std::move(state.residuals));
  residuals_.second.load_state(std::move(state.second));
  residuals_.warm_starts = std::move(state.warm_starts);
  residuals_.shared_steps.load_state(std::move(state.shared_steps));
  residuals_.bases = std::move(bases);
  if (device_) device_->take(residuals_);
}

}  // namespace thinwire::comm
