#include "thinwire/comm/backend/mpi/arguments.h"
#include "thinwire/comm/backend/mpi/engine.h"
#include "thinwire/comm/backend/mpi/functions.h"
#include "thinwire/comm/backend/mpi/rank_order_reduce.h"
#include "thinwire/comm/backend/mpi/schedule.h"
#include "thinwire/comm/backend/mpi/start.h"
#include "thinwire/comm/backend/part/part.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

using at::Tensor;
using c10d::OpType;
using c10d::ReduceOp;
using mpi::Block;
using mpi::check_like;
using mpi::common_type;
using mpi::copy_block;
using mpi::equal_parts;
using mpi::only;
using mpi::part_of;
using mpi::place_among;
using mpi::premultiplied;
using mpi::Signature;
using mpi::Stage;
using mpi::Staging;
using std::chrono::milliseconds;
using Tensors = std::vector<Tensor>;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;

// From here on an all-reduce or a broadcast saves bytes rather than stages. Lower, and middling
// tensors pay for a second round trip; higher, and they travel W / 2 times as often as they need.
constexpr std::size_t kLongMessage = 64 << 10;

mpi::Reduce reducer(const ReduceOp& op, at::ScalarType type) {
  return [op, type](const std::vector<const void*>& contributions, std::int64_t numel, void* out) {
    reduce_in_rank_order(op, type, contributions, numel, out);
  };
}

// A communicator over the ranks `ranks` of `parent`, which has `size`.
std::shared_ptr<mpi::Communicator> connect_ranks(const std::shared_ptr<mpi::Communicator>& parent,
                                                 const std::vector<int>& ranks, int size,
                                                 milliseconds timeout) {
  bool all = ranks.size() == static_cast<std::size_t>(size);
  for (std::size_t i = 0; i < ranks.size(); ++i) all = all && ranks[i] == static_cast<int>(i);
  return all ? mpi::duplicate(parent, timeout) : mpi::subset(parent, ranks, timeout);
}

class MpiBackend final : public c10d::Backend {
 public:
  struct Options : Backend::Options {
    Options(milliseconds time, std::size_t bytes)
        : Backend::Options("mpi", time), max_message_bytes(bytes) {}
    std::size_t max_message_bytes;
  };

  MpiBackend(int rank, int size, const std::shared_ptr<mpi::Communicator>& communicator,
             milliseconds timeout, std::size_t max_message_bytes)
      : Backend(rank, size),
        engine_(rank, communicator, max_message_bytes),
        options_(c10::make_intrusive<Options>(timeout, max_message_bytes)) {}

  const mpi::Engine& engine() const { return engine_; }
  const c10::intrusive_ptr<Options>& options() const { return options_; }

  const std::string getBackendName() const override { return "mpi"; }
  c10::intrusive_ptr<Backend::Options> getBackendOptions() override { return options_; }
  void setTimeout(milliseconds timeout) override { options_->timeout = timeout; }
  // Every group counts from 0, so there is nothing to agree on.
  void setSequenceNumberForGroup() override {}
  std::uint64_t getSequenceNumberForGroup() override { return engine_.sequence(); }
  c10d::ErrorType getError() override {
    return mpi::is_broken(*engine_.communicator()) ? c10d::ErrorType::COMM_ERROR
                                                   : c10d::ErrorType::SUCCESS;
  }
  void abort() override { mpi::abort(engine_.communicator(), "the program aborted it"); }
  // The ranks `ranks`, numbered in this order; null on any other. Collective over them. They find
  // each other by MPI, so no store is needed.
  bool supportsSplitting() const override { return true; }
  c10::intrusive_ptr<Backend> split(const c10::intrusive_ptr<c10d::Store>& /*store*/,
                                    const std::vector<int>& ranks,
                                    const c10::intrusive_ptr<Backend::Options>& opts) override {
    const int rank = place_among(ranks, rank_, size_);
    if (rank < 0) return nullptr;
    const milliseconds timeout = opts == nullptr ? options_->timeout : opts->timeout;
    return c10::make_intrusive<MpiBackend>(
        rank, static_cast<int>(ranks.size()),
        connect_ranks(engine_.communicator(), ranks, size_, timeout), timeout,
        options_->max_message_bytes);
  }

