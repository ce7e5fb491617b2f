#include "thinwire/comm/backend/mpi/engine.h"

#include <ATen/core/List_inl.h>
#include <ATen/core/ivalue_inl.h>
#include <ATen/core/jit_type.h>

#include "thinwire/common/error.h"

namespace thinwire::comm::mpi {
namespace {

using c10d::OpType;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;

// Bits of the three parts of a signature.
constexpr int kTypeBits = 5, kDtypeBits = 6, kReductionBits = 4;
constexpr int kSignatures = 1 << (kTypeBits + kDtypeBits + kReductionBits);
// Operations in flight at one time must not share a number.
constexpr int kFewestSequences = 1024;

int encode(const Signature& signature) {
  return static_cast<int>(signature.type) | static_cast<int>(signature.dtype) << kTypeBits |
         signature.reduction << (kTypeBits + kDtypeBits);
}

std::string lower(std::string text) {
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return text;
}

std::string name_of(OpType type) {
  return lower(c10d::opTypeToString(type));
}

std::string describe(int code) {
  const auto type = static_cast<OpType>(code & ((1 << kTypeBits) - 1));
  const auto dtype = static_cast<at::ScalarType>((code >> kTypeBits) & ((1 << kDtypeBits) - 1));
  return concat(name_of(type), " of ", c10::toString(dtype), " (reduction ",
                code >> (kTypeBits + kDtypeBits), ")");
}

int largest_power_of_two(int limit) {
  int power = 1;
  while (power <= limit / 2) power *= 2;
  return power;
}

}  // namespace

TagLayout::TagLayout(int largest_tag)
    : half_(largest_power_of_two(largest_tag)),
      signatures_(half_ / kSignatures >= kFewestSequences ? kSignatures : 1) {}

int TagLayout::tag(std::uint64_t sequence, const Signature& signature) const {
  const auto sequences = static_cast<std::uint64_t>(half_ / signatures_);
  const int code = signatures_ == 1 ? 0 : encode(signature);
  return half_ + static_cast<int>(sequence % sequences) * signatures_ + code;
}

std::string TagLayout::contradiction(int ours, int theirs) const {
  if (signatures_ == 1 || theirs < half_ || theirs == ours) return "";
  const int mine = ours - half_, other = theirs - half_;
  if (mine / signatures_ != other / signatures_) return "";
  return concat("runs ", describe(other % signatures_), " where this rank runs ",
                describe(mine % signatures_));
}

Engine::Engine(int rank, std::shared_ptr<Communicator> communicator, std::size_t max_message_bytes)
    : rank_(rank),
      communicator_(std::move(communicator)),
      max_message_bytes_(max_message_bytes),
      tags_(largest_tag(*communicator_)) {}

std::uint64_t Engine::sequence() const {
  const std::lock_guard lock(mutex_);
  return collectives_;
}

WorkPtr Engine::start(std::unique_ptr<Operation> operation, OpType type,
                      std::chrono::milliseconds timeout, Staging staging) {
  operation->name = concat("mpi ", name_of(type));
  operation->timeout = timeout;
  operation->max_message_bytes = max_message_bytes_;
  auto work = c10::make_intrusive<MpiWork>(rank_, type, operation->sequence, staging.outputs());
  const auto memory = std::make_shared<Staging>(std::move(staging));
  operation->succeeded = [work, memory](int source) {
    memory->finish();
    work->succeed(source);
  };
  // After a failure MPI may still write to the memory; `succeeded` holds it until it does not.
  operation->failed = [work](std::exception_ptr cause) { work->fail(std::move(cause)); };
  if (coalescing_) coalesced_.push_back(work);
  submit(communicator_, std::move(operation));
  return work;
}

WorkPtr Engine::collective(const Signature& signature, std::chrono::milliseconds timeout,
                           Staging staging, std::vector<Stage> stages) {
  auto operation = std::make_unique<Operation>();
  operation->stages = std::move(stages);
  const std::lock_guard lock(mutex_);
  operation->sequence = collectives_++;
  operation->tag = tags_.tag(operation->sequence, signature);
  operation->contradiction = [layout = tags_, ours = operation->tag](int theirs) {
    return layout.contradiction(ours, theirs);
  };
  return start(std::move(operation), signature.type, timeout, std::move(staging));
}

WorkPtr Engine::message(OpType type, Message::Direction direction, int peer, int tag, Block block,
                        std::chrono::milliseconds timeout, Staging staging) {
  check(tag >= 0 && tag < tags_.first_collective(), "a tag must be in [0, ",
        tags_.first_collective(), "), got ", tag);
  auto operation = std::make_unique<Operation>();
  operation->tag = tag;
  operation->stages = {{{{direction, peer, block.data, block.bytes}}, nullptr}};
  const std::lock_guard lock(mutex_);
  operation->sequence = messages_++;
  return start(std::move(operation), type, timeout, std::move(staging));
}

void Engine::start_coalescing() {
  const std::lock_guard lock(mutex_);
  check(!coalescing_, "startCoalescing() was called twice without endCoalescing()");
  coalescing_ = true;
}

WorkPtr Engine::end_coalescing() {
  const std::lock_guard lock(mutex_);
  check(coalescing_, "endCoalescing() was called without startCoalescing()");
  coalescing_ = false;
  c10::List<c10::intrusive_ptr<c10::ivalue::Future>> futures(
      c10::FutureType::create(c10::ListType::create(c10::TensorType::get())));
  for (const WorkPtr& work : coalesced_) futures.push_back(work->getFuture());
  coalesced_.clear();
  return c10d::Work::create_from_future(c10::collectAll(futures));
}

}  // namespace thinwire::comm::mpi
