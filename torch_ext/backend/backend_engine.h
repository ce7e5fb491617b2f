// What a CompressedBackend that compresses owns besides the backend that it wraps.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/comm/average/bucket_averager.h"
#include "thinwire/comm/average/communication_thread.h"
#include "thinwire/torch_ext/backend/backend_options.h"
#include "thinwire/torch_ext/backend/call_board.h"
#include "thinwire/torch_ext/backend/coded_collectives.h"

namespace thinwire::detail {

// Makes the coded calls, one after another, on its thread. submit(), drain() and load_state() are
// for the program's threads, everything else is called in jobs.
class BackendEngine {
 public:
  // `group` is over the wrapped backend. Collective: duplicates it.
  BackendEngine(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                const BackendSettings& settings);

  void submit(std::function<void()> job, comm::CommunicationThread::Done done) {
    thread_->submit(std::move(job), std::move(done));
  }
  // Returns when all jobs submitted before have ended; throws what the first one threw that did.
  void drain();
  // On the thread, after the jobs submitted before.
  void on_thread(const std::function<void()>& job);

  // Replaces the tensors, all of one type, by their sums (or means) over the ranks; `key` of the
  // feedback, empty for none. Returns the bytes sent.
  std::uint64_t all_reduce(const std::vector<at::Tensor>& tensors, bool mean,
                           const std::string& key);
  CodedCollectives& collectives() { return collectives_; }
  // A number for the next call under a key, or without one: from 0, the same on all ranks.
  std::uint64_t next_step(const std::string& key) { return steps_[key]++; }

  std::map<std::string, at::Tensor> state() const;
  // Collective: throws InvalidArgument, on every rank, for a tensor that state() does not give, and
  // where ranks bring states that do not belong together. Nothing has changed then.
  void load_state(const std::map<std::string, at::Tensor>& state);

  const std::shared_ptr<CallBoard>& board() const { return board_; }
  const c10::intrusive_ptr<c10d::ProcessGroup>& duplicate() const { return duplicate_; }

 private:
  comm::Bucket bucket_of(const std::vector<at::Tensor>& tensors, const std::string& key,
                         comm::Plan& plan) const;
  comm::BucketAverager& plain_averager(const std::string& shapes);

  const BackendSettings& settings_;
  const std::shared_ptr<CallBoard> board_;
  const c10::intrusive_ptr<c10d::ProcessGroup> duplicate_;
  CodedCollectives collectives_;
  comm::BucketAverager averager_;  // of the calls with a key
  comm::Plan plan_;
  // Of the others; see plain_averager().
  std::unique_ptr<comm::BucketAverager> plain_;
  comm::Plan plain_plan_;
  std::map<std::string, int> plain_shapes_;
  std::map<std::string, std::uint64_t> steps_;
  std::uint64_t calls_ = 0;  // of all_reduce()
  // Last, so that it ends first.
  std::unique_ptr<comm::CommunicationThread> thread_;
};

}  // namespace thinwire::detail
