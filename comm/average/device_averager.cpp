#include "thinwire/comm/average/device_averager.h"

#include <ATen/DeviceGuard.h>
#include <ATen/ScalarOps.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "thinwire/comm/average/device_plan.h"
#include "thinwire/comm/average/reduce/exact_mean.h"
#include "thinwire/comm/average/reduce/hierarchical.h"
#include "thinwire/comm/average/reduce/low_rank.h"
#include "thinwire/comm/average/reduce/scatter_reduce.h"
#include "thinwire/comm/average/reduce/slot_reduce.h"
#include "thinwire/comm/backend/process_group.h"
#include "thinwire/comm/failure/failure.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

const Partition& partition_of(const LayerGroup& group) {
  const auto* reduction = dynamic_cast<const ScatterReduce*>(group.reduction.get());
  THINWIRE_ASSERT(reduction != nullptr);
  return reduction->partition();
}

std::string operation_of(const Bucket& bucket) {
  return concat("averaging bucket ", bucket.index);
}

// Exchanges of entries and factors are told apart from those of slices of the same bucket.
constexpr std::uint64_t kChosenLayout = 0x9E3779B97F4A7C15u, kDrawnLayout = 0xD6E8FEB86659FD93u,
                        kFactorsLayout = 0xA0761D6478BD642Fu, kSlotsLayout = 0xE7037ED1A0B428DBu;

}  // namespace

DeviceAverager::DeviceAverager(c10d::ProcessGroup& group,
                               c10::intrusive_ptr<c10d::ProcessGroup> original, std::uint64_t seed,
                               at::Device device, Residuals& residuals)
    : group_((check_device_group(group, device), group)),
      seed_(seed),
      device_(device),
      watch_(group.getSize() > 1 && orders_streams(group, device.type())
                 ? std::make_unique<DeviceWatch>(group, std::move(original), device)
                 : nullptr),
      memory_(device),
      scatter_(group, device),
      chosen_(group, device, scatter_),
      drawn_(group, device, scatter_),
      shared_steps_(residuals.shared_steps),
      verdicts_(group, device, watch_.get()),
      words_(at::zeros({sizeof(kernels::ExchangeWords) / sizeof(std::int32_t)},
                       at::TensorOptions(at::kInt).device(device))) {
  take(residuals);
}

void DeviceAverager::check() const {
  if (watch_) watch_->check();
}

void DeviceAverager::begin() {
  check();
  if (in_step_) return;
  // Sizes of slots follow the reports, and must not differ from rank to rank: no rank goes on from
  // a step that another one refused.
  settle_reports();
  verdicts_.begin_step();
}

void DeviceAverager::settle_reports() {
  if (reports_.empty()) return;
  verdicts_.settle();
  for (const std::shared_ptr<SlotTables>& tables : std::exchange(reports_, {})) tables->learn();
}

std::vector<DeviceLayer> DeviceAverager::layers_of(const Bucket& bucket, const BucketLayout& layout,
                                                   const LayerGroup& group) const {
  std::vector<DeviceLayer> layers;
  for (const std::size_t i : group.layers) {
    const BucketLayer& layer = bucket.layers[i];
    const BucketLayout::Layer& own = layout.layers[i];
    const bool compressed = own.codec != nullptr;
    layers.push_back({.id = own.id,
                      .name = layer.name,
                      .codec = compressed ? own.codec.get() : &identity_codec(),
                      .offset = layer.offset,
                      .numel = layer.numel(),
                      .compressed = compressed,
                      .keeps_loss = compressed && own.setting.uses_feedback(),
                      .decay = static_cast<float>(own.setting.feedback.decay),
                      .reset_every = own.setting.feedback.reset_every,
                      .owned = own.owned});
    if (compressed) layers.back().momentum = own.setting.momentum;
  }
  return layers;
}

PieceTables& DeviceAverager::tables_of(const Bucket& bucket, BucketLayout& layout,
                                       const LayerGroup& group) {
  if (!layout.tables || layout.tables->memory_version() != memory_.version()) {
    layout.tables = std::make_shared<PieceTables>(
        layers_of(bucket, layout, group), partition_of(group), group_.getRank(), device_, memory_);
  }
  return *layout.tables;
}

HierarchicalTables& DeviceAverager::tables_of(const Bucket& bucket, BucketLayout& layout,
                                              const LayerGroup& group,
                                              const Hierarchical& reduction) {
  std::shared_ptr<HierarchicalTables>& tables = layout.hierarchical_tables;
  if (!tables || tables->memory_version() != memory_.version()) {
    tables = std::make_shared<HierarchicalTables>(layers_of(bucket, layout, group), reduction,
                                                  group_.getSize(), device_, memory_);
  }
  if (!hierarchical_) hierarchical_ = std::make_unique<DeviceHierarchical>(group_, device_);
  return *tables;
}

