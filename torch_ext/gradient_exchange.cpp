#include "thinwire/torch_ext/gradient_exchange.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <future>
#include <numeric>
#include <string_view>
#include <utility>

#include "thinwire/comm/agreement.h"
#include "thinwire/comm/host_layout.h"
#include "thinwire/comm/link_model.h"
#include "thinwire/comm/process_group.h"
#include "thinwire/comm/reductions/state_tensors.h"
#include "thinwire/common/env.h"
#include "thinwire/common/error.h"
#include "thinwire/torch_ext/agreed_plan.h"

namespace thinwire {
namespace {

double per_step(std::uint64_t bytes, std::int64_t steps) {
  return steps == 0 ? 0.0 : static_cast<double>(bytes) / static_cast<double>(steps);
}

std::string link_model_path(const CompressionOptions& options) {
  return options.link_model.empty() ? Env::get().link_model : options.link_model;
}

// The link model, if one is named, once all ranks are known to have the same or none. A rank that
// cannot read it says so to the others before it throws.
std::optional<comm::LinkModel> agreed_link_model(const c10d::ProcessGroup& group,
                                                 const std::string& name,
                                                 const CompressionOptions& options) {
  const std::string path = link_model_path(options);
  std::optional<comm::LinkModel> model;
  std::string text = "none";
  std::exception_ptr mistake;
  try {
    if (!path.empty()) {
      model = comm::read_link_model(path);
      check(model->world == group.getSize(), path, " was measured with ", model->world,
            " ranks, this job has ", group.getSize());
      model->backend(comm::backend_name(group));
      text = comm::to_json(*model);
    }
  } catch (const Error& error) {
    mistake = std::current_exception();
    text = concat("unusable: ", error.what());
  }
  comm::agree_on_text(group, name + "/link_model", "the link model", text);
  if (mistake) std::rethrow_exception(mistake);
  return model;
}

// `link` outlives what is made with the options.
comm::AveragerOptions averager_options(const c10d::ProcessGroup& group, const std::string& name,
                                       const CompressionOptions& options,
                                       const std::optional<comm::LinkModel>& link,
                                       Timeline* timeline) {
  comm::AveragerOptions made{.seed = options.seed,
                             .check_replicas_every = Env::get().check_replicas_every,
                             .timeline = timeline};
  if (options.strategy != "auto") made.strategy = comm::parse_strategy(options.strategy);
  if (link) made.link = &*link;
  if (link || made.strategy == comm::Strategy::kHierarchical) {
    made.host_of_rank = comm::hosts_of_ranks(group, name);
  }
  return made;
}

std::unique_ptr<AdaptivePlan> make_adaptive(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                                            const std::string& name,
                                            const std::vector<LayerInfo>& layers,
                                            const CompressionOptions& options,
                                            const comm::Plan& reference,
                                            const std::optional<comm::LinkModel>& link) {
  auto adaptive = adaptive_compression(layers, options);
  if (!adaptive) return nullptr;
  comm::agree_on_text(*group, name + "/policy", "the policy", adaptive->policy.str());
  check(adaptive->policy.objective != lgreco::Objective::kTime || link,
        "lgreco(objective=time) needs to know the network: name a file that `thinwire link` "
        "wrote in the option link_model or in THINWIRE_LINK_MODEL");
  return std::make_unique<AdaptivePlan>(group, std::move(*adaptive), reference,
                                        options.warmup_steps, link);
}

std::int64_t numel_of(const LayerInfo& layer) {
  return std::accumulate(layer.shape.begin(), layer.shape.end(), std::int64_t{1},
                         std::multiplies<>());
}

constexpr std::string_view kWorld = "world", kSteps = "steps", kPlan = "plan",
                           kAverager = "averager/";

at::Tensor bytes_of(const std::string& text) {
  at::Tensor bytes = at::empty({static_cast<std::int64_t>(text.size())}, at::kByte);
  std::ranges::copy(text, bytes.mutable_data_ptr<std::uint8_t>());
  return bytes;
}

// A saved state, taken apart.
struct SavedGradients {
  std::int64_t world = 0;
  std::int64_t steps = -1;
  std::string plan;
  comm::AveragerState averager;
};

std::int64_t integer_of(const std::string& name, const at::Tensor& tensor) {
  check(tensor.defined() && tensor.numel() == 1 && tensor.scalar_type() == at::kLong, "'", name,
        "' of a saved state must be one int64");
  return tensor.item<std::int64_t>();
}

SavedGradients taken_apart(const GradientState& state) {
  SavedGradients saved;
  std::map<std::string, at::Tensor> averager;
  for (const auto& [name, tensor] : state) {
    if (name == kWorld) {
      saved.world = integer_of(name, tensor);
    } else if (name == kSteps) {
      saved.steps = integer_of(name, tensor);
    } else if (name == kPlan) {
      check(tensor.defined() && tensor.scalar_type() == at::kByte,
            "'plan' of a saved state must be bytes");
      const at::Tensor bytes = tensor.to(at::kCPU).contiguous();
      const auto* text = bytes.const_data_ptr<std::uint8_t>();
      saved.plan.assign(text, text + bytes.numel());
    } else {
      check(name.starts_with(kAverager), "a saved state of gradients has no tensor '", name,
            "'; its names are world, steps, plan and averager/...");
      averager.emplace(name.substr(kAverager.size()), tensor);
    }
  }
  check(saved.world > 0 && saved.steps >= 0,
        "a saved state of gradients needs 'world' and 'steps', the numbers of ranks and steps");
  saved.averager = comm::state_from_tensors(averager);
  return saved;
}

lgreco::Plan plan_of(const std::string& text) {
  try {
    return lgreco::parse_plan(text, "the saved plan");
  } catch (const FileError& error) {
    throw InvalidArgument(error.what());
  }
}

GradientState put_together(const SavedGradients& saved) {
  GradientState state;
  state.emplace(kWorld, at::tensor({saved.world}, at::kLong));
  state.emplace(kSteps, at::tensor({saved.steps}, at::kLong));
  if (!saved.plan.empty()) state.emplace(kPlan, bytes_of(saved.plan));
  for (const auto& [name, tensor] : comm::to_tensors(saved.averager)) {
    state.emplace(concat(kAverager, name), tensor);
  }
  return state;
}

// Bytes of a dense all-reduce of the layers that are never compressed.
std::uint64_t fixed_bytes(const std::vector<LayerInfo>& layers, const comm::Plan& plan, int world) {
  double bytes = 0;
  for (const LayerInfo& layer : layers) {
    if (plan.of(layer.name).codec) continue;
    const double tensor =
        static_cast<double>(layer.element_bytes) * static_cast<double>(numel_of(layer));
    bytes += comm::sent_bytes(comm::Collective::kAllReduce, tensor, world);
  }
  return static_cast<std::uint64_t>(bytes);
}

}  // namespace

double CommunicationSummary::wire_bytes_per_step() const {
  return steps > warmup_steps ? per_step(after_warmup.sent_bytes, steps - warmup_steps)
                              : per_step(total.sent_bytes, steps);
}

double CommunicationSummary::dense_bytes_per_step() const {
  return steps > warmup_steps ? per_step(after_warmup.dense_bytes, steps - warmup_steps)
                              : per_step(total.dense_bytes, steps);
}

double CommunicationSummary::ratio() const {
  return wire_bytes_per_step() == 0 ? 1.0 : dense_bytes_per_step() / wire_bytes_per_step();
}

double CommunicationSummary::compressed_wire_bytes_per_step() const {
  const bool warm = steps > warmup_steps;
  const std::int64_t counted = warm ? steps - warmup_steps : steps;
  return std::max(0.0, wire_bytes_per_step() - static_cast<double>(fixed_bytes_per_step) -
                           per_step(adaptation.sent_bytes, counted));
}

double CommunicationSummary::compressed_dense_bytes_per_step() const {
  return std::max(0.0, dense_bytes_per_step() - static_cast<double>(fixed_bytes_per_step));
}

double CommunicationSummary::compressed_ratio() const {
  const double sent = compressed_wire_bytes_per_step();
  return sent == 0 ? 1.0 : compressed_dense_bytes_per_step() / sent;
}

GradientExchange::GradientExchange(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                                   const std::string& model, const std::vector<LayerInfo>& layers,
                                   CompressionOptions options, Timeline* timeline)
    : GradientExchange(group, detail::next_name(*group, "gradients"), model, layers,
                       std::move(options), timeline) {}

GradientExchange::GradientExchange(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                                   const std::string& name, const std::string& model,
                                   const std::vector<LayerInfo>& layers, CompressionOptions options,
                                   Timeline* timeline)
    : name_(name),
      options_(std::move(options)),
      plan_(detail::agreed_plan(*group, name, "the compression of the gradients", model, layers,
                                options_)),
      timeline_(timeline),
      link_(agreed_link_model(*group, name, options_)),
      averager_(comm::duplicate(group, name),
                averager_options(*group, name, options_, link_, timeline)),
      adaptive_(make_adaptive(averager_.group(), name, layers, options_, plan_, link_)),
      warmup_steps_(adaptive_ ? adaptive_->schedule().warmup() : options_.warmup_steps),
      current_plan_(std::make_shared<const comm::Plan>(plan_)),
      thread_(std::make_unique<comm::CommunicationThread>()) {
  summary_.fixed_bytes_per_step = fixed_bytes(layers, plan_, group->getSize());
  for (const LayerInfo& layer : layers) numel_of_layer_.emplace(layer.name, numel_of(layer));
}

void GradientExchange::submit(comm::Bucket bucket, bool last,
                              comm::CommunicationThread::Done done) {
  const auto queued = Timeline::Clock::now();
  const std::int64_t step = submitted_steps_;
  thread_->submit(
      [this, bucket = std::move(bucket), last, queued, step]() mutable {
        const auto begun = Timeline::Clock::now();
        if (!began_) began_ = begun;
        if (timeline_) {
          timeline_->record(concat("bucket ", bucket.index), "QUEUE", queued, begun);
        }
        average(bucket, step);
        if (last) finish_step(step);
      },
      std::move(done));
  if (!last) return;
  ++submitted_steps_;
  if (adaptive_ && adaptive_->schedule().closes_window(step)) {
    // A job of its own: the backward pass need not wait for it.
    thread_->submit([this] { adaptive_->close_window(); }, [](const std::exception_ptr&) {});
  }
}

void GradientExchange::average(comm::Bucket& bucket, std::int64_t step) {
  const comm::Plan* plan = &plan_;
  if (adaptive_) {
    if (adaptive_->begin_step(step)) {
      std::lock_guard lock(mutex_);
      current_plan_ = std::make_shared<const comm::Plan>(adaptive_->plan());
      allocation_ = adaptive_->allocation();
    }
    adaptive_->observe(bucket, step);
    plan = &adaptive_->plan();
  }
  averager_.average(bucket, step < warmup_steps_ ? uncompressed_ : *plan, step);
}

void GradientExchange::finish_step(std::int64_t step) {
  if (adaptive_) adaptive_->finish_step(step);
  comm::WireUse now = averager_.wire_use();
  std::lock_guard lock(mutex_);
  if (adaptive_) {
    summary_.adaptation = adaptive_->summary();
    now.sent_bytes += summary_.adaptation.sent_bytes;
  }
  summary_.adaptation.training_seconds =
      std::chrono::duration<double>(Timeline::Clock::now() - *began_).count();
  ++summary_.steps;
  summary_.total = now;
  if (step < warmup_steps_) {
    ++summary_.warmup_steps;
  } else {
    summary_.after_warmup.sent_bytes += now.sent_bytes - at_last_step_.sent_bytes;
    summary_.after_warmup.dense_bytes += now.dense_bytes - at_last_step_.dense_bytes;
  }
  at_last_step_ = now;
}

comm::Plan GradientExchange::plan() const {
  std::lock_guard lock(mutex_);
  return *current_plan_;
}

std::shared_ptr<const lgreco::Plan> GradientExchange::allocation() const {
  std::lock_guard lock(mutex_);
  return allocation_;
}

CommunicationSummary GradientExchange::summary() const {
  std::lock_guard lock(mutex_);
  return summary_;
}

void GradientExchange::on_thread(const std::function<void()>& job) const {
  std::promise<void> done;
  thread_->submit(job, [&](const std::exception_ptr& error) {
    if (error) {
      done.set_exception(error);
    } else {
      done.set_value();
    }
  });
  done.get_future().get();
}

GradientState GradientExchange::state() const {
  SavedGradients saved;
  saved.world = averager_.group()->getSize();
  saved.steps = submitted_steps_;
  on_thread([&] {
    saved.averager = averager_.state();
    if (adaptive_ && adaptive_->allocation()) {
      saved.plan = lgreco::plan_text(*adaptive_->allocation());
    }
  });
  return put_together(saved);
}

void GradientExchange::load_state(const GradientState& state) {
  // A mistake of one rank is for all to see: alone it would leave the others waiting.
  std::string text;
  std::exception_ptr mistake;
  SavedGradients saved;
  std::shared_ptr<const lgreco::Plan> plan;
  try {
    saved = taken_apart(state);
    const int world = averager_.group()->getSize();
    check(saved.world == world, "the state is that of one of ", saved.world,
          " ranks, this job has ", world, "; merge_gradient_states() makes it fit");
    comm::check_fits(saved.averager, numel_of_layer_);
    if (!saved.plan.empty()) {
      check(adaptive_ != nullptr,
            "the state has a plan of lgreco(...), which this compression is not");
      plan = std::make_shared<const lgreco::Plan>(plan_of(saved.plan));
      adaptive_->check_fits(*plan);
    }
    text = concat("steps ", saved.steps, "\nplan ", plan ? lgreco::plan_hash(*plan) : 0);
  } catch (const std::exception& error) {
    mistake = std::current_exception();
    text = concat("unusable: ", error.what());
  }
  comm::agree_on_text(*averager_.group(), concat(name_, "/state", loads_++), "the saved state",
                      text);
  if (mistake) std::rethrow_exception(mistake);
  on_thread([&] {
    if (adaptive_) adaptive_->restore(plan);
    averager_.load_state(std::move(saved.averager));
  });
  submitted_steps_ = saved.steps;
  if (!adaptive_) return;
  const std::lock_guard lock(mutex_);
  current_plan_ = std::make_shared<const comm::Plan>(adaptive_->plan());
  allocation_ = adaptive_->allocation();
}

GradientState merge_gradient_states(const std::vector<GradientState>& of_all_ranks,
                                    int world_size) {
  check(world_size > 0, "a job has at least one rank, got ", world_size);
  check(!of_all_ranks.empty(), "there are no states to merge");
  const auto hash_of = [](const SavedGradients& saved) {
    return saved.plan.empty() ? 0 : lgreco::plan_hash(plan_of(saved.plan));
  };
  SavedGradients merged = taken_apart(of_all_ranks.front());
  check(static_cast<std::size_t>(merged.world) == of_all_ranks.size(), "the states of all ",
        merged.world, " ranks are needed, got ", of_all_ranks.size());
  std::vector<comm::AveragerState> averagers = {merged.averager};
  for (std::size_t rank = 1; rank < of_all_ranks.size(); ++rank) {
    SavedGradients saved = taken_apart(of_all_ranks[rank]);
    check(saved.world == merged.world && saved.steps == merged.steps &&
              hash_of(saved) == hash_of(merged),
          "state ", rank, " (step ", saved.steps, " of ", saved.world,
          " ranks) is not of the same step and plan as state 0 (step ", merged.steps, " of ",
          merged.world, " ranks)");
    averagers.push_back(std::move(saved.averager));
  }
  merged.averager = comm::merge_states(averagers);
  merged.world = world_size;
  return put_together(merged);
}

}  // namespace thinwire
