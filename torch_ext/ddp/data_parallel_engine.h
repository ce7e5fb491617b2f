// All of DistributedDataParallel that does not depend on the module's type.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <torch/nn/module.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/torch_ext/ddp/gradient_exchange.h"
#include "thinwire/torch_ext/ddp/options.h"
#include "thinwire/torch_ext/elastic/move.h"

namespace thinwire::detail {

// Not thread-safe.
class DataParallelEngine {
 public:
  // Collective, see DistributedDataParallel.
  DataParallelEngine(std::shared_ptr<torch::nn::Module> module,
                     c10::intrusive_ptr<c10d::ProcessGroup> group,
                     DistributedDataParallelOptions options);
  ~DataParallelEngine();

  void before_forward();
  // `results` are the tensors in what forward() returned. With find_unused_parameters they are
  // replaced by copies.
  void after_forward(const std::vector<at::Tensor*>& results);
  void zero_grad(bool set_to_none);
  void set_sync(bool sync);
  bool sync() const;

  // Around a loop over inputs; take_part_until_all_end() after it, abandon_join() if it threw.
  void begin_join(const JoinOptions& options);
  void take_part_until_all_end();
  void abandon_join();

  GradientExchange& exchange();
  const GradientExchange& exchange() const;
  std::uint32_t parameters_crc32c() const;
  bool replicas_equal();
  GradientState state() const;
  GradientState state_in_place() const;
  void load_state(const GradientState& state);

  // See Movable and Note [Changing worlds].
  void begin_step();
  void end_step();
  std::int64_t finished_steps() const { return finished_steps_; }
  void leave(Standing standing);
  NamedTensors shared_state() const;
  void take_over(const NamedTensors& of_rank_0);
  void arrive(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
              std::chrono::milliseconds timeout);

 private:
  class State;

  const std::shared_ptr<torch::nn::Module> module_;
  const DistributedDataParallelOptions options_;
  std::unique_ptr<State> state_;  // null between two worlds
  Standing standing_ = Standing::kGoesOn;
  // What this rank carries from one world to the next, until it has arrived.
  GradientState carried_;
  // Where it is behind: what it carries should it have to make the step again after all.
  std::optional<GradientState> before_step_;
  bool sync_ = true;
  std::int64_t finished_steps_ = 0;
};

}  // namespace thinwire::detail
