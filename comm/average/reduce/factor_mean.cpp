#include "thinwire/comm/average/reduce/factor_mean.h"

namespace thinwire::comm {

FactorMean::FactorMean(std::span<const PartitionLayer> parts, const Peers& peers,
                       std::size_t chunk_bytes)
    : parts_(parts.begin(), parts.end()),
      reduce_(std::make_unique<ScatterReduce>(
          parts_, peers, Partition::chunks_for(parts, peers.size(), chunk_bytes))) {}

void FactorMean::start(const ReductionContext& context, std::span<const LayerValues* const> layers,
                       std::span<float> buffer, std::span<float> lost) {
  refusal_ = context.refusal;
  divisor_ = static_cast<float>(context.divisor);
  of_means_ = {};
  values_.clear();
  std::size_t at = 0;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    const auto numel = static_cast<std::size_t>(parts_[i].numel);
    values_.push_back({.id = layers[i]->id,
                       .name = layers[i]->name,
                       .codec = parts_[i].codec,
                       .values = buffer.subspan(at, numel),
                       .residual = lost.empty() ? lost : lost.subspan(at, numel),
                       .second = lost.empty() ? nullptr : &of_means_});
    at += numel;
  }
  reduce_->start(context, values_);
}

Averaged FactorMean::finish() {
  const Averaged averaged = reduce_->receive();
  if (refusal_->any()) return averaged;
  reduce_->deliver(averaged.finite);
  if (!averaged.finite) return averaged;
  reduce_->commit();
  for (const Piece& piece : reduce_->owned()) {
    const LayerValues& part = values_[piece.layer];
    if (part.residual.empty()) continue;
    const auto of_mean = of_means_.of(part.name, piece.begin, piece.numel);
    float* const lost = part.residual.data() + piece.begin;
    for (std::size_t i = 0; i < of_mean.size(); ++i) lost[i] += divisor_ * of_mean[i];
  }
  return averaged;
}

}  // namespace thinwire::comm
