// The layouts of the buckets that are averaged now.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "thinwire/comm/average/bucket_layout.h"

namespace thinwire::comm {

// Of each bucket the layouts of the last plans; those of buckets that come no more are dropped, as
// when c10d's Reducer rebuilds its buckets after the first step: a bucket that did not come in the
// last step, nor among the last kRecent ones, for there are callers who count every bucket as a
// step. Not thread-safe.
class Layouts {
 public:
  static constexpr std::uint64_t kRecent = 64;

  // What is passed by reference outlives the object.
  Layouts(const AveragerOptions& options, c10d::ProcessGroup& group, const Peers& peers,
          Residuals& residuals)
      : options_(options), group_(group), peers_(peers), residuals_(residuals) {}

  // A pure function of the arguments and of what came before, which are equal on all ranks.
  // `part`: the bucket has only those of its layers that are in use. Throws InvalidArgument where a
  // strategy that the options name cannot average a layer's codec.
  std::shared_ptr<BucketLayout> of(const Bucket& bucket, const Plan& plan, std::int64_t step,
                                   bool part = false);

  std::size_t count() const;
  // Bytes held.
  std::size_t bytes() const;

 private:
  struct Known {
    std::int64_t last_step = 0;
    std::uint64_t last_call = 0;
    std::vector<std::shared_ptr<BucketLayout>> layouts;  // the last used first
  };
  void drop_unused(std::int64_t step);

  const AveragerOptions& options_;
  c10d::ProcessGroup& group_;
  const Peers& peers_;
  Residuals& residuals_;
  std::int64_t step_ = -1;
  std::uint64_t calls_ = 0;
  std::map<std::pair<std::uint64_t, bool>, Known> known_;  // by the bucket's layers, and `part`
};

}  // namespace thinwire::comm
