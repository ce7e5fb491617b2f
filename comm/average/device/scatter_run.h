// One exchange of slices in GPU memory under way.
#pragma once

#include <cstddef>
#include <vector>

#include "thinwire/comm/average/device/device_scatter.h"

namespace thinwire::comm {

// DeviceScatter::average() in parts, for exchanges that others stand in (DeviceHierarchical): work
// is queued in the order of the calls, and all ranks make the same ones.
class DeviceScatter::Run {
 public:
  // What values are encoded from, and where means go: float32 or the bucket's type, by
  // DevicePiece::value. `lost` as in EncodeTask.
  struct Values {
    DType dtype;
    void* data;
    float* lost;
  };

  Run(DeviceScatter& owner, const DeviceExchange& exchange, const PieceTables& tables,
      const Values& values);

  void use(const Values& values) { values_ = values; }

  // Encodes a chunk and starts to send it to the owners.
  void send_slices(std::size_t chunk);
  // Waits for what came of the own slice, adds it up, divides, encodes the mean and starts to send
  // it.
  void reduce_own_slice(std::size_t chunk);
  // Waits for all means and looks at them; then all of the exchange has come, and each layer's loss
  // is kept or not, see keep().
  void hear_all();
  // Writes the means, and moves what is kept.
  void decode_all() const;

  // Of tables whose sums or means are apart, see PieceScope. The sums of the own slice, undivided,
  // become the payload of its mean.
  void add_up(std::size_t chunk);
  // What has become of the payload is the mean.
  void send_mean(std::size_t chunk);
  // Waits for a chunk's means and looks at them.
  void hear_means(std::size_t chunk);
  // Of a chunk's means, by `pieces` of other tables and without what they say is kept.
  void decode(std::size_t chunk, const kernels::DevicePiece* pieces,
              const kernels::ExchangeWords* words, const at::Tensor& keep) const;
  // Decides on the losses anew, of an exchange that has come.
  void decide();

  // Whether each layer keeps its loss, of 32 bits, and whether each tile's mean is finite.
  at::Tensor keep() const;
  at::Tensor finite_means(std::size_t chunk) const;

 private:
  using WorkPtr = c10::intrusive_ptr<c10d::Work>;

  bool alone() const { return tables_.ranks() == 1; }
  kernels::PieceKey key() const;
  at::Tensor part(std::int64_t begin, std::int64_t bytes) const;
  void wait_for(const WorkPtr& work) const;
  void sum(const FrameRun& run) const;
  kernels::FrameTask frame_task() const;
  void reduce(std::size_t chunk, float divisor) const;
  void gather(std::size_t chunk);
  void handle(const kernels::FrameTask& frames) const;

  DeviceScatter& owner_;
  const DeviceExchange exchange_;
  const PieceTables& tables_;
  Values values_;
  void* stream_;
  kernels::PieceTable table_;
  std::vector<WorkPtr> scatters_, gathers_;
};

}  // namespace thinwire::comm
