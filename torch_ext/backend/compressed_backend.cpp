#include "thinwire/torch_ext/backend/compressed_backend.h"

#include <ATen/core/grad_mode.h>

#include <mutex>
#include <set>
#include <utility>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "thinwire/comm/backend/process_group.h"
#include "thinwire/comm/failure/agreement.h"
#include "thinwire/comm/failure/failure.h"
#include "thinwire/comm/join/next_name.h"
#include "thinwire/comm/wire/tensor_bridge.h"
#include "thinwire/common/error.h"
#include "thinwire/torch_ext/backend/backend_engine.h"
#include "thinwire/torch_ext/backend/backend_work.h"

namespace thinwire {
namespace {

using c10d::OpType;
using c10d::ProcessGroup;
using detail::CodedWork;
using detail::ExactWork;

constexpr const char* kOperations[] = {"all_reduce", "reduce_scatter", "all_gather", "all_to_all"};

// A text that lives for ever, as the profiler needs it.
const char* lasting(std::string text) {
  static std::mutex mutex;
  static std::set<std::string> texts;
  const std::lock_guard lock(mutex);
  return texts.insert(std::move(text)).first->c_str();
}

c10::intrusive_ptr<ProcessGroup> group_over(const c10::intrusive_ptr<c10d::Backend>& backend,
                                            const c10::intrusive_ptr<c10d::Store>& store) {
  auto group = c10::make_intrusive<ProcessGroup>(store, backend->getRank(), backend->getSize());
  const auto type = ProcessGroup::strToBackendType(backend->getBackendName());
  group->setDefaultBackend(type);
  group->setBackend(c10::DeviceType::CPU, type, backend);
  return group;
}

// The codecs of a whole matrix have no use for a part of a tensor.
bool is_low_rank(const comm::LayerSetting& setting) {
  return setting.codec->facts().form == CodecFacts::Form::kLowRank;
}

}  // namespace

CompressedBackend::CompressedBackend(BackendPtr inner, StorePtr store, BackendOptions options)
    : ForwardingBackend(std::move(inner)),
      options_(std::move(options)),
      settings_([&] {
        // Through the group, so that a spec that one rank misspelt is refused on all of them.
        BackendSettings made;
        comm::agree_on_result(*group_over(inner_, store), "backend",
                              "the compression of the process group", [&] {
                                made = make_settings(options_);
                                return made.text();
                              });
        return made;
      }()),
      own_name_(inner_->getBackendName() == "gloo" ? "thinwire"
                                                   : "thinwire_" + inner_->getBackendName()) {
  if (settings_.compresses() && getSize() > 1) {
    engine_ = std::make_unique<detail::BackendEngine>(group_over(inner_, store), settings_);
  }
  init();
}

CompressedBackend::~CompressedBackend() = default;

const std::string CompressedBackend::getBackendName() const {
  return own_name_;
}

bool CompressedBackend::is_codable(const at::Tensor& tensor) {
  return tensor.layout() == at::kStrided && tensor.is_cpu() && !tensor.is_complex() &&
         comm::has_codec_dtype(tensor);
}

bool CompressedBackend::codes(Kind kind, const comm::LayerSetting& setting,
                              const at::Tensor& tensor, bool sum) {
  if (!engine_ || !setting.codec || !sum || !is_codable(tensor)) return false;
  if (kind != Kind::kAllReduce && is_low_rank(setting)) return false;
  // The parts of an all_to_all have sizes of their own, which only their two ranks know.
  if (kind != Kind::kAllToAll && tensor.numel() < settings_.min_numel) return false;
  if (kind == Kind::kAllToAll || !FeedbackKey::current().empty() || works_without_key(setting))
    return true;
  ++counters(kind).without_key;
  return false;
}

c10::intrusive_ptr<c10d::Work> CompressedBackend::exact(Kind kind,
                                                        const comm::LayerSetting& setting,
                                                        const at::Tensor& tensor, WorkPtr work) {
  ++counters(kind).exact;
  // Only where another rank may have made a coded call of it.
  if (!engine_ || !setting.codec || !is_codable(tensor)) return work;
  const std::uint64_t number = calls_++;
  // Gloo's reduce_scatter can only be waited for in its own way.
  if (kind == Kind::kReduceScatter && inner_->getBackendName() == "gloo") return work;
  return c10::make_intrusive<ExactWork>(
      std::move(work), detail::WatchedCall{engine_->board(), number,
                                           concat(kOperations[static_cast<std::size_t>(kind)],
                                                  " of ", toString(tensor.scalar_type()), " ",
                                                  tensor.sizes(), ", uncompressed")});
}

c10::intrusive_ptr<c10d::Work> CompressedBackend::coded(Kind kind, OpType type,
                                                        const Tensors& inputs, Tensors outputs,
                                                        std::string text, std::uint64_t dense_bytes,
                                                        WorkPtr rest,
                                                        std::function<std::uint64_t()> job) {
  ++counters(kind).coded;
  ++coded_calls_;
  const char* operation = kOperations[static_cast<std::size_t>(kind)];
  if (coalescing_) coalesced_.insert(coalesced_.end(), outputs.begin(), outputs.end());
  const auto work = c10::make_intrusive<CodedWork>(
      getRank(), type, lasting(concat(inner_->getBackendName(), ":", operation)), coded_calls_,
      inputs, std::move(outputs), detail::WatchedCall{engine_->board(), calls_++, std::move(text)});
  engine_->submit(
      [this, kind, dense_bytes, rest = std::move(rest), job = std::move(job), operation,
       number = coded_calls_] {
        const at::NoGradGuard no_grad;
        counters(kind).sent += job();
        counters(kind).dense += dense_bytes;
        if (rest) comm::wait(*engine_->duplicate(), rest, operation, number);
      },
      [work](const std::exception_ptr& failure) { work->complete(failure); });
  return work;
}

void CompressedBackend::startCoalescing() {
  inner_->startCoalescing();
  coalescing_ = true;
}

c10::intrusive_ptr<c10d::Work> CompressedBackend::endCoalescing() {
  coalescing_ = false;
  WorkPtr rest = inner_->endCoalescing();
  if (coalesced_.empty()) return rest;
  Tensors results;
  results.swap(coalesced_);
  const auto work = c10::make_intrusive<CodedWork>(
      getRank(), OpType::COALESCED, nullptr, coded_calls_, results, results,
      detail::WatchedCall{engine_->board(), calls_++, "coalesced calls"});
  engine_->submit(
      [this, rest, number = coded_calls_] {
        if (rest) comm::wait(*engine_->duplicate(), rest, "coalesced calls", number);
      },
      [work](const std::exception_ptr& failure) { work->complete(failure); });
  return work;
}

// The coded calls made before a barrier have ended on this rank when it begins, hence on every rank
// when it ends: what the wrapped backend gives for its own.
c10::intrusive_ptr<c10d::Work> CompressedBackend::barrier(const c10d::BarrierOptions& options) {
  if (engine_) engine_->drain();
  return inner_->barrier(options);
}

void CompressedBackend::monitoredBarrier(const c10d::BarrierOptions& options, bool wait_all_ranks) {
  if (engine_) engine_->drain();
  inner_->monitoredBarrier(options, wait_all_ranks);
}

void CompressedBackend::setTimeout(std::chrono::milliseconds timeout) {
  inner_->setTimeout(timeout);
  if (engine_) engine_->duplicate()->getDefaultBackend()->setTimeout(timeout);
}

std::uint64_t CompressedBackend::getSequenceNumberForGroup() {
  return inner_->getSequenceNumberForGroup() + coded_calls_;
}

void CompressedBackend::waitForPendingWorks() {
  if (engine_) engine_->drain();
  inner_->waitForPendingWorks();
}

c10::intrusive_ptr<c10d::Backend> CompressedBackend::split(
    const StorePtr& store, const std::vector<int>& ranks,
    const c10::intrusive_ptr<Options>& options) {
  BackendPtr part = inner_->split(store, ranks, options);
  if (!part) return part;  // this rank is not of it
  return c10::make_intrusive<CompressedBackend>(
      std::move(part), c10::make_intrusive<c10d::PrefixStore>("thinwire", store), options_);
}

c10::intrusive_ptr<c10d::Backend> CompressedBackend::merge(
    const StorePtr& store, const c10::intrusive_ptr<Options>& options, const int& rank,
    const int& size) {
  return c10::make_intrusive<CompressedBackend>(
      inner_->merge(store, options, rank, size),
      c10::make_intrusive<c10d::PrefixStore>("thinwire", store), options_);
}

c10::intrusive_ptr<c10d::Backend> CompressedBackend::shrink(
    const std::vector<std::int64_t>& excluded, int flags,
    const c10::intrusive_ptr<Options>& options) {
  // c10d gives no store for what is left, so there is nothing to build a second set of connections
  // on.
  check(!engine_,
        "a process group that compresses cannot be shrunk; make a new group of the "
        "remaining ranks");
  return inner_->shrink(excluded, flags, options);
}

void CompressedBackend::abort() {
  inner_->abort();
  if (engine_) engine_->duplicate()->getDefaultBackend()->abort();
}

void CompressedBackend::shutdown() {
  if (engine_) engine_->duplicate()->getDefaultBackend()->shutdown();
  inner_->shutdown();
}

BackendStatistics CompressedBackend::statistics() const {
  BackendStatistics all;
  for (std::size_t kind = 0; kind < counters_.size(); ++kind) {
    const Counters& c = counters_[kind];
    all.operations[kOperations[kind]] = {.coded = c.coded,
                                         .exact = c.exact,
                                         .without_key = c.without_key,
                                         .dense_bytes = c.dense,
                                         .sent_bytes = c.sent};
  }
  return all;
}

std::map<std::string, at::Tensor> CompressedBackend::state() const {
  std::map<std::string, at::Tensor> state;
  if (engine_) engine_->on_thread([&] { state = engine_->state(); });
  return state;
}

void CompressedBackend::load_state(const std::map<std::string, at::Tensor>& state) {
  check(engine_ || state.empty(), "this process group compresses nothing, so it has no state");
  if (!engine_) return;
  engine_->load_state(state);
}

c10::intrusive_ptr<ProcessGroup> compressed_group(const c10::intrusive_ptr<ProcessGroup>& group,
                                                  const BackendOptions& options) {
  check(group != nullptr && group->getStore() != nullptr,
        "a process group that compresses is made of one with a store: launch::init() or "
        "comm::make_process_group() makes it");
  auto result =
      c10::make_intrusive<ProcessGroup>(group->getStore(), group->getRank(), group->getSize());
  result->setDefaultBackend(ProcessGroup::BackendType::CUSTOM);
  result->setBackend(
      c10::DeviceType::CPU, ProcessGroup::BackendType::CUSTOM,
      c10::make_intrusive<CompressedBackend>(
          group->getBackend(c10::DeviceType::CPU),
          c10::make_intrusive<c10d::PrefixStore>(
              "thinwire/" + comm::next_name(*group, "compressed"), group->getStore()),
          options));
  for (const c10::Device& device : group->getDeviceTypes()) {
    if (device.is_cpu()) continue;
    const auto backend = group->getBackend(device.type());
    const auto type = ProcessGroup::strToBackendType(backend->getBackendName());
    // Those of one type would be one to c10d.
    const bool taken = type == ProcessGroup::BackendType::CUSTOM;
    result->setBackend(device.type(), taken ? ProcessGroup::BackendType::UCC : type, backend);
  }
  return result;
}

}  // namespace thinwire
