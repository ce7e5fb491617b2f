// The table by which kernels average matrices by their factors
// (compressors/kernels/low_rank_task.h), and those by which the means of the factors are made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include "thinwire/comm/average/device/piece_tables.h"
#include "thinwire/comm/average/reduce/low_rank.h"
#include "thinwire/compressors/kernels/low_rank_task.h"

namespace thinwire::comm {

// Made once a layout and for the residuals of then, as PieceTables. Not thread-safe.
class LowRankTables {
 public:
  // Queues the copy of the tables on the current stream, and waits for it. `reduction` is that of
  // the layers on the CPU.
  LowRankTables(std::span<const DeviceLayer> layers, const LowRank& reduction, int rank,
                at::Device device, DeviceMemory& memory);

  // Layers and tiles, of a round of the exchange; all else is zero.
  kernels::LowRankTask task(int round) const;
  int iterations() const { return iterations_; }
  std::int64_t p_numel() const { return p_numel_; }
  std::int64_t q_numel() const { return q_numel_; }
  // Of all P, layers without factors included in the first round, and of all Q. Null: nothing.
  const PieceTables* p(int round) const {
    return round == 0 ? pointer_to(first_p_) : pointer_to(later_p_);
  }
  const PieceTables* q() const { return pointer_to(q_); }

  // As PieceTables'.
  bool pays_back() const { return pays_back_; }
  std::uint64_t memory_version() const { return memory_version_; }
  std::uint64_t sent_bytes() const { return sent_bytes_; }
  std::uint64_t mean_bytes() const { return mean_bytes_; }

 private:
  static const PieceTables* pointer_to(const std::optional<PieceTables>& tables) {
    return tables ? &*tables : nullptr;
  }
  kernels::LowRankLayer made_of(const DeviceLayer& layer, const LowRank::Matrix& matrix,
                                DeviceMemory& memory);
  void make_means(std::span<const DeviceLayer> layers, const LowRank& reduction,
                  const std::vector<std::size_t>& order, int rank, at::Device device,
                  DeviceMemory& memory);

  const int iterations_;
  const std::int64_t p_numel_, q_numel_;
  std::uint32_t matrices_ = 0, count_ = 0;
  std::uint64_t matrix_row_tiles_ = 0, row_tiles_ = 0, column_tiles_ = 0, mean_tiles_ = 0;
  std::optional<PieceTables> first_p_, later_p_, q_;
  at::Tensor lost_q_, lost_mean_q_;  // where any factor is coded
  bool pays_back_ = false;
  std::uint64_t memory_version_ = 0, sent_bytes_ = 0, mean_bytes_ = 0;
  at::Tensor layers_;             // bytes, on the device
  std::vector<at::Tensor> held_;  // whose addresses the layers have
};

}  // namespace thinwire::comm
