#include "thinwire/comm/average/device/device_low_rank.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include "thinwire/comm/average/device/table_upload.h"
#include "thinwire/comm/wire/tensor_bridge.h"

namespace thinwire::comm {

using kernels::LowRankStage;

DeviceLowRank::DeviceLowRank(c10d::ProcessGroup& group, at::Device device, DeviceScatter& scatter)
    : group_(group), device_(device), module_(CudaModule::get()), scatter_(scatter) {}

void DeviceLowRank::make_room(const LowRankTables& tables, const at::Tensor& bucket) {
  enlarge(p_, tables.p_numel(), at::kFloat, device_);
  enlarge(q_, tables.q_numel(), at::kFloat, device_);
  enlarge(own_q_, tables.q_numel(), at::kFloat, device_);
  if (bucket.scalar_type() != at::kFloat) enlarge(matrix_, bucket.numel(), at::kFloat, device_);
}

kernels::LowRankTask DeviceLowRank::task_of(const DeviceExchange& exchange,
                                            const LowRankTables& tables, const at::Tensor& bucket,
                                            int round) const {
  kernels::LowRankTask task = tables.task(round);
  task.dtype = dtype_of(bucket);
  task.values = bucket.mutable_data_ptr();
  task.matrix = data_of<float>(bucket.scalar_type() == at::kFloat ? bucket : matrix_);
  task.ranks = static_cast<float>(group_.getSize());
  task.seed = exchange.seed;
  task.step = exchange.step;
  task.p = data_of<float>(p_);
  task.q = data_of<float>(q_);
  task.own_q = data_of<float>(own_q_);
  task.words = exchange.words;
  return task;
}

void DeviceLowRank::run(const kernels::LowRankTask& task, LowRankStage stage) const {
  const c10::impl::VirtualGuardImpl streams(device_.type());
  module_.run_low_rank(task, stage, streams.getStream(device_).native_handle());
}

void DeviceLowRank::exchange(const DeviceExchange& exchange, const LowRankTables& tables,
                             const at::Tensor& bucket) {
  make_room(tables, bucket);
  DeviceExchange own = exchange;
  const auto average = [&](const PieceTables* factors, const at::Tensor& values) {
    if (factors == nullptr) return;
    own.layout += 0x9E3779B97F4A7C15u;  // one mean's frames are not taken for another's
    scatter_.average(own, *factors, values);
    own.begins = false;
  };
  run(task_of(exchange, tables, bucket, 0), LowRankStage::kStart);
  for (int round = 0; round < tables.iterations(); ++round) {
    kernels::LowRankTask task = task_of(exchange, tables, bucket, round);
    if (round > 0) {
      // Orthonormal columns keep further rounds from drowning the smaller singular values.
      task.of_q = true;
      run(task, LowRankStage::kOrthonormal);
      task.of_q = false;
    }
    run(task, LowRankStage::kMultiply);
    average(tables.p(round), p_);
    if (tables.q() == nullptr) return;
    run(task, LowRankStage::kOrthonormal);
    run(task, LowRankStage::kTransposed);
    average(tables.q(), q_);
  }
  run(task_of(exchange, tables, bucket, 0), LowRankStage::kSent);
}

void DeviceLowRank::deliver(const DeviceExchange& exchange, const LowRankTables& tables,
                            const at::Tensor& bucket) {
  const kernels::LowRankTask task = task_of(exchange, tables, bucket, 0);
  run(task, LowRankStage::kReplace);
  run(task, LowRankStage::kKeepStart);
}

std::size_t DeviceLowRank::bytes() const {
  std::size_t bytes = 0;
  for (const at::Tensor* memory : {&p_, &q_, &own_q_, &matrix_}) {
    if (memory->defined()) bytes += memory->nbytes();
  }
  return bytes;
}

}  // namespace thinwire::comm
