// What averaging a bucket makes the communication thread do, as a list of numbers.
#pragma once

#include <optional>
#include <vector>

#include "thinwire/comm/average/reduction_table.h"
#include "thinwire/comm/link/link_model.h"

namespace thinwire::comm {

// kCode: the thread computes for so many seconds. kPost: it hands a message to the network, which
// then takes so many seconds and bytes for it. kWait: it waits until that message has arrived.
struct ExchangeOp {
  enum class Kind { kCode, kPost, kWait };
  Kind kind = Kind::kCode;
  double seconds = 0;  // of kCode; of kPost: the latency, to which the bytes' time comes
  int message = 0;     // number within the bucket, of kPost and kWait
  double bytes = 0;    // that one rank sends, of kPost
  double per_byte = 0;
};

// In the parts in which BucketAverager does it: another bucket's finish comes between.
struct ExchangeOps {
  std::vector<ExchangeOp> begin = {}, advance = {}, finish = {};

  double coding_seconds() const;
  double sent_bytes() const;
};

// What a bucket holds.
struct BucketUse {
  // Of the compressed layers together; none: all are uncompressed.
  std::optional<Strategy> strategy = {};
  CodecUse codec = {};
  double compressed_bytes = 0;    // of their gradients
  double uncompressed_bytes = 0;  // of the other layers' gradients
};

struct PredictedPlace {
  int world = 1;
  int hosts = 1;
  double chunk_bytes = 4 << 20;  // AveragerOptions::chunk_bytes
  // Seconds per byte of dividing an uncompressed gradient.
  double scale_cost = 1.2e-10;
};

// The order of BucketAverager's reductions, see comm/average/reduce. kHierarchical needs the link's
// pairs. Pure; thread-safe.
ExchangeOps exchange_ops(const BucketUse& bucket, const PredictedPlace& place,
                         const BackendLink& link);

}  // namespace thinwire::comm
