// The mean gradient of every layer over some steps and over the ranks.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/average/bucket_averager.h"
#include "thinwire/torch_ext/compression/compression.h"

namespace thinwire {

// Adds up the local gradients of some layers, step after step, and averages them over the ranks in
// one exchange. Each layer has an owner, which alone gets its mean and measures its curve: a
// quarter of the bytes of an all-reduce, and 1 / W of the work for each rank.
//
// Sums and means are bfloat16, whose 0.2 % no curve notices and whose range is that of float32: 2
// bytes an element of the layers from the first add() to exchange(), which needs messages of about
// 4 MiB beside them, 2 / W from then to release(). What add() rounds it rounds up or down at random
// (a function of place and step), so that many small gradients add up to what they should.
//
// Sums are in host memory: gradients in GPU memory are copied there, which waits for the device.
//
// Not thread-safe, but the means may be read from another thread between exchange() and what comes
// after it.
class GradientStatistics {
 public:
  // What a checkpoint keeps: sums of all layers or, after exchange(), the means of the own ones.
  struct Saved {
    std::int64_t steps = 0;
    std::int64_t left_out = 0;
    bool holds_means = false;
    std::vector<std::uint16_t> values;  // bfloat16
  };

  // Equal `layers` on all ranks. Owners get about equally many elements each.
  GradientStatistics(std::vector<LayerInfo> layers, int rank, int world);

  // Begins anew, without memory.
  void reset();
  // The means are needed no more.
  void release();
  // Adds this rank's gradients. Layers that it does not know are passed over; a layer with NaN or
  // infinity is left out on this rank (its part of the mean is zero) and counted.
  void add(const comm::Bucket& bucket);
  // Ends one step: the mean divides by the number of steps.
  void finish_step() { ++steps_; }

  // Adds the sums of all ranks in rank order, in float32, and divides them by the number of steps
  // and ranks. Collective; `sequence` is for messages. Returns the bytes that this rank sent.
  std::uint64_t exchange(c10d::ProcessGroup& group, std::uint64_t sequence);

  const std::vector<LayerInfo>& layers() const { return layers_; }
  int owner(std::size_t layer) const { return places_[layer].owner; }
  // After exchange(), on the owner: the mean gradient, on others nothing. Before it this rank's
  // sum.
  std::vector<float> values(std::size_t layer) const;

  Saved saved() const { return {steps_, left_out_, holds_means_, values_}; }
  // Throws InvalidArgument where the values are not as many as those of these layers on this rank.
  void check_fits(const Saved& saved) const;
  // Goes on with what fits.
  void restore(Saved saved);

  // Neither sums nor means: a rank that owns no layer has means without elements.
  bool empty() const { return values_.empty() && !holds_means_; }
  std::int64_t steps() const { return steps_; }
  std::int64_t left_out() const { return left_out_; }
  // Bytes held.
  std::size_t bytes() const { return values_.capacity() * sizeof(values_[0]); }

 private:
  struct Place {
    int owner = 0;
    std::size_t offset = 0;
    std::size_t numel = 0;
  };
  std::size_t own_elements() const;

  const std::vector<LayerInfo> layers_;
  const int rank_, world_;
  std::vector<Place> places_;
  std::vector<std::size_t> region_begin_;  // of each owner's layers; one more for the end
  std::unordered_map<std::string, std::size_t> index_;
  // In bfloat16: the sums of all layers, while gradients are added up; the means of the own ones
  // after exchange().
  std::vector<std::uint16_t> values_;
  bool holds_means_ = false;
  std::int64_t steps_ = 0;
  std::int64_t left_out_ = 0;
};

}  // namespace thinwire
