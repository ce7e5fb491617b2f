#include "thinwire/comm/average/device/low_rank_tables.h"

#include <ATen/ops/zeros.h>

#include "thinwire/comm/average/device/table_upload.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

std::uint64_t parts_of(std::uint64_t count, std::uint64_t part) {
  return (count + part - 1) / part;
}

const Codec& codec_of_factors(const DeviceLayer& layer) {
  return *layer.codec->facts().factors;
}

}  // namespace

// The layer's tiles get the places after those before it.
kernels::LowRankLayer LowRankTables::made_of(const DeviceLayer& layer,
                                             const LowRank::Matrix& matrix, DeviceMemory& memory) {
  at::Tensor residual, start;
  if (layer.keeps_loss) residual = memory.residual(layer.name, layer.numel);
  if (!layer.compressed) residual = memory.held(layer.name);
  const at::Tensor orphan = memory.orphans(layer.name, layer.numel, {});
  const at::Tensor leftover = memory.held_momentum(layer.name);
  pays_back_ = pays_back_ || orphan.defined() || leftover.defined() ||
               (!layer.compressed && residual.defined());
  const bool has_factors = matrix.rank() > 0;
  if (has_factors) start = memory.warm_start(layer.name, matrix.shape.cols, matrix.shape.rank);
  for (const at::Tensor& values : {residual, orphan, leftover, start}) {
    if (values.defined()) held_.push_back(values);
  }
  kernels::LowRankLayer made{};
  made.rows = has_factors ? matrix.rows() : 1;
  made.cols = has_factors ? matrix.cols() : static_cast<std::uint64_t>(layer.numel);
  made.rank = static_cast<std::uint32_t>(matrix.rank());
  made.layer_id = layer.id;
  made.value = static_cast<std::uint64_t>(layer.offset);
  made.p = matrix.p;
  made.q = matrix.q;
  made.first_row_tile = row_tiles_;
  made.first_column_tile = column_tiles_;
  made.first_mean_tile = mean_tiles_;
  made.decay = layer.decay;
  made.reset_every = layer.reset_every;
  made.residual = address_of(residual, 0);
  made.orphan = address_of(orphan, 0);
  made.leftover = address_of(leftover, 0);
  made.keeps_loss = layer.keeps_loss;
  made.start = address_of(start, 0);
  row_tiles_ += has_factors ? parts_of(made.rows, kernels::kRowsOfTile)
                            : parts_of(made.cols, kernels::kUnfactoredTile);
  mean_tiles_ +=
      parts_of(made.rows, kernels::kMeanRows) * parts_of(made.cols, kernels::kMeanColumns);
  if (!has_factors) return made;
  column_tiles_ += parts_of(made.cols, kernels::kColumnsOfTile);
  made.start_columns = static_cast<std::uint32_t>(start.numel() / matrix.shape.cols);
  if (codec_of_factors(layer).traits().lossless) return made;
  made.lost_q = address_of(lost_q_, static_cast<std::int64_t>(matrix.q));
  made.lost_mean_q = address_of(lost_mean_q_, static_cast<std::int64_t>(matrix.q));
  return made;
}

// Parts of both factors, in the order of LowRank.
void LowRankTables::make_means(std::span<const DeviceLayer> layers, const LowRank& reduction,
                               const std::vector<std::size_t>& order, int rank, at::Device device,
                               DeviceMemory& memory) {
  std::vector<DeviceLayer> of_p, of_q;
  for (const std::size_t i : order) {
    const LowRank::Matrix& matrix = reduction.matrices()[i];
    const bool has_factors = matrix.rank() > 0;
    const auto p = static_cast<std::int64_t>(matrix.rows() * matrix.rank());
    const auto q = static_cast<std::int64_t>(matrix.cols() * matrix.rank());
    const Codec& codec = has_factors ? codec_of_factors(layers[i]) : exact_factors();
    of_p.push_back({.codec = &codec,
                    .offset = static_cast<std::int64_t>(matrix.p),
                    .numel = has_factors ? p : layers[i].numel});
    if (!has_factors) continue;
    const auto first = static_cast<std::int64_t>(matrix.q);
    of_q.push_back({.codec = &codec, .offset = first, .numel = q});
    if (codec.traits().lossless) continue;
    of_q.back().keeps_loss = true;
    of_q.back().lost = lost_q_.narrow(0, first, q);
    of_q.back().lost_of_means = lost_mean_q_.narrow(0, first, q);
  }
  const auto make = [&](std::optional<PieceTables>& tables, std::span<const DeviceLayer> parts,
                        const FactorMean* mean, int times) {
    if (mean == nullptr) return;
    tables.emplace(parts, mean->partition(), rank, device, memory);
    sent_bytes_ += static_cast<std::uint64_t>(times) * tables->sent_bytes();
    mean_bytes_ += static_cast<std::uint64_t>(times) * tables->mean_bytes();
  };
  make(first_p_, of_p, reduction.first_p(), 1);
  make(later_p_, std::span(of_p).first(of_q.size()), reduction.later_p(), iterations_ - 1);
  make(q_, of_q, reduction.q_mean(), iterations_);
}

LowRankTables::LowRankTables(std::span<const DeviceLayer> layers, const LowRank& reduction,
                             int rank, at::Device device, DeviceMemory& memory)
    : iterations_(reduction.iterations()),
      p_numel_(static_cast<std::int64_t>(reduction.p_numel())),
      q_numel_(static_cast<std::int64_t>(reduction.q_numel())) {
  std::vector<std::size_t> order;
  bool coded = false;
  for (const bool has_factors : {true, false}) {
    for (std::size_t i = 0; i < layers.size(); ++i) {
      if ((reduction.matrices()[i].rank() > 0) != has_factors) continue;
      order.push_back(i);
      coded = coded || (has_factors && !codec_of_factors(layers[i]).traits().lossless);
    }
  }
  if (coded) {
    const auto options = at::TensorOptions(at::kFloat).device(device);
    lost_q_ = at::zeros({q_numel_}, options);
    lost_mean_q_ = at::zeros({q_numel_}, options);
  }
  std::vector<kernels::LowRankLayer> made;
  for (const std::size_t i : order) {
    const LowRank::Matrix& matrix = reduction.matrices()[i];
    made.push_back(made_of(layers[i], matrix, memory));
    if (matrix.rank() == 0) continue;
    ++matrices_;
    matrix_row_tiles_ = row_tiles_;
  }
  count_ = static_cast<std::uint32_t>(made.size());
  make_means(layers, reduction, order, rank, device, memory);
  layers_ = table_on(device, made);
  memory_version_ = memory.version();
  record_on_current_stream(held_, device);
}

kernels::LowRankTask LowRankTables::task(int round) const {
  kernels::LowRankTask task{};
  task.layers = static_cast<const kernels::LowRankLayer*>(layers_.const_data_ptr());
  task.matrices = matrices_;
  task.count = count_;
  task.row_tiles = round == 0 ? row_tiles_ : matrix_row_tiles_;
  task.column_tiles = column_tiles_;
  task.mean_tiles = mean_tiles_;
  task.corrects = round == 0;
  return task;
}

}  // namespace thinwire::comm