void DeviceAverager::refresh(std::shared_ptr<SparseTables>& tables, const Bucket& bucket,
                             const BucketLayout& layout, const LayerGroup& group) {
  if (tables && tables->memory_version() == memory_.version()) return;
  std::vector<DeviceLayer> layers = layers_of(bucket, layout, group);
  std::erase_if(layers, [](const DeviceLayer& layer) { return layer.numel == 0; });
  tables =
      std::make_shared<SparseTables>(layers, group_.getRank(), group_.getSize(), device_, memory_);
}

void DeviceAverager::refresh(std::shared_ptr<LowRankTables>& tables, const Bucket& bucket,
                             const BucketLayout& layout, const LayerGroup& group,
                             const LowRank& reduction) {
  if (tables && tables->memory_version() == memory_.version()) return;
  tables = std::make_shared<LowRankTables>(layers_of(bucket, layout, group), reduction,
                                           group_.getRank(), device_, memory_);
}

void DeviceAverager::refresh(std::shared_ptr<SlotTables>& tables, const Bucket& bucket,
                             const BucketLayout& layout, const LayerGroup& group,
                             const SlotReduce& reduction) {
  if (tables && tables->memory_version() == memory_.version()) return;
  tables = std::make_shared<SlotTables>(layers_of(bucket, layout, group), reduction,
                                        group_.getRank(), group_.getSize(), device_, memory_);
}

SharedSteps::Use DeviceAverager::use_of(const SlotTables& tables, const Bucket& bucket,
                                        const BucketLayout& layout, const LayerGroup& group,
                                        std::int64_t step, std::uint64_t number) const {
  SharedSteps::Use use = tables.reduction().use_of_steps(tables.group(), step);
  if (std::ranges::min(use.step) > 0) return use;
  // Once at first, and after a step that was far off: what the gradient is like, the host has to
  // know.
  float found = 0;
  waiting(bucket, number, [&] {
    found = DeviceSlots::first_step(tables.reduction(), use, layers_of(bucket, layout, group),
                                    bucket.buffer, memory_, group_.getSize());
    return true;
  });
  std::ranges::replace(use.step, 0.0f, found);
  return use;
}

DeviceAverager::Sent DeviceAverager::average(const Bucket& bucket, BucketLayout& layout,
                                             std::int64_t step, std::uint64_t number) {
  const at::DeviceGuard guard(device_);
  Sent sent;
  if (!layout.dense.empty()) {
    sent.bytes = average_dense(bucket, layout, number);
    sent.means = sent.bytes / 2;
  }
  if (!layout.groups.empty()) {
    const Sent compressed = average_compressed(bucket, layout, step, number);
    sent.bytes += compressed.bytes;
    sent.means += compressed.means;
  }
  watch(operation_of(bucket), number);
  return sent;
}

// What makes the host wait for the device, which may be waiting for a rank that is gone.
template <typename Wait>
bool DeviceAverager::waiting(const Bucket& bucket, std::uint64_t number, const Wait& wait) const {
  watch(operation_of(bucket), number);
  const bool result = wait();
  check();
  return result;
}

