#include "thinwire/comm/average/reduce/exact_mean.h"

#include "thinwire/compressors/codecs/codec_table.h"

namespace thinwire::comm {

const Codec& identity_codec() {
  static const CodecPtr kIdentity = make_codec("identity");
  return *kIdentity;
}

ExactMean::ExactMean(std::int64_t numel, const Peers& peers, std::size_t chunk_bytes) {
  const PartitionLayer whole{numel, &identity_codec()};
  reduce_ = std::make_unique<ScatterReduce>(
      std::span(&whole, 1), peers,
      Partition::chunks_for(std::span(&whole, 1), peers.size(), chunk_bytes));
}

void ExactMean::start(const ReductionContext& context, std::span<float> buffer) {
  refusal_ = context.refusal;
  whole_ = {.codec = &identity_codec(), .values = buffer};
  reduce_->start(context, std::span(&whole_, 1));
}

Averaged ExactMean::finish() {
  const Averaged averaged = reduce_->receive();
  if (!refusal_->any()) reduce_->deliver(averaged.finite);
  return averaged;
}

}  // namespace thinwire::comm
