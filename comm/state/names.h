// Names in a state that several layers know.
#pragma once

namespace thinwire {

// The parameters of a DistributedDataParallel by number, int64, in the order of its buckets: that
// in which gradients became ready in its first backward pass. Which gradients share a bucket
// decides how they are cut and rounded.
inline constexpr const char* kBucketsName = "buckets";

}  // namespace thinwire
