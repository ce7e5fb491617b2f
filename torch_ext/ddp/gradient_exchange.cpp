#include "thinwire/torch_ext/ddp/gradient_exchange.h"

#include <ATen/ThreadLocalState.h>
#include <ATen/record_function.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <future>
#include <string_view>
#include <utility>

#include "thinwire/comm/backend/process_group.h"
#include "thinwire/comm/failure/agreement.h"
#include "thinwire/comm/failure/guard.h"
#include "thinwire/comm/join/host_layout.h"
#include "thinwire/comm/join/next_name.h"
#include "thinwire/comm/link/link_model.h"
#include "thinwire/common/env.h"
#include "thinwire/common/error.h"
#include "thinwire/common/stopwatch.h"
#include "thinwire/torch_ext/compression/agreed_plan.h"
#include "thinwire/torch_ext/ddp/device_compression.h"
#include "thinwire/torch_ext/ddp/measured_steps.h"

namespace thinwire {
namespace {

double per_step(std::uint64_t bytes, std::int64_t steps) {
  return steps == 0 ? 0.0 : static_cast<double>(bytes) / static_cast<double>(steps);
}

std::string link_model_path(const CompressionOptions& options) {
  return options.link_model.empty() ? Env::get().link_model : options.link_model;
}

// `link` outlives what is made with the options.
comm::AveragerOptions averager_options(const c10d::ProcessGroup& group, const std::string& name,
                                       const CompressionOptions& options,
                                       const std::optional<comm::LinkModel>& link,
                                       Timeline* timeline) {
  comm::AveragerOptions made{.seed = options.seed,
                             .check_replicas_every = Env::get().check_replicas_every,
                             .timeline = timeline,
                             .record_gradients = options.record_gradients,
                             .record_from = options.record_from,
                             .record_steps = options.record_steps};
  if (options.strategy != "auto") made.strategy = comm::parse_strategy(options.strategy);
  if (link) made.link = &*link;
  if (link || made.strategy == comm::Strategy::kHierarchical) {
    made.host_of_rank = comm::guard(group, "learning the hosts of the ranks", 0,
                                    [&] { return comm::hosts_of_ranks(group, name); });
  }
  return made;
}

std::unique_ptr<AdaptivePlan> make_adaptive(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                                            const CompressionPlan& start,
                                            const CompressionOptions& options,
                                            const std::optional<comm::LinkModel>& link) {
  if (!start.adaptive) return nullptr;
  check(start.adaptive->policy.objective != lgreco::Objective::kTime || link,
        "lgreco(objective=time) needs to know the network: name a file that `thinwire link` "
        "wrote in the option link_model or in THINWIRE_LINK_MODEL");
  return std::make_unique<AdaptivePlan>(group, *start.adaptive, start.plan, options.warmup_steps,
                                        link);
}

std::unique_ptr<AutomaticPlan> make_automatic(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                                              const CompressionPlan& start, std::int64_t first) {
  if (!start.automatic) return nullptr;
  return std::make_unique<AutomaticPlan>(group, *start.automatic, start.plan, first);
}

// The link model, if one is named, once all ranks are known to have the same or none.
std::optional<comm::LinkModel> agreed_link_model(const c10d::ProcessGroup& group,
                                                 const std::string& name,
                                                 const CompressionOptions& options) {
  const std::string path = link_model_path(options);
  std::optional<comm::LinkModel> model;
  comm::agree_on_result(group, name + "/link_model", "the link model", [&]() -> std::string {
    if (path.empty()) return "none";
    model = comm::read_link_model(path);
    check(model->world == group.getSize(), path, " was measured with ", model->world,
          " ranks, this job has ", group.getSize());
    model->backend(comm::backend_name(group));
    return comm::to_json(*model);
  });
  return model;
}

// Bytes of a dense all-reduce of the layers that are never compressed.
std::uint64_t fixed_bytes(const std::vector<LayerInfo>& layers, const comm::Plan& plan, int world) {
  double bytes = 0;
  for (const LayerInfo& layer : layers) {
    if (plan.of(layer.name).codec) continue;
    const double tensor = static_cast<double>(layer.element_bytes) *
                          static_cast<double>(c10::multiply_integers(layer.shape));
    bytes += comm::sent_bytes(comm::Collective::kAllReduce, tensor, world);
  }
  return static_cast<std::uint64_t>(bytes);
}

// Gives this thread the profiler of the one that submitted a bucket, if there is one.
class Listening {
 public:
  explicit Listening(const at::ThreadLocalState* state) {
    if (state) guard_.emplace(*state);
  }

