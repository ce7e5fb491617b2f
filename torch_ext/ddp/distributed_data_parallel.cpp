#include "thinwire/torch_ext/ddp/distributed_data_parallel.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <torch/csrc/distributed/c10d/logger.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include <algorithm>
#include <unordered_map>

#include "thinwire/comm/failure/agreement.h"
#include "thinwire/comm/failure/failure.h"
#include "thinwire/comm/failure/watched_group.h"
#include "thinwire/common/crc32c.h"
#include "thinwire/common/error.h"
#include "thinwire/torch_ext/ddp/comm_hook.h"

namespace thinwire::detail {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;
// PyTorch's: a small first bucket lets the exchange begin early in the backward pass.
constexpr std::int64_t kFirstBucketBytes = std::int64_t{1} << 20;
// Broadcasts are coalesced up to this size.
constexpr std::size_t kBroadcastBytes = std::size_t{250} << 20;

std::string describe(const torch::nn::Module& module) {
  std::string text;
  const auto add = [&](std::string_view kind, const auto& items) {
    for (const auto& item : items) {
      text +=
          concat(kind, " ", item.key(), " ", item.value().sizes(), " ", item.value().scalar_type(),
                 item.value().requires_grad() ? "" : " frozen", "\n");
    }
  };
  add("parameter", module.named_parameters());
  add("buffer", module.named_buffers());
  return text;
}

std::uint32_t checksum(const torch::nn::Module& module) {
  std::uint32_t crc = 0;
  for (const auto& parameter : module.parameters()) {
    const at::Tensor values = parameter.detach().cpu().contiguous();
    crc = crc32c(std::as_bytes(
                     std::span(static_cast<const char*>(values.const_data_ptr()), values.nbytes())),
                 crc);
  }
  return crc;
}

}  // namespace

struct DataParallelEngine::State {
  std::shared_ptr<torch::nn::Module> module;
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  // The same group, for the collectives that c10d makes and waits for itself.
  c10::intrusive_ptr<c10d::ProcessGroup> watched;
  DistributedDataParallelOptions options;
  std::vector<at::Tensor> buffers;
  std::vector<at::Tensor> parameters;  // those with requires_grad
  std::shared_ptr<GradientExchange> exchange;
  std::shared_ptr<c10d::Reducer> reducer;
  // The Reducer reports to it, also when a program asks for nothing.
  std::shared_ptr<c10d::Logger> logger;
  std::uint64_t comparisons = 0;

  // Runs a collective that c10d makes for us on the program's group, and names the rank that is
  // gone where it fails.
  template <typename Action>
  void guarded(const char* operation, const Action& action) {
    try {
      action();
    } catch (const Error&) {
      throw;
    } catch (...) {
      comm::raise_collective_failure(*group, operation, 0, std::current_exception());
    }
  }

  void broadcast(const std::vector<at::Tensor>& tensors) {
    if (tensors.empty()) return;
    guarded("broadcast of the model",
            [&] { c10d::broadcast_coalesced(watched, tensors, kBroadcastBytes, /*rank=*/0); });
  }
};

