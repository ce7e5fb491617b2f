#include "thinwire/torch_ext/outer/outer_optimizer.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <exception>
#include <map>
#include <utility>

#include "thinwire/comm/average/device_plan.h"
#include "thinwire/comm/backend/process_group.h"
#include "thinwire/comm/failure/agreement.h"
#include "thinwire/comm/failure/guard.h"
#include "thinwire/comm/failure/watched_group.h"
#include "thinwire/comm/join/next_name.h"
#include "thinwire/common/crc32c.h"
#include "thinwire/common/error.h"
#include "thinwire/common/log.h"
#include "thinwire/common/spec.h"
#include "thinwire/common/stopwatch.h"
#include "thinwire/compressors/cuda/cuda_module.h"
#include "thinwire/compressors/kernels/float_arrays.h"
#include "thinwire/torch_ext/compression/agreed_plan.h"

namespace thinwire {
namespace {

std::span<float> floats_of(const at::Tensor& tensor) {
  return {tensor.mutable_data_ptr<float>(), static_cast<std::size_t>(tensor.numel())};
}

// Waits for the tensor's device.
bool holds_finite(const at::Tensor& values) {
  if (values.is_cpu()) return kernels::all_finite(floats_of(values));
  return at::isfinite(values).all().item<bool>();
}

void check_numbers(const OuterOptimizerOptions& options, const OuterOptimizer::Outer& outer) {
  check(options.inner_steps > 0, "inner_steps must be positive, got ", options.inner_steps);
  check(outer.learning_rate > 0 && outer.learning_rate < 1e6,
        "the outer learning rate must be positive, got ", outer.learning_rate);
  check(options.max_skipped_in_a_row >= 0, "max_skipped_in_a_row must not be negative, got ",
        options.max_skipped_in_a_row);
  check(outer.momentum >= 0 && outer.momentum < 1, "the outer momentum must be in [0, 1), got ",
        outer.momentum);
}

// Whether a spec leaves something of a delta to the next one. Not of one that is wrong: that is
// said where all ranks hear of it.
bool keeps_residuals(const std::string& spec) {
  try {
    return comm::parse_layer_setting(spec).uses_feedback();
  } catch (const InvalidArgument&) {
    return false;
  }
}

// Deltas of far back point elsewhere than those of now.
std::string with_decay(const std::string& text) {
  if (!keeps_residuals(text)) return text;
  Spec spec = Spec::parse(text);
  constexpr const char* kKey = "residual_decay";
  if (std::ranges::any_of(spec.arguments, [&](const auto& a) { return a.key == kKey; })) {
    return text;
  }
  spec.arguments.push_back({.key = kKey, .text = "0.95", .nested = {}, .position = 0});
  return spec.str();
}

OuterOptimizer::Outer outer_of(const OuterOptimizerOptions& options) {
  OuterOptimizer::Outer outer{0.7, 0.9, true};
  if (keeps_residuals(options.compression)) outer = {1, 0.5, true};
  return {options.learning_rate.value_or(outer.learning_rate),
          options.momentum.value_or(outer.momentum), options.nesterov.value_or(outer.nesterov)};
}

// What the ranks compare beside the plan.
std::string settings_of(const OuterOptimizerOptions& options, const OuterOptimizer::Outer& outer,
                        const CompressionPlan& made) {
  check_numbers(options, outer);
  check(!made.adaptive && !made.automatic, "outer steps take a codec, got '", options.compression,
        "'; parts that need another get it by `overrides`");
  return concat("inner steps ", options.inner_steps, "\nouter learning rate ", outer.learning_rate,
                "\nouter momentum ", outer.momentum, outer.nesterov ? " (Nesterov)" : "",
                "\ngranularity ", peft::name_of(options.granularity), "\nmin_numel ",
                options.min_numel, "\ncheck_replicas ", options.check_replicas,
                "\nmax_skipped_in_a_row ", options.max_skipped_in_a_row, "\n");
}

}  // namespace

OuterOptimizer::OuterOptimizer(const torch::nn::Module& module, torch::optim::Optimizer& inner,
                               const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                               OuterOptimizerOptions options)
    : options_(std::move(options)), outer_(outer_of(options_)), inner_(inner) {
  check(group != nullptr, "OuterOptimizer needs a process group, got a null pointer");
  name_ = comm::next_name(*group, "outer");
  comm::agree_on_result(*group, name_ + "/module", "the module", [&] {
    parameters_ = detail::OuterParameters(module, options_.granularity);
    return parameters_.description();
  });
  agree_on_options(*group);
  check_device(*group);
  averager_ = make_averager(group);
  collect_warnings();
  broadcast(parameters_.at_the_start(), "broadcast of the model");

  comm::guard(*averager_->group(), "the memory of an outer optimizer", 0, [&] {
    bucket_.layers = parameters_.parts();
    bucket_.buffer = at::empty({parameters_.numel()},
                               at::TensorOptions(at::kFloat).device(parameters_.device()));
    synchronised_ = at::empty_like(bucket_.buffer);
    momentum_ = at::zeros_like(bucket_.buffer);
    std::int64_t at = 0;
    for (const at::Tensor& parameter : parameters_.trained()) {
      synchronised_.narrow(0, at, parameter.numel()).copy_(parameter.detach().flatten());
      at += parameter.numel();
    }
  });
}

void OuterOptimizer::agree_on_options(c10d::ProcessGroup& group) {
  CompressionOptions compression(with_decay(options_.compression));
  compression.seed = options_.seed;
  compression.compress_1d = true;  // a part may be of one dimension; small ones are left out
  compression.min_numel = options_.min_numel;
  for (const auto& [pattern, spec] : options_.overrides) {
    compression.overrides.emplace_back(pattern, with_decay(spec));
  }
  compression.record_gradients = options_.record_gradients;
  compression.record_from = options_.record_from;
  compression.record_steps = options_.record_steps;
  plan_ = detail::agreed_plan(
              group, name_, "the settings of the outer optimizer", parameters_.layout(),
              parameters_.layers(), compression,
              [&](const CompressionPlan& made) { return settings_of(options_, outer_, made); })
              .plan;
}

// Before connections are made, for all ranks have this plan and a device of this kind.
void OuterOptimizer::check_device(c10d::ProcessGroup& group) const {
  if (parameters_.device().is_cpu()) return;
  comm::guard(group, "looking at the device of the parameters", 0, [&] {
    CudaModule::get();
    comm::check_device_group(group, parameters_.device());
    comm::check_device_plan(plan_, {});
  });
}

std::unique_ptr<comm::BucketAverager> OuterOptimizer::make_averager(
    const c10::intrusive_ptr<c10d::ProcessGroup>& group) const {
  return comm::guard(*group, "making what averages the deltas", 0, [&] {
    return std::make_unique<comm::BucketAverager>(
        comm::duplicate(group, name_),
        comm::AveragerOptions{.seed = options_.seed,
                              .timeline = options_.timeline,
                              .original_group = group,
                              .record_gradients = options_.record_gradients,
                              .record_from = options_.record_from,
                              .record_steps = options_.record_steps});
  });
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

void OuterOptimizer::broadcast(std::vector<at::Tensor> tensors, const char* operation) {
  if (tensors.empty() || averager_->group()->getSize() == 1) return;
  const auto number = static_cast<std::uint64_t>(summary_.outer_steps);
  comm::broadcast(comm::watched(averager_->group()), tensors, /*root=*/0, operation, number);
  averager_->watch(parameters_.device(), operation, number);
}

bool OuterOptimizer::step() {
  averager_->check_device();
  const Repeat repeat = std::exchange(repeat_, Repeat::kNothing);
  if (repeat == Repeat::kOuterStep) outer_step();
  if (repeat != Repeat::kNothing) return true;
  const auto number = static_cast<std::uint64_t>(summary_.inner_steps);
  comm::guard(*averager_->group(), "an inner step", number, [&] {
    parameters_.check_unchanged();
    inner_.step();
  });
  ++summary_.inner_steps;
  if (summary_.inner_steps % options_.inner_steps != 0) return false;
  outer_step();
  return true;
}

void OuterOptimizer::outer_step() {
  at::NoGradGuard no_grad;
  c10d::ProcessGroup& group = *averager_->group();
  const auto number = static_cast<std::uint64_t>(summary_.outer_steps);
  const auto guarded = [&](const char* operation, const auto& action) {
    return comm::guard(group, operation, number, action);
  };
  std::vector<std::size_t> not_finite;
  guarded("the delta of an outer step", [&] {
    parameters_.check_unchanged();
    not_finite = form_delta();
  });
  averager_->check_device();
  // Until the last rank has come: that is no time of the exchange.
  const auto arrived = Clock::now();
  if (marks_)
    averager_->mark();  // before anything that may fail, or it would take back the last one
  repeat_ = Repeat::kOuterStep;
  bool finite = meet(not_finite);
  const auto begin = Clock::now();
  summary_.wait_seconds += std::chrono::duration<double>(begin - arrived).count();
  if (finite) {
    averager_->average(bucket_, plan_, summary_.outer_steps);
    finite = holds_finite(bucket_.buffer);
    averager_->settle();
    if (!finite && group.getRank() == 0)
      log::warn(concat("outer step ", number,
                       ": the mean of the deltas is not finite; all ranks go back to the last "
                       "meeting"));
  }
  if (finite) {
    apply();
    skipped_in_a_row_ = 0;
  } else {
    ++summary_.skipped_steps;
    ++skipped_in_a_row_;
  }
  guarded("the new weights of an outer step", [&] {
    write_parameters();
    if (options_.reset_inner_state)
      for (const std::size_t index : not_finite)
        inner_.state().erase(parameters_.trained()[index].unsafeGetTensorImpl());
  });
  ++summary_.outer_steps;  // what comes now may fail and changes no weights
  repeat_ = Repeat::kNothing;
  broadcast_buffers();
  summary_.exchange_seconds += seconds_since(begin);
  if (options_.check_replicas) check_same_weights();
  summary_.traffic = averager_->traffic();
  summary_.traffic.sent_bytes += sent_beside_;
}

void OuterOptimizer::broadcast_buffers() {
  const std::vector<at::Tensor> buffers = parameters_.buffers();
  broadcast(buffers, "broadcast of the buffers");
  const c10d::ProcessGroup& group = *averager_->group();
  if (group.getRank() != 0 || group.getSize() == 1) return;
  for (const at::Tensor& buffer : buffers) sent_beside_ += buffer.nbytes();
}

std::vector<std::size_t> OuterOptimizer::form_delta() {
  std::vector<at::Tensor> finite;
  std::int64_t at = 0;
  for (std::size_t i = 0; i < parameters_.trained().size(); ++i) {
    const at::Tensor& parameter = parameters_.trained()[i];
    const at::Tensor start = synchronised_.narrow(0, at, parameter.numel());
    at::Tensor delta = bucket_.buffer.narrow(0, at, parameter.numel());
    // Weights of a narrow type started from the rounded ones.
    at::sub_out(delta, start.to(parameter.scalar_type()).to(at::kFloat),
                parameter.detach().flatten().to(at::kFloat));
    if (delta.is_cpu()) {
      finite.push_back(at::scalar_tensor(kernels::all_finite(floats_of(delta)), at::kBool));
    } else {
      finite.push_back(at::isfinite(delta).all());
    }
    at += parameter.numel();
  }
  // One wait for a device.
  const at::Tensor all = at::stack(finite).cpu();
  std::vector<std::size_t> not_finite;
  for (std::size_t i = 0; i < finite.size(); ++i)
    if (!all.const_data_ptr<bool>()[i]) not_finite.push_back(i);
  return not_finite;
}

// All ranks must be at the same outer step, and all learn whose delta is not finite: returns
// whether there is none.
bool OuterOptimizer::meet(const std::vector<std::size_t>& not_finite) {
  c10d::ProcessGroup& group = *averager_->group();
  const std::int64_t step = summary_.outer_steps;
  const auto number = static_cast<std::uint64_t>(step);
  const std::array<std::int64_t, 3> mine = {
      step, not_finite.empty() ? 0 : static_cast<std::int64_t>(not_finite.front()) + 1,
      std::bit_cast<std::int64_t>(outer_.learning_rate)};
  const std::vector<std::int64_t> all = comm::guard(group, "the outer step", number, [&] {
    return comm::Peers(group).all_gather(mine, "the outer step", number);
  });
  sent_beside_ += sizeof(mine) * static_cast<std::uint64_t>(group.getSize() - 1);
  int offender = -1;
  for (int rank = 0; rank < group.getSize(); ++rank) {
    const auto* theirs = &all[mine.size() * static_cast<std::size_t>(rank)];
    if (theirs[0] != all[0])
      throw InternalError(concat("the ranks are not at the same outer step: rank 0 is at ", all[0],
                                 ", rank ", rank, " at ", theirs[0]));
    check(theirs[2] == all[2], "the outer learning rate is ", std::bit_cast<double>(all[2]),
          " on rank 0 and ", std::bit_cast<double>(theirs[2]), " on rank ", rank,
          ": set_learning_rate() must be called alike on all ranks");
    if (theirs[1] == 0) continue;
    if (offender < 0) offender = rank;
    log::warn(concat("outer step ", step, ": the delta of rank ", rank,
                     " is not finite, first in '",
                     parameters_.name(static_cast<std::size_t>(theirs[1] - 1)),
                     "'; all ranks go back to the last meeting"));
  }
  if (offender < 0) return true;
  if (options_.max_skipped_in_a_row > 0 && skipped_in_a_row_ + 1 >= options_.max_skipped_in_a_row)
    throw CommError(offender, "outer step", number,
                    concat("its deltas are not finite, and ", options_.max_skipped_in_a_row,
                           " outer steps in a row were dropped (max_skipped_in_a_row); look at its "
                           "data and at the inner learning rate"));
  return false;
}

// With every operation rounded by itself. On the CPU by hand rather than by torch, whose vector
// code may fuse multiplication and addition on one processor and not on another.
void OuterOptimizer::apply() {
  const auto momentum = static_cast<float>(outer_.momentum);
  const auto rate = static_cast<float>(outer_.learning_rate);
  if (at::Tensor& change = bucket_.buffer; !change.is_cpu()) {
    momentum_.mul_(momentum).add_(change);
    if (outer_.nesterov) {
      change.add_(momentum_.mul(momentum));
    } else {
      change.copy_(momentum_);
    }
    synchronised_.sub_(change.mul_(rate));
    return;
  }
  const std::span<const float> delta = floats_of(bucket_.buffer);
  const std::span<float> velocities = floats_of(momentum_), weights = floats_of(synchronised_);
  for (std::size_t i = 0; i < delta.size(); ++i) {
    const float velocity = momentum * velocities[i] + delta[i];
    const float direction = outer_.nesterov ? delta[i] + momentum * velocity : velocity;
    velocities[i] = velocity;
    weights[i] -= rate * direction;
  }
}

void OuterOptimizer::write_parameters() {
  std::int64_t at = 0;
  for (const at::Tensor& parameter : parameters_.trained()) {
    parameter.detach().copy_(
        synchronised_.narrow(0, at, parameter.numel()).view(parameter.sizes()));
    at += parameter.numel();
  }
}

void OuterOptimizer::check_same_weights() {
  const std::uint32_t checksum = synchronised_crc32c();
  averager_->check_device();  // it may have ended the wait
  const auto number = static_cast<std::uint64_t>(summary_.outer_steps);
  const bool same = comm::guard(*averager_->group(), "comparing the weights", number, [&] {
    return comm::HashAgreement(*averager_->group(), number, checksum).wait();
  });
  sent_beside_ += comm::HashAgreement::sent_bytes(averager_->group()->getSize());
  if (!same)
    throw InternalError(concat("outer step ", summary_.outer_steps - 1,
                               ": the weights are not bit-equal on all ranks; this rank's CRC-32C "
                               "is ",
                               checksum));
}

void OuterOptimizer::set_learning_rate(double learning_rate) {
  Outer changed = outer_;
  changed.learning_rate = learning_rate;
  check_numbers(options_, changed);
  outer_ = changed;
}

OuterSummary OuterOptimizer::summary() const {
  return summary_;
}

std::uint32_t OuterOptimizer::synchronised_crc32c() const {
  return crc32c(bytes_of(synchronised_.cpu()));
}

detail::SavedOuter OuterOptimizer::saved_besides() const {
  return {.layout = parameters_.layout(),
          .world = averager_->group()->getSize(),
          .inner_steps = summary_.inner_steps,
          .outer_steps = summary_.outer_steps,
          .skipped_steps = summary_.skipped_steps,
          .synchronised = synchronised_.cpu(),
          .momentum = momentum_.cpu(),
          .averager = {}};
}

detail::SavedOuter OuterOptimizer::saved_now() const {
  detail::SavedOuter saved = saved_besides();
  saved.averager = averager_->state();
  return saved;
}

OuterState OuterOptimizer::state() const {
  return detail::state_of(saved_now());
}

OuterState OuterOptimizer::state_in_place() const {
  return detail::state_of(saved_besides(), averager_->state_in_place());
}

void OuterOptimizer::load_state(const OuterState& state) {
  detail::SavedOuter saved;
  const auto take = [&] {
    saved = detail::outer_of(state);
    check(saved.layout == parameters_.layout(), "the state is of another model or granularity:\n",
          saved.layout, "this one has\n", parameters_.layout());
    const int world = averager_->group()->getSize();
    check(saved.world == world, "the state is that of one of ", saved.world,
          " ranks, this job has ", world, "; merge_states() makes it fit");
    check(saved.synchronised.numel() == parameters_.numel() &&
              saved.momentum.numel() == parameters_.numel(),
          "the state has ", saved.synchronised.numel(), " weights and ", saved.momentum.numel(),
          " of momentum, the model ", parameters_.numel());
    std::map<std::string, std::int64_t, std::less<>> numel;
    for (const comm::BucketLayer& layer : bucket_.layers) numel.emplace(layer.name, layer.numel());
    comm::check_fits(saved.averager, numel);
    return concat("inner steps ", saved.inner_steps, "\nouter steps ", saved.outer_steps,
                  "\nCRC-32C of the weights ", crc32c(bytes_of(saved.synchronised)),
                  "\nCRC-32C of the momentum ", crc32c(bytes_of(saved.momentum)),
                  comm::describe_shared(saved.averager));
  };
  comm::agree_on_result(*averager_->group(), concat(name_, "/state", loads_++),
                        "the saved state of the outer optimizer", take);
  comm::guard(*averager_->group(), "loading a saved state", 0, [&] {
    synchronised_.copy_(saved.synchronised);
    momentum_.copy_(saved.momentum);
    averager_->load_state(std::move(saved.averager));
  });
  summary_.inner_steps = saved.inner_steps;
  summary_.outer_steps = saved.outer_steps;
  summary_.skipped_steps = saved.skipped_steps;
  skipped_in_a_row_ = 0;
}

}  // namespace thinwire