 private:
  std::optional<at::ThreadLocalStateGuard> guard_;
};

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
                                   CompressionOptions options, Timeline* timeline,
                                   comm::CommunicationThreadOptions thread, at::Device device)
    : GradientExchange(group, comm::next_name(*group, "gradients"), model, layers,
                       std::move(options), timeline, std::move(thread), device) {}

GradientExchange::GradientExchange(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                                   const std::string& name, const std::string& model,
                                   const std::vector<LayerInfo>& layers, CompressionOptions options,
                                   Timeline* timeline, comm::CommunicationThreadOptions thread,
                                   at::Device device)
    : name_(name),
      options_(std::move(options)),
      start_([&] {
        CompressionPlan plan = detail::agreed_plan(*group, name, "the compression of the gradients",
                                                   model, layers, options_);
        // Before connections are made, for all ranks have this plan and this device.
        check_device_averages(device, plan, options_, *group);
        return plan;
      }()),
      timeline_(timeline),
      clock_(timeline),
      link_(agreed_link_model(*group, name, options_)),
      averager_(comm::guard(*group, "making what averages the gradients", 0,
                            [&] {
                              comm::AveragerOptions made =
                                  averager_options(*group, name, options_, link_, timeline);
                              made.original_group = group;
                              return comm::BucketAverager(comm::duplicate(group, name), made);
                            })),
      adaptive_(make_adaptive(averager_.group(), start_, options_, link_)),
      automatic_(make_automatic(averager_.group(), start_, options_.warmup_steps)),
      warmup_steps_(adaptive_ ? adaptive_->schedule().warmup() : options_.warmup_steps),
      current_plan_(std::make_shared<const comm::Plan>(start_.plan)),
      thread_(comm::guard(*group, "starting the communication thread", 0, [&] {
        return std::make_unique<comm::CommunicationThread>(
            std::move(thread),
            [this](const std::exception_ptr& failure) { finish_in_flight(failure); });
      })) {
  summary_.fixed_bytes_per_step = fixed_bytes(layers, start_.plan, group->getSize());
  for (const LayerInfo& layer : layers)
    numel_of_layer_.emplace(layer.name, c10::multiply_integers(layer.shape));
}

void GradientExchange::submit(comm::Bucket bucket, bool last,
                              comm::CommunicationThread::Done done) {
  const auto queued = Timeline::Clock::now();
  const std::int64_t step = submitted_steps_;
  clock_.bucket_ready(step, bucket, last);
  if (bucket.buffer.is_cuda()) {
    submit_on_device(std::move(bucket), last, step, std::move(done));
    if (last) ++submitted_steps_;
    return;
  }
  // Told when the bucket is finished, which is later than its job, or when the job failed.
  const auto shared_done = std::make_shared<comm::CommunicationThread::Done>(std::move(done));
  // A profiler listens to the thread that started it, and to those that have its state.
  Profiled profiled;
  if (at::hasThreadLocalCallbacks()) profiled = std::make_shared<const at::ThreadLocalState>();
  thread_->submit(
      [this, bucket = std::move(bucket), last, queued, step, shared_done,
       profiled = std::move(profiled)]() mutable {
        const Listening listening(profiled.get());
        RECORD_FUNCTION("thinwire::average_bucket", std::vector<c10::IValue>());
        const auto begun = Timeline::Clock::now();
        clock_.bucket_begins(step, bucket.index);
        if (!began_) began_ = begun;
        if (timeline_) {
          timeline_->record(concat("bucket ", bucket.index), "QUEUE", queued, begun);
        }
        // What fails in it on this rank alone, the others wait for.
        comm::guard(*averager_.group(), "averaging the gradients", static_cast<std::uint64_t>(step),
                    [&] { exchange(std::move(bucket), last, step, *shared_done, profiled); });
      },
      [shared_done](const std::exception_ptr& failure) {
        if (failure) (*shared_done)(failure);
      });
  if (!last) return;
  ++submitted_steps_;
  if (adaptive_ && adaptive_->schedule().closes_window(step)) {
    // A job of its own: the backward pass need not wait for it.
    thread_->submit([this] { adaptive_->close_window(); }, [](const std::exception_ptr&) {});
  }
}

void GradientExchange::submit_on_device(comm::Bucket bucket, bool last, std::int64_t step,
                                        comm::CommunicationThread::Done done) {
  const at::Device device = bucket.buffer.device();
  const c10::impl::VirtualGuardImpl streams(device.type());
  if (!device_stream_) {
    comm::guard(*averager_.group(), "averaging the gradients", static_cast<std::uint64_t>(step),
                [&] { check_device_averages(device, start_, options_, *averager_.group()); });
    device_stream_ = streams.getStreamFromGlobalPool(device, /*isHighPriority=*/true);
  }
  // Whoever frees the bucket must not have its memory given away before this stream is done.
  streams.recordDataPtrOnStream(bucket.buffer.storage().data_ptr(), *device_stream_);
  const auto ready = std::make_shared<c10::Event>(device.type());
  ready->record(streams.getStream(device));
  const auto shared_done = std::make_shared<comm::CommunicationThread::Done>(std::move(done));
  auto job = [this, bucket = std::move(bucket), last, step, ready, shared_done]() mutable {
    const c10::StreamGuard stream(*device_stream_);
    ready->block(*device_stream_);
    comm::guard(*averager_.group(), "averaging the gradients", static_cast<std::uint64_t>(step),
                [&] { average_on_device(std::move(bucket), last, step); });
    (*shared_done)(nullptr);
  };
  if (!comm::orders_streams(*averager_.group(), device.type())) {
    thread_->submit(std::move(job), [shared_done](const std::exception_ptr& failure) {
      if (failure) (*shared_done)(failure);
    });
    return;
  }
  try {
    if (device_failure_) std::rethrow_exception(device_failure_);
    job();
  } catch (...) {
    device_failure_ = std::current_exception();
    (*shared_done)(device_failure_);
  }
}

void GradientExchange::check_device() const {
  // Over others the communication thread waits for the network, and whoever waits for a mean is
  // told.
  if (device_stream_ && comm::orders_streams(*averager_.group(), device_stream_->device_type()))
    averager_.check_device();
}

void GradientExchange::watch(at::Device device, const std::string& operation,
                             std::uint64_t sequence) {
  // Over others broadcasts wait on the host.
  if (device.is_cuda() && comm::orders_streams(*averager_.group(), device.type()))
    averager_.watch(device, operation, sequence);
}

void GradientExchange::average_on_device(comm::Bucket bucket, bool last, std::int64_t step) {
  RECORD_FUNCTION("thinwire::average_bucket", std::vector<c10::IValue>());
  const std::size_t index = bucket.index;
  clock_.bucket_begins(step, index);
  if (!began_) began_ = Timeline::Clock::now();
  const comm::Plan& plan = plan_at(bucket, step);
  if (step == measured_step_) measure(bucket, plan);
  comm::BucketInFlight& in_flight = averager_.begin(std::move(bucket), plan, step);
  averager_.advance(in_flight);
  averager_.finish(in_flight);
  if (last) averager_.agree();
  clock_.bucket_ends(step, index);
  if (!last) return;
  clock_.step_ends(step, averager_.phases());
  finish_step(step);
  // No job of its own: over NCCL this is the thread that makes all other collectives of the host.
  if (adaptive_ && adaptive_->schedule().closes_window(step)) adaptive_->close_window();
}

// A bucket's last messages travel while the next one is encoded; it is finished while that one's
// first travel, or when there is no next one. Which of both is a matter of time, so finish() is
// what no other rank has to do at once.
void GradientExchange::exchange(comm::Bucket bucket, bool last, std::int64_t step,
                                const comm::CommunicationThread::Done& done,
                                const Profiled& profiled) {
  const comm::Plan& plan = plan_at(bucket, step);
  const std::size_t index = bucket.index;
  if (step == measured_step_) measure(bucket, plan);
  comm::BucketInFlight& begun = averager_.begin(std::move(bucket), plan, step);
  finish_in_flight(nullptr);
  averager_.advance(begun);
  if (!last) {
    in_flight_.emplace(InFlight{&begun, step, index, done, profiled});
    return;
  }
  averager_.finish(begun);
  averager_.agree();
  clock_.bucket_ends(step, index);
  clock_.step_ends(step, averager_.phases());
  finish_step(step);
  done(nullptr);
}

void GradientExchange::finish_in_flight(const std::exception_ptr& failure) {
  if (!in_flight_) return;
  const InFlight in_flight = *std::exchange(in_flight_, std::nullopt);
  if (failure) return in_flight.done(failure);
  // Perhaps while the thread is idle, after the job in which the profiler listened.
  const Listening listening(in_flight.profiled.get());
  try {
    averager_.finish(*in_flight.bucket);
    clock_.bucket_ends(in_flight.step, in_flight.index);
  } catch (...) {
    in_flight.done(std::current_exception());
    throw;
  }
  in_flight.done(nullptr);
}

const comm::Plan& GradientExchange::plan_at(const comm::Bucket& bucket, std::int64_t step) {
  const comm::Plan& plan = adaptive_    ? adaptive_->plan()
                           : automatic_ ? automatic_->plan()
                                        : start_.plan;
  if (adapt_plan(step)) {
    std::lock_guard lock(mutex_);
    current_plan_ = std::make_shared<const comm::Plan>(plan);
    if (adaptive_) allocation_ = adaptive_->allocation();
  }
  if (adaptive_) adaptive_->observe(bucket, step);
  if (automatic_) automatic_->observe(bucket);
  return step < warmup_steps_ ? uncompressed_ : plan;
}

bool GradientExchange::adapt_plan(std::int64_t step) {
  if (adaptive_) return adaptive_->begin_step(step);
  if (!automatic_) return false;
  return automatic_->begin_step(
      step, [this](std::int64_t steps) { return measured_steps(clock_.profile(steps)); });
}

void GradientExchange::measure(const comm::Bucket& bucket, const comm::Plan& plan) {
  std::vector<std::pair<std::string, at::Tensor>> gradients;
  for (const comm::BucketLayer& layer : bucket.layers) {
    gradients.emplace_back(
        layer.name, bucket.buffer.narrow(0, layer.offset, layer.numel()).view(layer.shape).cpu());
  }
  for (LayerReport& report : report_layers(gradients, plan))
    measuring_.push_back(std::move(report));
}

std::vector<LayerReport> GradientExchange::layer_reports() const {
  const std::lock_guard lock(mutex_);
  return layer_reports_;
}

void GradientExchange::finish_step(std::int64_t step) {
  if (adaptive_) adaptive_->finish_step(step);
  comm::Traffic now = averager_.traffic();
  std::lock_guard lock(mutex_);
  if (adaptive_) {
    summary_.adaptation = adaptive_->summary();
    now.sent_bytes += summary_.adaptation.sent_bytes;
  }
  if (automatic_) summary_.automatic = automatic_->summary();
  summary_.adaptation.training_seconds = seconds_since(*began_);
  if (step == measured_step_) layer_reports_ = std::exchange(measuring_, {});
  ++summary_.steps;
  summary_.total = now;
  summary_.memory = averager_.memory();
  summary_.statistics_bytes = adaptive_ ? adaptive_->statistics().bytes() : 0;
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

std::shared_ptr<const lgreco::SolvedPlan> GradientExchange::allocation() const {
  std::lock_guard lock(mutex_);
  return allocation_;
}

CommunicationSummary GradientExchange::summary() const {
  std::lock_guard lock(mutex_);
  return summary_;
}

GradientState GradientExchange::state() const {
  detail::SavedGradients saved;
  thread_->call([&] { saved = saved_now(/*with_next_plan=*/true); });
  return detail::put_together(saved);
}

GradientState GradientExchange::state_in_place() const {
  GradientState state;
  thread_->call([&] {
    state =
        detail::put_together(saved_besides(/*with_next_plan=*/true), averager_.state_in_place());
  });
  return state;
}

detail::SavedGradients GradientExchange::saved_now(bool with_next_plan) const {
  detail::SavedGradients saved = saved_besides(with_next_plan);
  saved.averager = averager_.state();
  return saved;
}

detail::SavedGradients GradientExchange::saved_besides(bool with_next_plan) const {
  detail::SavedGradients saved;
  saved.world = averager_.group()->getSize();
  saved.steps = submitted_steps_;
  if (adaptive_ && adaptive_->allocation()) {
    saved.plan = lgreco::plan_text(*adaptive_->allocation());
  }
  if (with_next_plan && adaptive_) saved.next_plan = adaptive_->under_way();
  return saved;
}

void GradientExchange::load_state(const GradientState& state,
                                  const std::function<std::string()>& more) {
  detail::SavedGradients saved;
  std::shared_ptr<const lgreco::SolvedPlan> plan;
  const auto make = [&] {
    saved = detail::taken_apart(state);
    const int world = averager_.group()->getSize();
    check(saved.world == world, "the state is that of one of ", saved.world,
          " ranks, this job has ", world, "; merge_states() makes it fit");
    comm::check_fits(saved.averager, numel_of_layer_);
    if (!saved.plan.empty()) {
      check(adaptive_ != nullptr,
            "the state has a plan of lgreco(...), which this compression is not");
      plan = std::make_shared<const lgreco::SolvedPlan>(detail::plan_of(saved.plan));
      adaptive_->check_fits(*plan);
    }
    if (saved.next_plan) {
      check(adaptive_ != nullptr,
            "the state has statistics of lgreco(...), which this compression is not");
      adaptive_->check_fits(*saved.next_plan);
    }
    return concat("steps ", saved.steps, "\nplan ", plan ? lgreco::plan_hash(*plan) : 0,
                  "\nnext plan ", saved.next_plan ? saved.next_plan->text() : "none",
                  comm::describe_shared(saved.averager), more ? more() : std::string());
  };
  comm::agree_on_result(*averager_.group(), concat(name_, "/state", loads_++), "the saved state",
                        make);
  comm::guard(*averager_.group(), "loading the saved state", loads_, [&] {
    thread_->call([&] {
      if (adaptive_) adaptive_->restore(plan, std::move(saved.next_plan));
      averager_.load_state(std::move(saved.averager));
    });
  });
  submitted_steps_ = saved.steps;
  if (!adaptive_) return;
  const std::lock_guard lock(mutex_);
  current_plan_ = std::make_shared<const comm::Plan>(adaptive_->plan());
  allocation_ = adaptive_->allocation();
}

}  // namespace thinwire
