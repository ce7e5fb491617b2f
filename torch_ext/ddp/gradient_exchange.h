// The gradients of one model on their way to the other ranks.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <ATen/ThreadLocalState.h>
#include <c10/core/Stream.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/average/bucket_averager.h"
#include "thinwire/comm/average/communication_thread.h"
#include "thinwire/torch_ext/adaptive/adaptive_plan.h"
#include "thinwire/torch_ext/adaptive/automatic_plan.h"
#include "thinwire/torch_ext/compression/compression.h"
#include "thinwire/torch_ext/ddp/gradient_state.h"
#include "thinwire/torch_ext/ddp/layer_report.h"
#include "thinwire/torch_ext/ddp/step_clock.h"

namespace thinwire {

// What one rank has sent, over finished steps.
struct CommunicationSummary {
  std::int64_t steps = 0;
  std::int64_t warmup_steps = 0;  // of these, sent uncompressed
  comm::Traffic total;            // all steps
  comm::Traffic after_warmup;     // without the warm-up steps
  // Of dense_bytes in one step: layers that are never compressed (biases, small ones, overrides).
  std::uint64_t fixed_bytes_per_step = 0;
  // Held by this rank after the last step, and in it by what lgreco(...) adds up.
  comm::AveragerMemory memory;
  std::size_t statistics_bytes = 0;
  // What lgreco(...) has done; its bytes are part of `total` and `after_warmup`.
  AdaptationSummary adaptation;
  AutomaticSummary automatic;

  double wire_bytes_per_step() const;  // mean over the steps after warm-up, else over all
  double dense_bytes_per_step() const;
  // Uncompressed bytes over sent bytes, over the same steps.
  double ratio() const;

  // The same of the layers that may be compressed alone, without the exchange of statistics.
  double compressed_wire_bytes_per_step() const;
  double compressed_dense_bytes_per_step() const;
  double compressed_ratio() const;
};

// Averages buckets on a communication thread of its own, over a duplicate of the program's group,
// so that its messages cannot interleave with the program's. Buckets must be submitted in the same
// order on every rank. submit(), summary(), plan() and allocation() are thread-safe.
class GradientExchange {
 public:
  // `layers` are the model's parameters in order, `model` describes the whole model, a line a
  // tensor. Collective: duplicates the group and makes sure that all ranks have the same model and
  // the same plan (else InvalidArgument on every rank, naming the first difference). Throws it,
  // too, where gradients on `device` cannot be averaged by that plan.
  GradientExchange(const c10::intrusive_ptr<c10d::ProcessGroup>& group, const std::string& model,
                   const std::vector<LayerInfo>& layers, CompressionOptions options,
                   Timeline* timeline = nullptr, comm::CommunicationThreadOptions thread = {},
                   at::Device device = at::kCPU);

  // Averages `bucket` in place, then calls `done` on the communication thread, with the exception
  // if there was one. `last` marks the last bucket of a step.
  //
  // A bucket in GPU memory has to be ready on the current stream. Its work goes to a stream of the
  // exchange's own, which is current when `done` is called: the mean is there for what is queued on
  // it then. Over NCCL all that is done at once, on the calling thread, for ranks must start their
  // collectives in one order and nothing is waited for; over others on the communication thread.
  void submit(comm::Bucket bucket, bool last, comm::CommunicationThread::Done done);

  // Throws the failure of another rank that was noticed while the device waited for it, if there
  // was one: whoever has perhaps waited for the device asks. For who submits, between steps.
  void check_device() const;

  // The work on the current stream up to here, on tensors of `device`, waits for other ranks in a
  // collective that the caller has made with the group besides: should one of them fail there, this
  // device is freed, and check_device() throws. Between steps.
  void watch(at::Device device, const std::string& operation, std::uint64_t sequence);

  // The group of the exchange, a duplicate of the program's.
  const c10::intrusive_ptr<c10d::ProcessGroup>& group() const { return averager_.group(); }
  // Steps of which all buckets were submitted. Not thread-safe: for who submits.
  std::int64_t submitted_steps() const { return submitted_steps_; }

  CommunicationSummary summary() const;
  // How long the parts of a step take. The forward passes are told to it by who makes them.
  StepProfile profile() const { return clock_.profile(); }
  StepClock& clock() { return clock_; }
  // Makes the next step encode each layer of this rank once more, before it is averaged, and tell
  // what that gave. Not thread-safe: for who submits, between steps.
  void measure_layers() { measured_step_ = submitted_steps_; }
  // Of the last such step that has finished; empty before.
  std::vector<LayerReport> layer_reports() const;
  // The plan in use after warm-up; lgreco(...) and auto change it now and then.
  comm::Plan plan() const;
  // What that plan was solved from; null without lgreco(...) and before its first plan.
  std::shared_ptr<const lgreco::SolvedPlan> allocation() const;

