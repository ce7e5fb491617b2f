#include "thinwire/torch_ext/gradient_exchange.h"

#include <algorithm>
#include <utility>

#include "thinwire/comm/agreement.h"
#include "thinwire/comm/host_layout.h"
#include "thinwire/comm/link_model.h"
#include "thinwire/comm/process_group.h"
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

// Bytes of a dense all-reduce of the layers that are never compressed.
std::uint64_t fixed_bytes(const std::vector<LayerInfo>& layers, const comm::Plan& plan, int world) {
  double bytes = 0;
  for (const LayerInfo& layer : layers) {
    if (plan.of(layer.name).codec) continue;
    auto tensor = static_cast<double>(layer.element_bytes);
    for (const std::int64_t extent : layer.shape) tensor *= static_cast<double>(extent);
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
    : options_(std::move(options)),
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
  if (summary_.steps <= warmup_steps_) {
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

}  // namespace thinwire