// First the entries and factors, then the slices: no part may be kept before all have come.
DeviceAverager::Sent DeviceAverager::average_compressed(const Bucket& bucket, BucketLayout& layout,
                                                        std::int64_t step, std::uint64_t number) {
  struct Entries {
    DeviceSparse* by;
    std::uint64_t layout;
    const SparseTables* tables;
  };
  std::vector<Entries> entries;
  std::vector<const LowRankTables*> factors;
  struct Slots {
    std::shared_ptr<SlotTables> tables;
    SharedSteps::Use use;
  };
  std::vector<Slots> slots;
  const PieceTables* slices = nullptr;
  const HierarchicalTables* by_hosts = nullptr;
  layout.factor_tables.resize(layout.groups.size());
  layout.slot_tables.resize(layout.groups.size());
  for (std::size_t g = 0; g < layout.groups.size(); ++g) {
    const LayerGroup& group = layout.groups[g];
    const CodecPtr& codec = layout.layers[group.layers.front()].codec;
    if (const auto* low_rank = dynamic_cast<const LowRank*>(group.reduction.get())) {
      refresh(layout.factor_tables[g], bucket, layout, group, *low_rank);
      factors.push_back(layout.factor_tables[g].get());
    } else if (const auto* in_slots = dynamic_cast<const SlotReduce*>(group.reduction.get())) {
      refresh(layout.slot_tables[g], bucket, layout, group, *in_slots);
      if (layout.slot_tables[g]->tiles().count == 0) continue;
      slots.push_back({layout.slot_tables[g],
                       use_of(*layout.slot_tables[g], bucket, layout, group, step, number)});
    } else if (const auto* hosts = dynamic_cast<const Hierarchical*>(group.reduction.get())) {
      by_hosts = &tables_of(bucket, layout, group, *hosts);
    } else if (codec && codec->traits().summable) {
      refresh(layout.drawn_tables, bucket, layout, group);
      entries.push_back({&drawn_, kDrawnLayout, layout.drawn_tables.get()});
    } else if (codec && codec->entry_form()) {
      refresh(layout.chosen_tables, bucket, layout, group);
      entries.push_back({&chosen_, kChosenLayout, layout.chosen_tables.get()});
    } else {
      slices = &tables_of(bucket, layout, group);
    }
  }
  std::erase_if(entries, [](const Entries& part) { return part.tables->entries() == 0; });
  std::erase_if(factors, [](const LowRankTables* tables) { return tables->p_numel() == 0; });
  in_step_ = true;
  DeviceExchange exchange{.sequence = number,
                          .step = static_cast<std::uint64_t>(step),
                          .seed = seed_,
                          .layout = layout.hash,
                          .bucket = bucket.index,
                          .words = static_cast<kernels::ExchangeWords*>(words_.mutable_data_ptr()),
                          .begins = true,
                          .verdict = verdicts_.note(),
                          .words_memory = words_};
  Sent sent;
  bool pays_back = false;
  for (const Entries& part : entries) {
    DeviceExchange own = exchange;
    own.layout ^= part.layout;
    part.by->exchange(own, *part.tables, bucket.buffer);
    exchange.begins = false;
    sent = {sent.bytes + part.tables->sent_bytes(), sent.means + part.tables->mean_bytes()};
    pays_back = pays_back || part.tables->pays_back();
  }
  while (factors_.size() < factors.size()) factors_.emplace_back(group_, device_, scatter_);
  for (std::size_t g = 0; g < factors.size(); ++g) {
    DeviceExchange own = exchange;
    own.layout ^= (g + 1) * kFactorsLayout;
    factors_[g].exchange(own, *factors[g], bucket.buffer);
    exchange.begins = false;
    sent = {sent.bytes + factors[g]->sent_bytes(), sent.means + factors[g]->mean_bytes()};
    pays_back = pays_back || factors[g]->pays_back();
  }
  while (slots_.size() < slots.size()) slots_.emplace_back(group_, device_);
  const auto exchange_of_slots = [&](std::size_t g) {
    DeviceExchange own = exchange;
    own.layout ^= (g + 1) * kSlotsLayout;
    return own;
  };
  for (std::size_t g = 0; g < slots.size(); ++g) {
    SlotTables& tables = *slots[g].tables;
    slots_[g].exchange(exchange_of_slots(g), tables, slots[g].use, bucket.buffer);
    exchange.begins = false;
    sent = {sent.bytes + tables.sent_bytes(), sent.means + tables.mean_bytes()};
    pays_back = pays_back || tables.pays_back();
  }
  if (slices != nullptr) {
    scatter_.average(exchange, *slices, bucket.buffer);
    sent = {sent.bytes + slices->sent_bytes(), sent.means + slices->mean_bytes()};
    pays_back = pays_back || slices->pays_back();
  }
  if (by_hosts != nullptr) {
    hierarchical_->average(exchange, *by_hosts, bucket.buffer);
    sent = {sent.bytes + by_hosts->sent_bytes(), sent.means + by_hosts->mean_bytes()};
    pays_back = pays_back || by_hosts->pays_back();
  }
  for (const Entries& part : entries) part.by->deliver(exchange, *part.tables, bucket.buffer);
  for (std::size_t g = 0; g < factors.size(); ++g) {
    factors_[g].deliver(exchange, *factors[g], bucket.buffer);
  }
  for (std::size_t g = 0; g < slots.size(); ++g) {
    slots_[g].deliver(exchange_of_slots(g), *slots[g].tables, bucket.buffer);
    reports_.push_back(slots[g].tables);
  }
  // Once after a layout has come anew, and only then, the host has to know whether the step counts.
  if (pays_back && waiting(bucket, number, [&] { return counted(); })) {
    drop_what_was_paid(bucket, layout);
  }
  return sent;
}

// Whether residuals have been changed by the last exchange. Waits for the device.
bool DeviceAverager::counted() const {
  const at::Tensor host = words_.cpu();
  kernels::ExchangeWords words;
  std::memcpy(&words, host.const_data_ptr(), sizeof words);
  return words.refused == 0 && words.not_finite == 0;
}

// As Residuals::commit().
void DeviceAverager::drop_what_was_paid(const Bucket& bucket, const BucketLayout& layout) {
  for (const LayerGroup& group : layout.groups) {
    for (const std::size_t i : group.layers) {
      const std::string& name = bucket.layers[i].name;
      const BucketLayout::Layer& own = layout.layers[i];
      const bool uses_momentum = own.codec && own.setting.momentum;
      if (!uses_momentum) memory_.drop_momentum(name);
      if (!own.codec || uses_momentum) memory_.drop_residual(name);
      memory_.drop_unowned(name, own.owned);
    }
  }
}