  bool supportsCoalescing() const override { return true; }
  void startCoalescing() override { engine_.start_coalescing(); }
  WorkPtr endCoalescing() override { return engine_.end_coalescing(); }

  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& opts) override {
    const Tensor& tensor = only(tensors, "broadcast");
    const int root = check_root(opts.rootRank);
    Staging staging;
    const Block block = rank_ == root ? staging.in_out({tensor}) : staging.output({tensor});
    return engine_.collective({OpType::BROADCAST, tensor.scalar_type()}, patience(opts.timeout),
                              std::move(staging),
                              mpi::broadcast(rank_, size_, root, block, kLongMessage));
  }

  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& opts) override {
    only(tensors, "allreduce");
    return reduce_to(OpType::ALLREDUCE, "allreduce", opts.reduceOp, -1, tensors, opts.timeout);
  }

  WorkPtr allreduce_coalesced(Tensors& tensors,
                              const c10d::AllreduceCoalescedOptions& opts) override {
    return reduce_to(OpType::ALLREDUCE_COALESCED, "allreduce_coalesced", opts.reduceOp, -1, tensors,
                     opts.timeout);
  }

  WorkPtr reduce(Tensors& tensors, const c10d::ReduceOptions& opts) override {
    only(tensors, "reduce");
    return reduce_to(OpType::REDUCE, "reduce", opts.reduceOp, check_root(opts.rootRank), tensors,
                     opts.timeout);
  }

  WorkPtr allgather(std::vector<Tensors>& outputs, Tensors& inputs,
                    const c10d::AllgatherOptions& opts) override {
    const Tensor& input = only(inputs, "allgather");
    check_lists(outputs, 1, "allgather");
    std::vector<Tensors> by_rank;
    for (const Tensor& output : outputs[0]) {
      check_like(output, input, "allgather");
      by_rank.push_back({output});
    }
    return gather_all({OpType::ALLGATHER, input.scalar_type()}, opts.timeout, inputs, by_rank);
  }

  WorkPtr _allgather_base(Tensor& output, Tensor& input,
                          const c10d::AllgatherOptions& opts) override {
    check(output.scalar_type() == input.scalar_type() && output.numel() == input.numel() * size_,
          "allgather needs an output ", size_, " times the input, got ", output.scalar_type(), " ",
          output.sizes(), " for ", input.scalar_type(), " ", input.sizes());
    Staging staging;
    const Block mine = staging.input({input});
    const std::vector<Block> parts = equal_parts(staging.output({output}), places());
    copy_block(parts[self()], mine);
    return all_to_all({OpType::_ALLGATHER_BASE, input.scalar_type()}, opts.timeout,
                      std::move(staging), std::vector<Block>(places(), mine), parts);
  }

  WorkPtr allgather_coalesced(std::vector<Tensors>& outputs, Tensors& inputs,
                              const c10d::AllgatherOptions& opts) override {
    check(outputs.size() == places(), "allgather_coalesced needs one list of outputs per rank (",
          size_, "), got ", outputs.size());
    for (const Tensors& list : outputs) {
      check(list.size() == inputs.size(), "allgather_coalesced got ", inputs.size(),
            " inputs and a list of ", list.size(), " outputs");
      for (std::size_t i = 0; i < list.size(); ++i)
        check_like(list[i], inputs[i], "allgather_coalesced");
    }
    return gather_all({OpType::ALLGATHER_COALESCED}, opts.timeout, inputs, outputs);
  }

  WorkPtr allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::AllgatherOptions& opts) override {
    constexpr const char* kName = "allgather_into_tensor_coalesced";
    check(outputs.size() == inputs.size(), kName, " got ", inputs.size(), " inputs and ",
          outputs.size(), " outputs");
    std::vector<Tensors> by_rank(places());
    for (std::size_t i = 0; i < inputs.size(); ++i)
      for (int rank = 0; rank < size_; ++rank) {
        by_rank[static_cast<std::size_t>(rank)].push_back(part_of(outputs[i], rank, size_, kName));
        check(outputs[i].numel() % size_ == 0, kName, " needs outputs ", size_,
              " times the inputs");
        check_like(by_rank[static_cast<std::size_t>(rank)].back(), inputs[i], kName);
      }
    return gather_all({OpType::ALLGATHER_COALESCED}, opts.timeout, inputs, by_rank);
  }

  WorkPtr gather(std::vector<Tensors>& outputs, Tensors& inputs,
                 const c10d::GatherOptions& opts) override {
    const Tensor& input = only(inputs, "gather");
    const int root = check_root(opts.rootRank);
    Staging staging;
    const Block mine = staging.input(inputs);
    std::vector<mpi::Message> messages;
    if (rank_ != root) {
      check(outputs.empty(), "gather takes outputs on the root alone");
      messages.push_back({mpi::Message::Direction::kSend, root, mine.data, mine.bytes});
    } else {
      check_lists(outputs, 1, "gather");
      for (int rank = 0; rank < size_; ++rank) {
        const Tensor& output = outputs[0][static_cast<std::size_t>(rank)];
        check_like(output, input, "gather");
        const Block block = staging.output({output});
        if (rank == root)
          copy_block(block, mine);
        else
          messages.push_back({mpi::Message::Direction::kReceive, rank, block.data, block.bytes});
      }
    }
    return engine_.collective({OpType::GATHER, input.scalar_type()}, patience(opts.timeout),
                              std::move(staging), {Stage{std::move(messages), nullptr}});
  }

  WorkPtr scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                  const c10d::ScatterOptions& opts) override {
    const Tensor& output = only(outputs, "scatter");
    const int root = check_root(opts.rootRank);
    Staging staging;
    const Block mine = staging.output(outputs);
    std::vector<mpi::Message> messages;
    if (rank_ != root) {
      check(inputs.empty(), "scatter takes inputs on the root alone");
      messages.push_back({mpi::Message::Direction::kReceive, root, mine.data, mine.bytes});
    } else {
      check_lists(inputs, 1, "scatter");
      for (int rank = 0; rank < size_; ++rank) {
        const Tensor& input = inputs[0][static_cast<std::size_t>(rank)];
        check_like(input, output, "scatter");
        const Block block = staging.input({input});
        if (rank == root)
          copy_block(mine, block);
        else
          messages.push_back({mpi::Message::Direction::kSend, rank, block.data, block.bytes});
      }
    }
    return engine_.collective({OpType::SCATTER, output.scalar_type()}, patience(opts.timeout),
                              std::move(staging), {Stage{std::move(messages), nullptr}});
  }

  WorkPtr reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                         const c10d::ReduceScatterOptions& opts) override {
    const Tensor& output = only(outputs, "reduce_scatter");
    check_lists(inputs, 1, "reduce_scatter");
    common_type(inputs[0], "reduce_scatter");
    check_like(output, inputs[0][self()], "reduce_scatter");
    std::vector<Tensors> by_rank;
    for (const Tensor& input : inputs[0]) by_rank.push_back({input});
    return reduce_and_scatter(OpType::REDUCE_SCATTER, opts, outputs, by_rank);
  }

  WorkPtr _reduce_scatter_base(Tensor& output, Tensor& input,
                               const c10d::ReduceScatterOptions& opts) override {
    check(output.scalar_type() == input.scalar_type() && input.numel() == output.numel() * size_,
          "reduce_scatter needs an input ", size_, " times the output, got ", input.scalar_type(),
          " ", input.sizes(), " for ", output.scalar_type(), " ", output.sizes());
    std::vector<Tensors> by_rank;
    const Tensor whole = input.contiguous();
    for (int rank = 0; rank < size_; ++rank)
      by_rank.push_back({part_of(whole, rank, size_, "reduce_scatter")});
    return reduce_and_scatter(OpType::_REDUCE_SCATTER_BASE, opts, {output}, by_rank);
  }

  WorkPtr reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::ReduceScatterOptions& opts) override {
    constexpr const char* kName = "reduce_scatter_tensor_coalesced";
    check(outputs.size() == inputs.size(), kName, " got ", inputs.size(), " inputs and ",
          outputs.size(), " outputs");
    common_type(inputs, kName);
    std::vector<Tensors> by_rank(places());
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const Tensor whole = inputs[i].contiguous();
      for (int rank = 0; rank < size_; ++rank) {
        by_rank[static_cast<std::size_t>(rank)].push_back(part_of(whole, rank, size_, kName));
        check(whole.numel() % size_ == 0, kName, " needs inputs ", size_, " times the outputs");
        check_like(outputs[i], by_rank[static_cast<std::size_t>(rank)].back(), kName);
      }
    }
    // c10d has no type of its own for the coalesced form.
    return reduce_and_scatter(OpType::_REDUCE_SCATTER_BASE, opts, outputs, by_rank);
  }

  WorkPtr alltoall_base(Tensor& output, Tensor& input, std::vector<std::int64_t>& output_splits,
                        std::vector<std::int64_t>& input_splits,
                        const c10d::AllToAllOptions& opts) override {
    check(output.scalar_type() == input.scalar_type(), "all_to_all needs tensors of one type, got ",
          output.scalar_type(), " and ", input.scalar_type());
    Staging staging;
    const std::vector<Block> out =
        mpi::rows(staging.input({input}), input, input_splits, size_, "input");
    const std::vector<Block> in =
        mpi::rows(staging.output({output}), output, output_splits, size_, "output");
    check(out[self()].bytes == in[self()].bytes, "rank ", rank_, " sends itself ",
          out[self()].bytes, " bytes in all_to_all and expects ", in[self()].bytes);
    copy_block(in[self()], out[self()]);
    return all_to_all({OpType::ALLTOALL_BASE, input.scalar_type()}, opts.timeout,
                      std::move(staging), out, in);
  }

  WorkPtr alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions& opts) override {
    check(outputs.size() == places() && inputs.size() == places(), "all_to_all needs ", size_,
          " inputs and outputs, got ", inputs.size(), " and ", outputs.size());
    const at::ScalarType type = common_type(inputs, "all_to_all");
    check(common_type(outputs, "all_to_all") == type,
          "all_to_all needs inputs and outputs of one type");
    check_like(outputs[self()], inputs[self()], "all_to_all");
    Staging staging;
    std::vector<Block> out, in;
    for (std::size_t rank = 0; rank < places(); ++rank) {
      out.push_back(staging.input({inputs[rank]}));
      in.push_back(staging.output({outputs[rank]}));
    }
    copy_block(in[self()], out[self()]);
    return all_to_all({OpType::ALLTOALL, type}, opts.timeout, std::move(staging), out, in);
  }

  WorkPtr send(Tensors& tensors, int destination, int tag) override {
    only(tensors, "send");
    check_peer(destination);
    Staging staging;
    const Block block = staging.input(tensors);
    return engine_.message(OpType::SEND, mpi::Message::Direction::kSend, destination, tag, block,
                           options_->timeout, std::move(staging));
  }

  WorkPtr recv(Tensors& tensors, int source, int tag) override {
    check_peer(source);
    return receive(OpType::RECV, tensors, source, tag);
  }

  WorkPtr recvAnysource(Tensors& tensors, int tag) override {
    return receive(OpType::RECVANYSOURCE, tensors, mpi::kAnyRank, tag);
  }

  WorkPtr barrier(const c10d::BarrierOptions& opts) override {
    return engine_.collective({OpType::BARRIER}, patience(opts.timeout), {},
                              mpi::barrier(rank_, size_));
  }

  // Rank 0 hears from everybody, then lets everybody go; its error names all that did not come,
  // whatever `wait_all_ranks` says.
  void monitoredBarrier(const c10d::BarrierOptions& opts, bool /*wait_all_ranks*/) override {
    // Told apart from barrier() by its reduction number.
    engine_
        .collective({OpType::BARRIER, at::kByte, 1}, patience(opts.timeout), {},
                    mpi::monitored_barrier(rank_, size_))
        ->wait();
  }

 private:
  std::size_t places() const { return static_cast<std::size_t>(size_); }
  std::size_t self() const { return static_cast<std::size_t>(rank_); }
  // Options of c10d hold a negative timeout where the program gave none.
  milliseconds patience(milliseconds timeout) const {
    return timeout.count() > 0 ? timeout : options_->timeout;
  }
  void check_peer(int rank) const {
    check(rank >= 0 && rank < size_, "a rank must be in [0, ", size_, "), got ", rank);
  }
  int check_root(std::int64_t root) const {
    check(root >= 0 && root < size_, "the root must be in [0, ", size_, "), got ", root);
    return static_cast<int>(root);
  }
  void check_lists(const std::vector<Tensors>& lists, std::size_t count, const char* name) const {
    check(lists.size() == count && lists[0].size() == places(), name, " needs one list of ", size_,
          " tensors, got ", lists.size(), " list(s)",
          lists.empty() ? "" : concat(", the first of ", lists[0].size()));
  }

  WorkPtr all_to_all(const Signature& signature, milliseconds timeout, Staging staging,
                     const std::vector<Block>& out, const std::vector<Block>& in) {
    return engine_.collective(signature, patience(timeout), std::move(staging),
                              {mpi::all_to_all(rank_, out, in)});
  }

  WorkPtr receive(OpType type, const Tensors& tensors, int source, int tag) {
    only(tensors, "recv");
    Staging staging;
    const Block block = staging.output(tensors);
    return engine_.message(type, mpi::Message::Direction::kReceive, source, tag, block,
                           options_->timeout, std::move(staging));
  }

  // outputs[r] become the inputs of rank r.
  WorkPtr gather_all(const Signature& signature, milliseconds timeout, const Tensors& inputs,
                     const std::vector<Tensors>& outputs) {
    Staging staging;
    const Block mine = staging.input(inputs);
    std::vector<Block> in;
    for (const Tensors& list : outputs) in.push_back(staging.output(list));
    copy_block(in[self()], mine);
    return all_to_all(signature, timeout, std::move(staging), std::vector<Block>(places(), mine),
                      in);
  }

  // All-reduce where root < 0, else reduce.
  WorkPtr reduce_to(OpType op_type, const char* name, const ReduceOp& op, int root,
                    const Tensors& tensors, milliseconds timeout) {
    const at::ScalarType type = common_type(tensors, name);
    check_reducible(op, type);
    const Tensors contribution = premultiplied(op, tensors);
    Staging staging;
    Block block{};
    if (root >= 0 && root != rank_) {
      block = staging.input(contribution);
    } else {
      block = staging.in_out(tensors);
      if (op.op_ == ReduceOp::PREMUL_SUM) copy_block(block, staging.input(contribution));
    }
    const std::size_t element = c10::elementSize(type);
    const auto numel = static_cast<std::int64_t>(block.bytes / element);
    const Block scratch = staging.scratch(
        scratch_, mpi::allreduce_scratch(rank_, size_, numel, element, kLongMessage));
    return engine_.collective({op_type, type, static_cast<int>(op.op_)}, patience(timeout),
                              std::move(staging),
                              mpi::allreduce(rank_, size_, root, block.data, numel, element,
                                             kLongMessage, scratch.data, reducer(op, type)));
  }

  // Reduces inputs[r] of all ranks into the outputs of rank r.
  WorkPtr reduce_and_scatter(OpType op_type, const c10d::ReduceScatterOptions& opts,
                             const Tensors& outputs, const std::vector<Tensors>& inputs) {
    const at::ScalarType type = common_type(outputs, "reduce_scatter");
    check_reducible(opts.reduceOp, type);
    Staging staging;
    std::vector<Block> in;
    for (const Tensors& list : inputs)
      in.push_back(staging.input(premultiplied(opts.reduceOp, list)));
    const Block out = staging.output(outputs);
    const std::size_t element = c10::elementSize(type);
    const Block scratch = staging.scratch(scratch_, places() * out.bytes);
    return engine_.collective(
        {op_type, type, static_cast<int>(opts.reduceOp.op_)}, patience(opts.timeout),
        std::move(staging),
        mpi::reduce_scatter(rank_, in, out.data, static_cast<std::int64_t>(out.bytes / element),
                            element, scratch.data, reducer(opts.reduceOp, type)));
  }

  mpi::Engine engine_;
  mpi::ScratchPool scratch_;
  c10::intrusive_ptr<Options> options_;
};

