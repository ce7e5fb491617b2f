// Averaging a bucket: several layers of one gradient buffer, each by its own codec.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/average/plan.h"
#include "thinwire/comm/average/reduce/phase_span.h"
#include "thinwire/comm/average/residuals.h"
#include "thinwire/comm/average/selector.h"
#include "thinwire/comm/link/link_model.h"
#include "thinwire/comm/wire/peers.h"
#include "thinwire/comm/wire/refusal.h"
#include "thinwire/common/timeline.h"

namespace thinwire::comm {

// A layer's place in its bucket.
struct BucketLayer {
  std::string name;                 // the parameter's name, unique in the model
  std::int64_t offset = 0;          // first element in the buffer
  std::vector<std::int64_t> shape;  // of the parameter
  // Whether this rank is known to have used the layer in this step, if only with a zero gradient.
  bool in_use = false;
  std::int64_t numel() const;
};

// A one-dimensional, contiguous buffer of gradients and the layers in it.
struct Bucket {
  std::size_t index = 0;  // for the timeline and messages
  at::Tensor buffer;      // float32, float16, bfloat16 or float64, on the CPU or on a GPU
  std::vector<BucketLayer> layers;
  // Whether the gradient of a layer that is zero and not `in_use` on all ranks may be thrown away
  // once it is averaged, because no rank used it: c10d's Reducer does so with
  // find_unused_parameters. Then such a layer is neither corrected, sent nor committed, so that
  // what it is owed stays owed; its mean is zero. Equal on all ranks; costs one small agreement
  // where anything is compressed.
  bool may_hold_unused_layers = false;
};

// Bytes of one rank, added up over calls.
struct Traffic {
  // What this rank handed to the network, headers and agreements included.
  std::uint64_t sent_bytes = 0;
  std::uint64_t dense_bytes = 0;  // what an uncompressed ring all-reduce would have sent
  // Of sent_bytes, what carried means from their owners to all; half of an all_reduce.
  std::uint64_t mean_bytes = 0;
};

// What a ring all-reduce of so many bytes makes each rank send: all but its own part, twice.
std::uint64_t ring_bytes(std::int64_t bytes, int world);

// All but the timeline must be equal on all ranks.
struct AveragerOptions {
  std::uint64_t seed = 0;
  // Compare a checksum of the averaged buckets across ranks every so many steps; 0: never.
  std::int64_t check_replicas_every = 0;
  // Elements of at most so many float32 bytes are what scatter_reduce codes and sends as one piece;
  // fewer where messages would be long or pieces few (chunk_count() in reduce/partition.h). The
  // first piece's coding and the last one's hide behind nothing, so pieces are small; each costs
  // two collectives, so they are not smaller (docs/benchmarks.md has what sizes gave).
  std::size_t chunk_bytes = std::size_t{4} << 20;
  Timeline* timeline = nullptr;  // not owned
  // How compressed layers are averaged. Empty: what the codec was made for, or what is fastest by
  // `link`, which may also be not to compress.
  std::optional<Strategy> strategy = {};
  // The host of every rank, by any numbers; empty: all on one. See hosts_of_ranks().
  std::vector<int> host_of_rank = {};
  const LinkModel* link = nullptr;  // not owned; may be null
  // The group that the averager's is a duplicate of, if any. Where a failure leaves the devices of
  // buckets waiting, its communicators are aborted too, see DeviceWatch.
  c10::intrusive_ptr<c10d::ProcessGroup> original_group = {};
  // Where the gradients of `record_steps` steps from `record_from` on are written, see
  // GradientRecorder; empty: nowhere.
  std::string record_gradients = {};
  std::int64_t record_from = 0;
  std::int64_t record_steps = 20;
};

// Bytes that one averager holds.
struct AveragerMemory {
  std::size_t residuals = 0;         // of error feedback: 4 a parameter
  std::size_t second_residuals = 0;  // 4 / W a parameter, for codecs of fixed size with feedback
  std::size_t momentum = 0;          // of momentum correction: 8 a parameter
  std::size_t warm_starts = 0;       // of low rank
  std::size_t bases = 0;             // of spectral
  // Messages and scratch of the buckets on their way, and of those in GPU memory.
  std::size_t in_flight = 0;
  std::size_t layouts = 0;

