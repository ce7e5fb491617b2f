// Averaging buckets in GPU memory: what BucketAverager does with them.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "thinwire/comm/average/bucket_layout.h"
#include "thinwire/comm/average/device/device_hierarchical.h"
#include "thinwire/comm/average/device/device_low_rank.h"
#include "thinwire/comm/average/device/device_memory.h"
#include "thinwire/comm/average/device/device_scatter.h"
#include "thinwire/comm/average/device/device_slots.h"
#include "thinwire/comm/average/device/device_sparse.h"
#include "thinwire/comm/average/device/device_verdicts.h"
#include "thinwire/comm/failure/device_watch.h"

namespace thinwire::comm {

// Queues everything on the current stream, always the same one, and waits for nothing in a step
// whose layouts have come before and pay nothing back, over a backend that orders its work by
// streams (NCCL); but where layers go in slots, whose sizes follow what those of the step before
// took, for the end of that step. The means have the bits of those on the CPU. Not thread-safe.
class DeviceAverager {
 public:
  // Takes over what `residuals` holds but for its shared steps, which it uses and which outlive the
  // object. `original`: the group that `group` duplicates, or null; see
  // DeviceWatch. Throws InvalidArgument where kernels cannot be used (CudaModule) or the group
  // cannot exchange small messages of the host.
  DeviceAverager(c10d::ProcessGroup& group, c10::intrusive_ptr<c10d::ProcessGroup> original,
                 std::uint64_t seed, at::Device device, Residuals& residuals);

  at::Device device() const { return device_; }

  // Before each bucket. Throws FrameError, with one text on all ranks, where a frame of an earlier
  // step was refused (DeviceVerdicts), and as check().
  void begin();
  // Throws the failure of the group that was noticed while the device waited: DeviceWatch.
  // Thread-safe.
  void check() const;

  struct Sent {
    std::uint64_t bytes = 0, means = 0;
  };
  // Replaces the bucket by its mean, as BucketAverager::average(). `number` counts the exchanges.
  Sent average(const Bucket& bucket, BucketLayout& layout, std::int64_t step, std::uint64_t number);

  // The step under way ends with an agreement, also where nothing of it is compressed.
  void expect_agreement() { in_step_ = true; }
  // Collective, after the last bucket of a step. Returns the bytes that this rank sent.
  std::uint64_t end_step(std::int64_t step);

  // The work on the current stream up to here waits for other ranks too; see DeviceWatch.
  void watch(std::string operation, std::uint64_t number) const;

  // Tells the shared steps what exchanges have taken since it was called last; waits for these.
  // Throws FrameError as begin().
  void settle_reports();

  // The group has failed, or is left: what is on its way from other ranks counts no more, and
  // copy_to() gives what there is.
  void abandon();

  // As BucketAverager's; wait for the device.
  void settle();
  void copy_to(AveragerState& state);
  void take(Residuals& residuals);

  const DeviceMemory& memory() const { return memory_; }
  std::size_t scratch_bytes() const;

 private:
  std::vector<DeviceLayer> layers_of(const Bucket& bucket, const BucketLayout& layout,
                                     const LayerGroup& group) const;
  PieceTables& tables_of(const Bucket& bucket, BucketLayout& layout, const LayerGroup& group);
  HierarchicalTables& tables_of(const Bucket& bucket, BucketLayout& layout, const LayerGroup& group,
                                const Hierarchical& reduction);
  void refresh(std::shared_ptr<SparseTables>& tables, const Bucket& bucket,
               const BucketLayout& layout, const LayerGroup& group);
  void refresh(std::shared_ptr<LowRankTables>& tables, const Bucket& bucket,
               const BucketLayout& layout, const LayerGroup& group, const LowRank& reduction);
  void refresh(std::shared_ptr<SlotTables>& tables, const Bucket& bucket,
               const BucketLayout& layout, const LayerGroup& group, const SlotReduce& reduction);
  SharedSteps::Use use_of(const SlotTables& tables, const Bucket& bucket,
                          const BucketLayout& layout, const LayerGroup& group, std::int64_t step,
                          std::uint64_t number) const;
  Sent average_compressed(const Bucket& bucket, BucketLayout& layout, std::int64_t step,
                          std::uint64_t number);
  bool counted() const;
  void drop_what_was_paid(const Bucket& bucket, const BucketLayout& layout);
  std::uint64_t average_dense(const Bucket& bucket, const BucketLayout& layout,
                              std::uint64_t number);
  bool pay_debt(const Bucket& bucket, std::size_t layer);
  template <typename Wait>
  bool waiting(const Bucket& bucket, std::uint64_t number, const Wait& wait) const;

  c10d::ProcessGroup& group_;
  const std::uint64_t seed_;
  const at::Device device_;
  const std::unique_ptr<DeviceWatch> watch_;  // null where the host waits for every collective
  DeviceMemory memory_;
  DeviceScatter scatter_;
  std::unique_ptr<DeviceHierarchical> hierarchical_;  // once it is needed
  DeviceSparse chosen_, drawn_;        // entries that each rank chooses, and that all draw alike
  std::deque<DeviceLowRank> factors_;  // of each of a bucket's groups with factors
  std::deque<DeviceSlots> slots_;      // of each of a bucket's groups with slots
  // What the exchanges since the last settle_reports() report.
  std::vector<std::shared_ptr<SlotTables>> reports_;
  SharedSteps& shared_steps_;
  DeviceVerdicts verdicts_;
  at::Tensor words_;      // of the exchange under way, 32 bits each
  bool in_step_ = false;  // something was exchanged since the last end_step()
  bool is_abandoned_ = false;
};

}  // namespace thinwire::comm
