// Buckets of random gradients, and what their average must be.
#pragma once

#include <ATen/ATen.h>

#include <string>
#include <utility>
#include <vector>

#include "thinwire/comm/average/bucket_averager.h"

namespace thinwire::testing {

using LayerShapes = std::vector<std::pair<std::string, std::vector<std::int64_t>>>;

// A bucket with these layers one after another, filled from a generator of (seed, rank).
inline comm::Bucket random_bucket(const LayerShapes& shapes, std::uint64_t seed, int rank,
                                  at::ScalarType dtype = at::kFloat) {
  comm::Bucket bucket;
  std::int64_t numel = 0;
  for (const auto& [name, shape] : shapes) {
    bucket.layers.push_back({name, numel, shape});
    numel += bucket.layers.back().numel();
  }
  auto generator = at::detail::createCPUGenerator(seed * 1000 + static_cast<std::uint64_t>(rank));
  bucket.buffer = at::randn({numel}, generator, at::kFloat).to(dtype);
  return bucket;
}

inline comm::Plan uniform_plan(const LayerShapes& shapes, const std::string& spec) {
  comm::Plan plan;
  for (const auto& [name, shape] : shapes) plan.set(name, comm::parse_layer_setting(spec));
  return plan;
}

inline at::Tensor layer_of(const comm::Bucket& bucket, std::size_t i) {
  return bucket.buffer.narrow(0, bucket.layers[i].offset, bucket.layers[i].numel());
}

// Throws unless all ranks hold the same bits.
inline void expect_replicas(c10d::ProcessGroup& group, const at::Tensor& values) {
  std::vector<std::vector<at::Tensor>> all(1);
  for (int r = 0; r < group.getSize(); ++r) all[0].push_back(at::empty_like(values));
  std::vector<at::Tensor> mine = {values};
  group.allgather(all, mine)->wait();
  for (const auto& other : all[0]) {
    if (std::memcmp(other.const_data_ptr(), values.const_data_ptr(), values.nbytes()) != 0) {
      throw std::runtime_error("the ranks hold different bits");
    }
  }
}

}  // namespace thinwire::testing
