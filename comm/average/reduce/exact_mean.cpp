#include "thinwire/comm/average/reduce/exact_mean.h"

#include "thinwire/compressors/codecs/codec_table.h"

namespace thinwire::comm {

const Codec& identity_codec() {
  static const CodecPtr kIdentity = make_codec("identity");
  return *kIdentity;
}

ExactMean::ExactMean(std::int64_t numel, const Peers& peers, std::size_t chunk_bytes) {
  const PartitionLayer whole{numel, &identity_codec()};
  reduce_ = std::make_unique<ScatterReduce>(std::span(&whole, 1), peers,
                                            Partition::chunks_for(numel, chunk_bytes));
}

std::size_t ExactMean::run(const ReductionContext& context, std::span<float> buffer) {
  const LayerValues whole{.codec = &identity_codec(), .values = buffer};
  return reduce_->run(context, std::span(&whole, 1)).sent;
}

}  // namespace thinwire::comm