// Adds to a layer's gradient what it is owed from steps in which it was compressed. As in
// start_dense_mean(), every operation is rounded by itself.
bool DeviceAverager::pay_debt(const Bucket& bucket, std::size_t i) {
  const BucketLayer& layer = bucket.layers[i];
  if (!memory_.carries(layer.name)) return false;
  at::Tensor debt = at::zeros({layer.numel()}, at::TensorOptions(at::kFloat).device(device_));
  const at::Tensor residual = memory_.held(layer.name);
  if (residual.defined()) debt.add_(residual);
  const at::Tensor of_momentum = memory_.held_momentum(layer.name);
  if (of_momentum.defined()) debt.add_(of_momentum);
  const at::Tensor orphans = memory_.orphans(layer.name, layer.numel(), {});
  if (orphans.defined()) debt.add_(orphans.mul(group_.getSize()));
  gradient_of(bucket, i).add_(debt.to(bucket.buffer.scalar_type()));
  return true;
}

// One all_reduce in the buffer's own type, as start_dense_mean() makes it.
std::uint64_t DeviceAverager::average_dense(const Bucket& bucket, const BucketLayout& layout,
                                            std::uint64_t number) {
  std::vector<std::size_t> paid;
  std::int64_t numel = 0;
  for (const std::size_t i : layout.dense) {
    if (pay_debt(bucket, i)) paid.push_back(i);
    numel += bucket.layers[i].numel();
  }
  at::Tensor values = bucket.buffer;
  const bool packed = layout.dense.size() < bucket.layers.size();
  if (packed) values = at::empty({numel}, bucket.buffer.options());
  const auto for_each_packed = [&](const auto& action) {
    std::int64_t at = 0;
    for (std::size_t n = 0; packed && n < layout.dense.size(); ++n) {
      const at::Tensor part = gradient_of(bucket, layout.dense[n]);
      action(part, values.narrow(0, at, part.numel()));
      at += part.numel();
    }
  };
  for_each_packed([](const at::Tensor& part, const at::Tensor& into) { into.copy_(part); });
  if (group_.getSize() > 1) {
    at::mul_out(values, values, at::native::wrapped_scalar_tensor(1.0 / group_.getSize()));
    std::vector<at::Tensor> tensors = {values};
    wait(group_, group_.allreduce(tensors), "all_reduce", number);
  }
  for_each_packed([](const at::Tensor& part, const at::Tensor& from) { part.copy_(from); });
  for (const std::size_t i : paid) {
    const at::Tensor finite = at::isfinite(gradient_of(bucket, i)).all();
    if (!waiting(bucket, number, [&] { return finite.item<bool>(); })) continue;
    memory_.drop_residual(bucket.layers[i].name);
    memory_.drop_momentum(bucket.layers[i].name);
    memory_.drop_unowned(bucket.layers[i].name, {});
  }
  return ring_bytes(static_cast<std::int64_t>(values.nbytes()), group_.getSize());
}

std::size_t DeviceAverager::scratch_bytes() const {
  std::size_t bytes = scatter_.bytes() + chosen_.bytes() + drawn_.bytes();
  if (hierarchical_) bytes += hierarchical_->bytes();
  for (const DeviceLowRank& factors : factors_) bytes += factors.bytes();
  for (const DeviceSlots& slots : slots_) bytes += slots.bytes();
  return bytes;
}

std::uint64_t DeviceAverager::end_step(std::int64_t step) {
  if (!std::exchange(in_step_, false)) return 0;
  const at::DeviceGuard guard(device_);
  verdicts_.end_step(step);
  watch("agreement on the result", static_cast<std::uint64_t>(step));
  return sizeof(kernels::DeviceVerdict) * static_cast<std::uint64_t>(group_.getSize() - 1);
}

void DeviceAverager::watch(std::string operation, std::uint64_t number) const {
  if (watch_) watch_->queued(std::move(operation), number);
}

void DeviceAverager::settle() {
  verdicts_.settle();
  check();
}

void DeviceAverager::abandon() {
  verdicts_.forget();
  reports_.clear();
  is_abandoned_ = true;
}

void DeviceAverager::copy_to(AveragerState& state) {
  settle_reports();
  verdicts_.settle();
  state.shared_steps = shared_steps_.state();
  memory_.copy_to(state.residuals, state.momentum, state.second, state.warm_starts);
  if (!is_abandoned_) check();
}

void DeviceAverager::take(Residuals& residuals) {
  const at::DeviceGuard guard(device_);
  reports_.clear();  // of what is replaced
  memory_.take(residuals.feedback, residuals.momentum, residuals.second, residuals.warm_starts);
}

}  // namespace thinwire::comm