  std::size_t total() const {
    return residuals + second_residuals + momentum + warm_starts + bases + in_flight + layouts;
  }
};

struct BucketInFlight;
struct BucketLayout;
struct LayerGroup;
class DeviceAverager;
class DeviceMemory;
class GradientRecorder;
class Layouts;

// Averages buckets over the ranks of one group. Keeps what error feedback carries over and the
// messages' buffers. Not thread-safe: one communication thread owns it, and the group.
class BucketAverager {
 public:
  explicit BucketAverager(c10::intrusive_ptr<c10d::ProcessGroup> group,
                          AveragerOptions options = {});
  ~BucketAverager();

  // Replaces the buffer by its mean over the ranks, bit-identical on every rank. `plan` must be the
  // same on all ranks, `step` counts the training steps. Layers of one bucket may have different
  // codecs; they are grouped by reduction and each group makes one exchange:
  //   codecs of fixed size, by block  -> scatter_reduce (ScatterReduce)
  //   ecsq                            -> scatter_reduce (SlotReduce)
  //   spectral                        -> scatter_reduce (SpectralReduce)
  //   topk, ternary                   -> gather_reduce or sparse (GatherReduce, SparseReduce),
  //                                      whichever sends less
  //   randomk                         -> dense (SummableReduce)
  //   powersgd                        -> low_rank (LowRank)
  //   uncompressed                    -> with one of the others, as they are: these sum in rank
  //                                      order on every backend. One all_reduce in the buffer's own
  //                                      dtype where nothing is compressed, or the buffer is not
  //                                      float32.
  // unless the options say otherwise. Compressed layers are computed in float32, whatever the
  // buffer's dtype. The plan may change from step to step; residuals and warm starts are kept by
  // name, see Residuals.
  //
  // If any rank brings a non-finite value in a compressed layer, the layer's mean has non-finite
  // values on every rank and all that the bucket carries over stays as it was.
  //
  // Collective. Throws, on every rank: InvalidArgument when the ranks bring different layers,
  // dtypes or plans (naming the first difference), FrameError for a damaged message (with one text
  // on all ranks, naming who refused whose), CommError when a rank is gone, or fails alone (with
  // its reason). After an exception the group must not be used any more.
  //
  // Buckets in GPU memory (all of one averager, or none): the codecs that docs/gpu.md lists, each
  // by its one strategy, with the bits of the CPU. begin() queues all of the work on the current
  // stream, which has to be the same in all calls and on which the bucket must be ready; the mean
  // is there for what is queued after it. Over NCCL nothing waits for the device, but where a
  // layout has come anew, and with check_replicas_every and record_gradients. A frame that some
  // rank refused becomes an exception two steps later, on all ranks alike, and changes no residual.
  // Where a rank dies or fails, a thread of the averager's notices and aborts the group's
  // communicators, for which the device waits: the next begin(), state() or check_device() throws,
  // and what the device has computed with the mean is worth nothing. Over other backends begin()
  // waits for the network.
  //
  // The ranks compare what they bring when a bucket comes in a way, or after another, in which it
  // has not come before; from then on a rank that does something else makes other collectives than
  // the others, or frames that these refuse.
  void average(Bucket& bucket, const Plan& plan, std::int64_t step);

  // The same in parts, so that one bucket's messages travel while another is encoded or decoded:
  //
  //   begin(1) advance(1)  begin(2) finish(1) advance(2)  begin(3) finish(2) …  agree()
  //
  // begin() encodes and posts the first messages, advance() the others, finish() waits for the last
  // and writes the mean. begin(), advance() and agree() are collective, and all ranks come to them
  // in the same order, a bucket's advance() before the next begin(); finish() posts nothing, so
  // that each rank does it when it likes, in any order. A bucket takes memory of its own size, at
  // most, from begin() to finish().
  //
  // agree() at the end of a step is where a frame that some rank refused, or replicas that differ,
  // become an exception on every rank: no mean may be used before. It is one small all_gather for
  // all buckets since the last one, and nothing where these were uncompressed.
  BucketInFlight& begin(Bucket bucket, const Plan& plan, std::int64_t step);
  void advance(BucketInFlight& in_flight);
  void finish(BucketInFlight& in_flight);
  void agree();

