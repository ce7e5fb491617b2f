// A bucket between begin() and finish() of its averager.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include "thinwire/comm/average/bucket_averager.h"
#include "thinwire/comm/average/bucket_layout.h"
#include "thinwire/comm/average/reduce/workspace.h"
#include "thinwire/comm/wire/refusal.h"

namespace thinwire::comm {

// An all_reduce of uncompressed layers in the buffer's own type, see dense_mean.h.
struct DenseMean {
  at::Tensor values;              // the buffer, or the layers one after another
  bool packed = false;            // the latter
  std::vector<std::size_t> paid;  // layers that got back what they were owed
  c10::intrusive_ptr<c10d::Work> work;
};

// The memory stays for the buckets that come after.
struct BucketInFlight {
  enum class Stage { kFree, kBegun, kAdvanced };
  Stage stage = Stage::kFree;
  Bucket bucket;
  std::shared_ptr<BucketLayout> layout;
  std::int64_t step = 0;
  std::uint64_t sequence = 0;
  std::optional<std::size_t> checksum;  // place of the replicas', where they are compared
  Refusal refusal;
  Workspace workspace;
  DenseMean dense;
  std::vector<std::vector<LayerValues>> values;  // by group of the layout
  std::unique_ptr<bool[]> residual_finite;       // by layer
  std::size_t residual_finite_size = 0;
};

}  // namespace thinwire::comm
