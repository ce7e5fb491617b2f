#include "thinwire/comm/average/reduce/factor_mean.h"

#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/powersgd.h"

namespace thinwire::comm {
namespace {

// Apart from those of the rounds of low rank.
constexpr std::uint64_t kStageOfSlots = 100;

}  // namespace

FactorMean::FactorMean(std::span<const FactorPart> parts, const Peers& peers,
                       std::size_t chunk_bytes, SharedSteps& steps, const std::string& factor) {
  std::vector<FactorSlots::Column> columns;
  std::size_t at = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const FactorPart& part = parts[i];
    const auto numel = static_cast<std::size_t>(part.numel);
    if (have_one_step(*part.codec)) {
      if (columns.empty()) first_in_slots_ = i;
      THINWIRE_ASSERT(part.codec->spec() == parts[first_in_slots_].codec->spec());
      const std::size_t length = numel / static_cast<std::size_t>(part.columns);
      for (std::size_t c = 0; c < numel; c += length) columns.push_back({at + c, length});
    } else {
      cut_.push_back({part.numel, part.codec});
      places_.push_back({i, at});
    }
    at += numel;
  }
  if (!columns.empty()) {
    slots_ = std::make_unique<FactorSlots>(std::move(columns), *parts[first_in_slots_].codec, peers,
                                           chunk_bytes, steps, factor);
  }
  if (cut_.empty()) return;
  reduce_ = std::make_unique<ScatterReduce>(cut_, peers,
                                            Partition::chunks_for(cut_, peers.size(), chunk_bytes));
}

void FactorMean::start(const ReductionContext& context, std::span<const LayerValues* const> layers,
                       std::span<float> buffer, std::span<float> lost,
                       std::span<const float> sizes) {
  refusal_ = context.refusal;
  divisor_ = static_cast<float>(context.divisor);
  of_means_ = {};
  values_.clear();
  for (std::size_t i = 0; i < cut_.size(); ++i) {
    const auto numel = static_cast<std::size_t>(cut_[i].numel);
    const LayerValues& layer = *layers[places_[i].part];
    values_.push_back({.id = layer.id,
                       .name = layer.name,
                       .codec = cut_[i].codec,
                       .values = buffer.subspan(places_[i].begin, numel),
                       .residual = lost.empty() ? lost : lost.subspan(places_[i].begin, numel),
                       .second = lost.empty() ? nullptr : &of_means_});
  }
  if (slots_) {
    slots_->start(context.stage(kStageOfSlots), *layers[first_in_slots_], buffer, lost, sizes);
  }
  if (reduce_) reduce_->start(context, values_);
}

void FactorMean::advance() {
  if (slots_) slots_->advance();
  if (reduce_) reduce_->advance();
}

Averaged FactorMean::finish() {
  Averaged averaged;
  const auto note = [&](const Averaged& one) {
    averaged.add_bytes(one);
    averaged.finite = averaged.finite && one.finite;
  };
  if (slots_) note(slots_->receive());
  if (reduce_) note(reduce_->receive());
  if (refusal_->any()) return averaged;
  if (slots_) slots_->deliver(averaged.finite);
  if (!reduce_) return averaged;
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

void FactorMean::commit() {
  if (slots_) slots_->commit();
}

}  // namespace thinwire::comm
