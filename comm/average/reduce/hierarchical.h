// Averaging uncompressed inside a host and compressed between hosts.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "thinwire/comm/average/reduce/scatter_reduce.h"

namespace thinwire::comm {

// Terms: H hosts with L ranks each; a rank's *lane* are the ranks with its number on their hosts.
//
//   1. the ranks of a host cut the layers into L slices; rank l gets everyone's slice l as float32
//      and adds them in rank order;
//   2. the ranks of a lane average their slice over the hosts, with the layers' codecs: by
//      ScatterReduce where these have fixed size, else by GatherReduce;
//   3. each rank sends the mean of its slice to the others of its host, as float32.
//
// So every rank of a host works between the hosts, each on its share, and nothing is encoded twice
// inside. What the lane's encoding loses is the residual of the rank that encoded it, for its
// slice; the sum over all ranks is that of the hosts. Codecs see slices: topk keeps its density of
// each. Bytes between hosts, by rank: 1 / L of what the reductions of step 2 state for H ranks.
class Hierarchical final : public Reduction {
 public:
  // `host_of_rank` numbers the host of every rank of the group; equally many ranks on each. The
  // codecs are any but powersgd, which needs whole matrices.
  Hierarchical(std::span<const PartitionLayer> layers, c10d::ProcessGroup& group,
               std::span<const int> host_of_rank, std::size_t chunk_bytes);

  void advance() override { inside_->advance(); }
  Averaged receive() override;
  void deliver(bool keep) override { inside_->deliver(keep); }
  void commit() override;
  std::vector<Piece> owned() const override;

  // The ranks of this one's host, and of its lane.
  const Peers& host() const { return host_; }
  const Peers& lane() const { return lane_; }
  // How the layers are cut inside the host; and this rank's slice of a chunk between the hosts, as
  // layers of which each is a piece of the slice. Of codecs of fixed size alone.
  const Partition& inside() const { return inside_->partition(); }
  const Partition& between(int chunk) const;

 private:
  // What a lane does with one chunk.
  struct LaneReductions {
    std::vector<std::size_t> scattered, gathered;  // pieces of the slice
    std::unique_ptr<Reduction> scatter, gather;
    std::vector<LayerValues> scattered_parts, gathered_parts;  // of the exchange in progress
  };
  void begin() override;
  void average_between_hosts(const ReductionContext& context, int chunk, std::span<float> sums);
  std::vector<LayerValues> parts_of(int chunk, const std::vector<std::size_t>& pieces,
                                    std::span<float> sums) const;

  const Peers host_, lane_;
  std::unique_ptr<ScatterReduce> inside_;
  std::vector<LaneReductions> lane_reductions_;  // by chunk
  // Of the exchange in progress:
  std::vector<LayerValues> whole_;  // the layers as they travel inside the host
  Averaged between_;
};

// Throws InvalidArgument unless `host_of_rank` has a number for each of `world` ranks and equally
// many ranks on each host.
void check_hosts(std::span<const int> host_of_rank, int world);

}  // namespace thinwire::comm