  // Only between steps: after the last backward pass has returned and before the next begins. A
  // model with the parameters of then, the same world and options, and this state goes on with the
  // same bits where its buckets are the same: without find_unused_parameters LibTorch's Reducer
  // orders them anew after a first step, and what a rank kept of ranges that it no longer owns is
  // paid back in that step.
  GradientState state() const;
  // The same, of tensors that may lie in this exchange's own memory: valid until its next step
  // begins, for who writes or copies them before that.
  GradientState state_in_place() const;
  // Collective. Throws InvalidArgument, on every rank and before anything is changed, where a
  // rank's state is not of this model, compression and number of ranks, or the ranks' states are of
  // different steps or plans.
  // `more` checks what else the program loads with it and gives, as text, what must be equal of it.
  void load_state(const GradientState& state, const std::function<std::string()>& more = {});

  // For ranks that may change, see Note [Changing worlds]. All averages from here to the next call
  // belong to one step, which leave() can take back. Costs a copy of the residuals a step. Between
  // steps; throws what an exchange before it threw.
  void begin_step();
  // After the last bucket of such a step: returns when all ranks have made it on their devices too,
  // and throws where they have not, so that nothing is done with means that are none. At once
  // without device memory, and where begin_step() was never called.
  void wait_for_device();
  // Ends the exchange for good and returns what it has carried so far; with `undo` what it had when
  // the step began. Not collective, and all there is left to do after a failure.
  detail::SavedGradients leave(bool undo);

 private:
  GradientExchange(const c10::intrusive_ptr<c10d::ProcessGroup>& group, const std::string& name,
                   const std::string& model, const std::vector<LayerInfo>& layers,
                   CompressionOptions options, Timeline* timeline,
                   comm::CommunicationThreadOptions thread, at::Device device);
  // Null where no profiler listens.
  using Profiled = std::shared_ptr<const at::ThreadLocalState>;
  // A bucket whose messages are all on their way, and whom to tell of its mean.
  struct InFlight {
    comm::BucketInFlight* bucket;
    std::int64_t step;
    std::size_t index;
    comm::CommunicationThread::Done done;
    Profiled profiled;
  };
  void exchange(comm::Bucket bucket, bool last, std::int64_t step,
                const comm::CommunicationThread::Done& done, const Profiled& profiled);
  // Of the bucket that is in flight, if any; with a failure of another it cannot be finished.
  void finish_in_flight(const std::exception_ptr& failure);
  void submit_on_device(comm::Bucket bucket, bool last, std::int64_t step,
                        comm::CommunicationThread::Done done);
  void average_on_device(comm::Bucket bucket, bool last, std::int64_t step);
  // Looks at the gradients before they are averaged where the plan depends on them.
  const comm::Plan& plan_at(const comm::Bucket& bucket, std::int64_t step);
  void measure(const comm::Bucket& bucket, const comm::Plan& plan);
  bool adapt_plan(std::int64_t step);
  void finish_step(std::int64_t step);
  // What is under way of lgreco's next plan begins anew in another world. saved_besides(): without
  // the averager's state.
  detail::SavedGradients saved_besides(bool with_next_plan) const;
  detail::SavedGradients saved_now(bool with_next_plan) const;

  const std::string name_;
  std::uint64_t loads_ = 0;
  std::map<std::string, std::int64_t, std::less<>> numel_of_layer_;
  const CompressionOptions options_;
  const comm::Plan uncompressed_;
  const CompressionPlan start_;  // the plan at the start
  Timeline* timeline_;
  StepClock clock_;
  const std::optional<comm::LinkModel> link_;
  comm::BucketAverager averager_;
  // At most one of them, else the plan stays.
  const std::unique_ptr<AdaptivePlan> adaptive_;
  const std::unique_ptr<AutomaticPlan> automatic_;
  const std::int64_t warmup_steps_;
  std::int64_t submitted_steps_ = 0;
  std::int64_t steps_at_mark_ = -1;  // -1: begin_step() was never called
  std::atomic<std::int64_t> measured_step_ = -1;
  std::vector<LayerReport> measuring_;  // of the communication thread alone
  std::optional<Timeline::Clock::time_point> began_;
  std::optional<InFlight> in_flight_;  // of the communication thread alone
  std::optional<c10::Stream> device_stream_;
  std::exception_ptr device_failure_;  // of the first bucket that could not be averaged at once
  comm::Traffic at_last_step_;
  mutable std::mutex mutex_;
  CommunicationSummary summary_;
  std::vector<LayerReport> layer_reports_;
  // What others than the communication thread see of adaptive_ and automatic_.
  std::shared_ptr<const comm::Plan> current_plan_;
  std::shared_ptr<const lgreco::SolvedPlan> allocation_;
  // Last, so that it is destroyed first: its jobs use everything above.
  std::unique_ptr<comm::CommunicationThread> thread_;
};

}  // namespace thinwire