DataParallelEngine::DataParallelEngine(std::shared_ptr<torch::nn::Module> module,
                                       c10::intrusive_ptr<c10d::ProcessGroup> group,
                                       DistributedDataParallelOptions options)
    : state_(std::make_unique<State>()) {
  check(module != nullptr, "DistributedDataParallel needs a module, got a null pointer");
  check(group != nullptr, "DistributedDataParallel needs a process group, got a null pointer");
  check(options.bucket_cap_mb > 0, "bucket_cap_mb must be positive, got ", options.bucket_cap_mb);
  State& s = *state_;
  s.module = std::move(module);
  s.group = std::move(group);
  s.watched = comm::watched(s.group);
  s.options = std::move(options);

  std::vector<LayerInfo> layers;
  std::unordered_map<const c10::TensorImpl*, std::string> names;
  std::unordered_map<std::size_t, std::string> names_by_index;
  std::vector<at::Tensor> everything;
  for (const auto& item : s.module->named_parameters()) {
    const at::Tensor& parameter = item.value();
    check(parameter.is_cpu(), "parameter '", item.key(), "' is on ", parameter.device(),
          "; gradients are compressed on the CPU in this version");
    everything.push_back(parameter.detach());
    if (!parameter.requires_grad()) continue;
    const auto [entry, added] = names.emplace(parameter.unsafeGetTensorImpl(), item.key());
    check(added, "parameter '", item.key(), "' is also registered as '", entry->second,
          "'; a parameter may have one name");
    names_by_index.emplace(s.parameters.size(), item.key());
    layers.push_back(
        {item.key(), parameter.sizes().vec(), static_cast<std::size_t>(parameter.element_size())});
    s.parameters.push_back(parameter);
  }
  check(!s.parameters.empty(), "the module has no parameter that requires a gradient");
  for (const at::Tensor& buffer : s.module->buffers()) s.buffers.push_back(buffer.detach());

  // Building the exchange duplicates the group, which gives the comparison below a store of its
  // own.
  s.exchange = std::make_shared<GradientExchange>(s.group, describe(*s.module), layers,
                                                  s.options.compression, s.options.timeline);
  s.broadcast(everything);
  s.broadcast(s.buffers);

  const auto bucket_bytes = static_cast<std::size_t>(s.options.bucket_cap_mb * kMiB);
  auto buckets = std::get<0>(c10d::compute_bucket_assignment_by_size(
      s.parameters, {static_cast<std::size_t>(kFirstBucketBytes), bucket_bytes}));
  // The assignment is in order of the parameters; gradients become ready in about the reverse.
  std::reverse(buckets.begin(), buckets.end());
  s.reducer = std::make_shared<c10d::Reducer>(
      s.parameters, std::move(buckets), s.watched,
      /*expect_sparse_gradients=*/std::vector<bool>(s.parameters.size(), false),
      static_cast<std::int64_t>(bucket_bytes), s.options.find_unused_parameters,
      s.options.gradient_as_bucket_view, std::move(names_by_index), kFirstBucketBytes,
      /*skip_all_reduce_unused_params=*/false, /*use_python_reducer=*/false,
      /*bucket_bytes_cap_list=*/std::vector<std::int64_t>{});
  s.logger = std::make_shared<c10d::Logger>(s.reducer);
  s.logger->set_construction_data_and_log(s.module->name(), /*device_ids=*/{}, /*output_device=*/-1,
                                          s.options.broadcast_buffers, /*has_sync_bn=*/false,
                                          s.options.static_graph);
  s.reducer->set_logger(s.logger);
  s.reducer->register_comm_hook(std::make_unique<CompressionHook>(
      s.exchange, std::move(names), s.options.find_unused_parameters || s.options.static_graph));
  if (s.options.static_graph) s.reducer->set_static_graph();
}

DataParallelEngine::~DataParallelEngine() = default;

void DataParallelEngine::before_forward() {
  State& s = *state_;
  if (!at::GradMode::is_enabled()) return;
  if (sync_) {
    s.guarded("agreement on the buckets", [&] { s.reducer->rebuild_buckets(); });
    s.reducer->prepare_for_forward();
  }
  if (s.options.broadcast_buffers && s.module->is_training() && s.group->getSize() > 1) {
    s.broadcast(s.buffers);
  }
}

void DataParallelEngine::after_forward(const std::vector<at::Tensor>& outputs) {
  if (!at::GradMode::is_enabled() || !sync_) return;
  state_->reducer->prepare_for_backward(outputs);
}

void DataParallelEngine::zero_grad() {
  for (const at::Tensor& parameter : state_->parameters) {
    if (!parameter.grad().defined()) continue;
    if (state_->options.gradient_as_bucket_view) {
      // The gradient is a view into its bucket; dropping it would cost the Reducer a copy.
      at::NoGradGuard no_grad;
      parameter.mutable_grad().zero_();
    } else {
      parameter.mutable_grad().reset();
    }
  }
}

GradientExchange& DataParallelEngine::exchange() {
  return *state_->exchange;
}
const GradientExchange& DataParallelEngine::exchange() const {
  return *state_->exchange;
}

bool DataParallelEngine::finds_unused_parameters() const {
  return state_->options.find_unused_parameters;
}

std::uint32_t DataParallelEngine::parameters_crc32c() const {
  return checksum(*state_->module);
}

bool DataParallelEngine::replicas_equal() {
  comm::HashAgreement agreement(*state_->group, ++state_->comparisons, parameters_crc32c());
  return agreement.wait();
}

}  // namespace thinwire::detail
