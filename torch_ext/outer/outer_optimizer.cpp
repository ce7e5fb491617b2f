#include "thinwire/torch_ext/outer/outer_optimizer.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/distributed/c10d/comm.hpp>

#include <algorithm>
#include <chrono>
#include <exception>
#include <map>

#include "thinwire/comm/backend/process_group.h"
#include "thinwire/comm/failure/agreement.h"
#include "thinwire/comm/failure/failure.h"
#include "thinwire/common/crc32c.h"
#include "thinwire/common/error.h"
#include "thinwire/common/log.h"
#include "thinwire/common/stopwatch.h"
#include "thinwire/compressors/kernels/float_arrays.h"
#include "thinwire/torch_ext/compression/agreed_plan.h"

namespace thinwire {
namespace {

std::span<float> floats_of(const at::Tensor& tensor) {
  return {tensor.mutable_data_ptr<float>(), static_cast<std::size_t>(tensor.numel())};
}

at::Tensor tensor_of(std::span<float> values) {
  return at::from_blob(values.data(), {static_cast<std::int64_t>(values.size())}, at::kFloat);
}

void check_numbers(const OuterOptimizerOptions& options) {
  check(options.inner_steps > 0, "inner_steps must be positive, got ", options.inner_steps);
  check(options.learning_rate > 0 && options.learning_rate < 1e6,
        "the outer learning rate must be positive, got ", options.learning_rate);
  check(options.momentum >= 0 && options.momentum < 1, "the outer momentum must be in [0, 1), got ",
        options.momentum);
}

// What the ranks compare beside the plan. A mistake becomes part of it, so that no rank waits for
// one that has thrown.
std::string settings_of(const OuterOptimizerOptions& options, std::exception_ptr& mistake) {
  std::string text =
      concat("inner steps ", options.inner_steps, "\nouter learning rate ", options.learning_rate,
             "\nouter momentum ", options.momentum, options.nesterov ? " (Nesterov)" : "",
             "\ngranularity ", peft::name_of(options.granularity), "\n");
  try {
    check_numbers(options);
    check(!adaptive_compression({}, options.compression), "outer steps take a codec, got '",
          options.compression, "'; parts that need another get it by `overrides`");
  } catch (const InvalidArgument&) {
    mistake = std::current_exception();
  }
  return text;
}

}  // namespace

OuterOptimizer::OuterOptimizer(const torch::nn::Module& module, torch::optim::Optimizer& inner,
                               const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                               OuterOptimizerOptions options)
    : options_(std::move(options)), inner_(inner) {
  check(group != nullptr, "OuterOptimizer needs a process group, got a null pointer");
  // In order of the parts, so that each is one run of the buffer.
  std::map<std::string, std::vector<std::pair<std::string, at::Tensor>>> parts;
  std::vector<std::string> order;
  for (const auto& item : module.named_parameters()) {
    const at::Tensor& parameter = item.value();
    if (!parameter.requires_grad()) continue;
    check(parameter.is_cpu() && at::isFloatingType(parameter.scalar_type()), "parameter '",
          item.key(), "' is of type ", parameter.scalar_type(), " on ", parameter.device(),
          "; outer steps take float parameters on the CPU");
    const std::string part = peft::part_name(options_.granularity, item.key());
    if (!parts.contains(part)) order.push_back(part);
    parts[part].emplace_back(item.key(), parameter);
  }
  check(!order.empty(), "the module has no parameter that requires a gradient");
  for (const at::Tensor& buffer : module.buffers()) buffers_.push_back(buffer.detach());

  std::vector<LayerInfo> layers;
  std::int64_t numel = 0;
  for (const std::string& part : order) {
    const std::int64_t begin = numel;
    for (const auto& [name, parameter] : parts[part]) {
      layout_ += concat("parameter ", name, " ", parameter.sizes(), " ", parameter.scalar_type(),
                        " in ", part, "\n");
      parameters_.push_back(parameter);
      numel += parameter.numel();
    }
    auto shape = options_.granularity == peft::Granularity::kTensor
                     ? parts[part].front().second.sizes().vec()
                     : std::vector<std::int64_t>{numel - begin};
    layers.push_back({part, shape});
    bucket_.layers.push_back({part, begin, std::move(shape)});
  }
  bucket_.buffer = at::empty({numel}, at::kFloat);

  CompressionOptions compression(options_.compression);
  compression.seed = options_.seed;
  compression.compress_1d = true;  // a part may be of one dimension; small ones are left out
  compression.min_numel = options_.min_numel;
  compression.overrides = options_.overrides;
  const std::string name = detail::next_name(*group, "outer");
  std::exception_ptr mistake;
  const std::string settings = settings_of(options_, mistake);
  plan_ = detail::agreed_plan(*group, name, "the settings of the outer optimizer", layout_, layers,
                              compression, settings);
  if (mistake) std::rethrow_exception(mistake);
  averager_ = std::make_unique<comm::BucketAverager>(
      comm::duplicate(group, name),
      comm::AveragerOptions{.seed = options_.seed, .timeline = options_.timeline});
  collect_warnings();
  broadcast_from_leader(module);

  at::NoGradGuard no_grad;
  synchronised_.resize(static_cast<std::size_t>(numel));
  momentum_.resize(synchronised_.size());
  std::int64_t at = 0;
  for (const at::Tensor& parameter : parameters_) {
    tensor_of(synchronised_).narrow(0, at, parameter.numel()).copy_(parameter.flatten());
    at += parameter.numel();
  }
}

OuterOptimizer::~OuterOptimizer() = default;

void OuterOptimizer::collect_warnings() {
  for (const auto& [name, setting] : plan_.layers()) {
    if (!setting.uses_feedback()) continue;
    const CodecFacts facts = setting.codec->facts();
    if (!facts.alpha || !facts.density) continue;
    const auto warning =
        peft::repeat_warning(*facts.alpha, peft::gaussian_mean_kept(*facts.density));
    if (warning.empty()) continue;
    warnings_.push_back(
        concat("outer deltas of '", name, "', ", setting.codec->spec(), ": ", warning));
    if (averager_->group()->getRank() == 0) log::warn(warnings_.back());
  }
}

void OuterOptimizer::broadcast_from_leader(const torch::nn::Module& module) {
  constexpr std::size_t kCoalesced = std::size_t{250} << 20;
  std::vector<at::Tensor> tensors = buffers_;
  for (const at::Tensor& parameter : module.parameters()) tensors.push_back(parameter.detach());
  try {
    c10d::broadcast_coalesced(averager_->group(), tensors, kCoalesced, /*rank=*/0);
  } catch (...) {
    comm::raise_collective_failure(*averager_->group(), "broadcast of the model", 0,
                                   std::current_exception());
  }
}

bool OuterOptimizer::step() {
  inner_.step();
  ++summary_.inner_steps;
  if (summary_.inner_steps % options_.inner_steps != 0) return false;
  outer_step();
  return true;
}

void OuterOptimizer::outer_step() {
  at::NoGradGuard no_grad;
  c10d::ProcessGroup& group = *averager_->group();
  const auto arrived = Clock::now();
  const std::int64_t step = summary_.outer_steps;
  // All ranks must be at the same outer step; and the time of the exchange is not that of waiting.
  const auto number = static_cast<std::uint64_t>(step);
  if (!comm::HashAgreement(group, 2 * number, number).wait())
    throw InternalError(concat("the ranks are not at the same outer step; this one is at ", step));
  const auto begin = Clock::now();
  summary_.wait_seconds += std::chrono::duration<double>(begin - arrived).count();

  std::int64_t at = 0;
  for (const at::Tensor& parameter : parameters_) {
    const at::Tensor start = tensor_of(synchronised_).narrow(0, at, parameter.numel());
    at::Tensor delta = bucket_.buffer.narrow(0, at, parameter.numel());
    // Weights of a narrow type started from the rounded ones.
    at::sub_out(delta, start.to(parameter.scalar_type()).to(at::kFloat),
                parameter.detach().flatten().to(at::kFloat));
    at += parameter.numel();
  }
  averager_->average(bucket_, plan_, step);
  const std::span<const float> mean = floats_of(bucket_.buffer);
  if (kernels::all_finite(mean)) {
    apply(mean);
  } else {
    ++summary_.skipped_steps;
    if (group.getRank() == 0)
      log::warn(concat("outer step ", step,
                       ": a delta is not finite; all ranks go back to the last meeting"));
  }
  write_parameters();
  if (!buffers_.empty() && group.getSize() > 1) {
    try {
      c10d::broadcast_coalesced(averager_->group(), buffers_, std::size_t{250} << 20, 0);
    } catch (...) {
      comm::raise_collective_failure(group, "broadcast of the buffers", number,
                                     std::current_exception());
    }
  }
  summary_.traffic = averager_->traffic();
  summary_.exchange_seconds += seconds_since(begin);
  ++summary_.outer_steps;
  if (options_.check_replicas) {
    const std::uint32_t checksum = synchronised_crc32c();
    if (!comm::HashAgreement(group, 2 * number + 1, checksum).wait())
      throw InternalError(concat("outer step ", step,
                                 ": the weights are not bit-equal on all ranks; this rank's "
                                 "CRC-32C is ",
                                 checksum));
  }
}

// By hand rather than by torch, whose vector code may fuse multiplication and addition on one
// processor and not on another.
void OuterOptimizer::apply(std::span<const float> delta) {
  const auto momentum = static_cast<float>(options_.momentum);
  const auto rate = static_cast<float>(options_.learning_rate);
  for (std::size_t i = 0; i < delta.size(); ++i) {
    const float velocity = momentum * momentum_[i] + delta[i];
    const float direction = options_.nesterov ? delta[i] + momentum * velocity : velocity;
    momentum_[i] = velocity;
    synchronised_[i] -= rate * direction;
  }
}

void OuterOptimizer::write_parameters() {
  std::int64_t at = 0;
  for (const at::Tensor& parameter : parameters_) {
    parameter.detach().copy_(
        tensor_of(synchronised_).narrow(0, at, parameter.numel()).view(parameter.sizes()));
    at += parameter.numel();
  }
}

void OuterOptimizer::set_learning_rate(double learning_rate) {
  OuterOptimizerOptions changed = options_;
  changed.learning_rate = learning_rate;
  check_numbers(changed);
  options_ = std::move(changed);
}

OuterSummary OuterOptimizer::summary() const {
  return summary_;
}

std::uint32_t OuterOptimizer::synchronised_crc32c() const {
  return crc32c(std::as_bytes(std::span(synchronised_)));
}

OuterState OuterOptimizer::state() const {
  return {.layout = layout_,
          .world_size = averager_->group()->getSize(),
          .inner_steps = summary_.inner_steps,
          .outer_steps = summary_.outer_steps,
          .skipped_steps = summary_.skipped_steps,
          .synchronised = synchronised_,
          .momentum = momentum_,
          .averager = averager_->state()};
}

void OuterOptimizer::load_state(const OuterState& state) {
  check(state.layout == layout_, "the state is of another model or granularity:\n", state.layout,
        "this one has\n", layout_);
  const int world = averager_->group()->getSize();
  check(state.world_size == world, "the state is that of one of ", state.world_size,
        " ranks, this job has ", world, "; merge_states() makes it fit");
  check(state.synchronised.size() == synchronised_.size() &&
            state.momentum.size() == momentum_.size(),
        "the state has ", state.synchronised.size(), " weights and ", state.momentum.size(),
        " of momentum, the model ", synchronised_.size());
  std::map<std::string, std::int64_t, std::less<>> numel;
  for (const comm::BucketLayer& layer : bucket_.layers) numel.emplace(layer.name, layer.numel());
  comm::check_fits(state.averager, numel);
  synchronised_ = state.synchronised;
  momentum_ = state.momentum;
  averager_->load_state(state.averager);
  summary_.inner_steps = state.inner_steps;
  summary_.outer_steps = state.outer_steps;
  summary_.skipped_steps = state.skipped_steps;
}

}  // namespace thinwire