c10::intrusive_ptr<c10d::Backend> make_over(int rank, int size,
                                            const std::shared_ptr<mpi::Communicator>& communicator,
                                            milliseconds timeout, std::size_t max_message_bytes) {
  if (max_message_bytes == 0) max_message_bytes = mpi::kPart;
  check(max_message_bytes < std::size_t{1} << 31,
        "MPI moves at most 2^31 - 1 bytes in a message, got ", max_message_bytes);
  return c10::make_intrusive<MpiBackend>(rank, size, communicator, timeout, max_message_bytes);
}

bool usable() {
  return mpi::is_launched();
}

void check_place(int rank, int size) {
  check(mpi::is_launched() || size == 1,
        "the backend mpi needs a program started by MPI: mpirun -n ", size,
        " <program>, or srun --mpi=pmix; or use gloo");
  const mpi::World world = mpi::world();
  check(size < world.size || (size == world.size && rank == world.rank),
        "MPI says that this is rank ", world.rank, " of ", world.size,
        ", the program that it is rank ", rank, " of ", size,
        "; start all ranks with one mpirun, or use gloo");
}

int world_rank() {
  return mpi::world().rank;
}

c10::intrusive_ptr<c10d::Backend> make_whole(int rank, int size, milliseconds timeout,
                                             std::size_t max_message_bytes) {
  check_place(rank, size);
  const mpi::World world = mpi::world();
  check(size == world.size, "MPI has ", world.size, " processes, a backend of ", size,
        " needs to know which of them");
  return make_over(rank, size, mpi::duplicate(nullptr, timeout), timeout, max_message_bytes);
}