  // Throws the failure that was noticed while a device waited for other ranks, if there was one.
  // Between buckets, where the program has perhaps waited for the device.
  void check_device() const;

  // Waits until the device has done all that was queued for the steps that have ended, and throws
  // what average() throws of buckets on the CPU: for steps that are so long, and so few, that the
  // wait does not matter. No mean is to be used before.
  void settle();

  // The work on the current stream up to here, on tensors of `device`, waits for other ranks as
  // buckets do: for collectives that the caller makes with the group besides. Their failures are
  // noticed and thrown like those of buckets, and call it `operation`. Nothing on the CPU.
  void watch(at::Device device, const std::string& operation, std::uint64_t sequence);

  const c10::intrusive_ptr<c10d::ProcessGroup>& group() const { return group_; }
  const Traffic& traffic() const { return traffic_; }
  const PhaseSeconds& phases() const { return phases_; }
  ErrorFeedback& feedback() { return residuals_.feedback; }
  const ErrorFeedback& feedback() const { return residuals_.feedback; }

  // What the next average() depends on besides its arguments; restored, it gives the same bits.
  // The same plan and world are needed for that; see merge_states() for another world.
  AveragerState state() const;
  // to_tensors(state()), which may lie in this averager's own memory: valid until it changes, which
  // is when a step begins, a state is loaded, or undo().
  std::map<std::string, at::Tensor> state_in_place() const;
  void load_state(AveragerState state);

  // For a training whose ranks may change (see GradientExchange::begin_step()). From mark() on all
  // that averages change of what is carried over can be taken back by undo(), however far they have
  // come, until the next mark(). From the first mark() on agree() is never left out: whoever
  // returns from it knows that every rank has finished all buckets of the step. Not collective, but
  // all ranks mark or none.
  void mark();
  void undo();
  // The group has failed, or is left: nothing that other ranks still say of earlier steps counts,
  // and state() gives what there is.
  void abandon();

  AveragerMemory memory() const;

 private:
  DeviceAverager& on_device(at::Device device);
  BucketInFlight& free_place();
  bool ranks_agree_on(BucketLayout& layout);
  [[noreturn]] void throw_difference(const Bucket& bucket, const BucketLayout& layout);
  void leave_out_unused(BucketInFlight& in_flight, const Plan& plan);
  void fill_values(BucketInFlight& in_flight);
  void start_groups(BucketInFlight& in_flight);
  void finish_groups(BucketInFlight& in_flight);
  void deliver(BucketInFlight& in_flight, bool finite);
  void commit(BucketInFlight& in_flight);
  void expect_checksum(BucketInFlight& in_flight);
  void note_checksum(const BucketInFlight& in_flight);

  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  const Peers peers_;
  const AveragerOptions options_;
  Residuals residuals_;
  Traffic traffic_;
  PhaseSeconds phases_;
  std::uint64_t sequence_ = 0;
  std::unique_ptr<Layouts> layouts_;
  std::unique_ptr<GradientRecorder> recorder_;  // null where nothing is recorded
  std::optional<at::Device> buckets_on_;        // where all of them are
  std::unique_ptr<DeviceAverager> device_;      // once one has come from a GPU
  bool marks_ = false;
  std::unique_ptr<DeviceMemory> device_before_;  // at the last mark()
  std::uint64_t last_layout_ = 0;                // hash of that of the bucket before
  bool compressed_before_ = false;
  std::vector<std::unique_ptr<BucketInFlight>> places_;
  // Since the last agree():
  bool has_results_ = false;
  std::int64_t last_step_ = 0;
  Refusal refusal_;
  std::vector<ReplicaChecksum> checksums_;  // in the order of begin(), as on all ranks
};

}  // namespace thinwire::comm
