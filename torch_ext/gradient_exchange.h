// The gradients of one model on their way to the other ranks.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/communication_thread.h"
#include "thinwire/comm/reductions/bucket_averager.h"
#include "thinwire/torch_ext/compression.h"

namespace thinwire {

// What one rank has sent, over finished steps.
struct CommunicationSummary {
  std::int64_t steps = 0;
  std::int64_t warmup_steps = 0;  // of these, sent uncompressed
  comm::WireUse total;            // all steps
  comm::WireUse after_warmup;     // without the warm-up steps

  double wire_bytes_per_step() const;  // mean over the steps after warm-up, else over all
  double dense_bytes_per_step() const;
  // Uncompressed bytes over sent bytes, over the same steps.
  double ratio() const;
};

// Averages buckets on a communication thread of its own, over a duplicate of the program's group,
// so that its messages cannot interleave with the program's. Buckets must be submitted in the same
// order on every rank. submit() and summary() are thread-safe.
class GradientExchange {
 public:
  // `layers` are the model's parameters in order, `model` describes the whole model, a line a
  // tensor. Collective: duplicates the group and makes sure that all ranks have the same model and
  // the same plan (else InvalidArgument on every rank, naming the first difference).
  GradientExchange(const c10::intrusive_ptr<c10d::ProcessGroup>& group, const std::string& model,
                   const std::vector<LayerInfo>& layers, CompressionOptions options,
                   Timeline* timeline = nullptr);

  // Averages `bucket` in place, then calls `done` on the communication thread, with the exception
  // if there was one. `last` marks the last bucket of a step.
  void submit(comm::Bucket bucket, bool last, comm::CommunicationThread::Done done);

  // Waits for everything submitted so far; rethrows the first exception.
  void drain() { thread_->drain(); }

  CommunicationSummary summary() const;
  const comm::Plan& plan() const { return plan_; }

 private:
  GradientExchange(const c10::intrusive_ptr<c10d::ProcessGroup>& group, const std::string& name,
                   const std::string& model, const std::vector<LayerInfo>& layers,
                   CompressionOptions options, Timeline* timeline);
  void finish_step();

  const CompressionOptions options_;
  const comm::Plan uncompressed_;
  comm::Plan plan_;
  Timeline* timeline_;
  comm::BucketAverager averager_;
  std::int64_t submitted_steps_ = 0;
  comm::WireUse at_last_step_;
  mutable std::mutex mutex_;
  CommunicationSummary summary_;
  // Last, so that it is destroyed first: its jobs use everything above.
  std::unique_ptr<comm::CommunicationThread> thread_;
};

}  // namespace thinwire