c10::intrusive_ptr<c10d::Backend> make_of_ranks(const std::vector<int>& ranks, milliseconds timeout,
                                                std::size_t max_message_bytes) {
  const mpi::World world = mpi::world();
  const auto size = static_cast<int>(ranks.size());
  const int rank = place_among(ranks, world.rank, world.size);
  check(rank >= 0, "this process, rank ", world.rank, " of MPI, is not one of the ", size,
        " of the group that it makes");
  return make_over(rank, size, connect_ranks(nullptr, ranks, world.size, timeout), timeout,
                   max_message_bytes);
}

c10::intrusive_ptr<c10d::Backend> reconnect(const c10::intrusive_ptr<c10d::Backend>& backend,
                                            const std::vector<int>& ranks) {
  auto* original = dynamic_cast<MpiBackend*>(backend.get());
  check(original != nullptr, "backend '", backend->getBackendName(), "' is not thinwire's MPI");
  const auto made = original->split(nullptr, ranks, original->options());
  THINWIRE_ASSERT(made != nullptr);
  return made;
}

}  // namespace
}  // namespace thinwire::comm

const thinwire::comm::MpiFunctions* thinwire_mpi_functions() {
  using namespace thinwire::comm;
  static constexpr MpiFunctions functions = {kPartVersion, usable,        check_place, world_rank,
                                             make_whole,   make_of_ranks, reconnect};
  return &functions;
}
