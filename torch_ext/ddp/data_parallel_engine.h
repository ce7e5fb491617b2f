// All of DistributedDataParallel that does not depend on the module's type.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <torch/nn/module.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "thinwire/torch_ext/ddp/gradient_exchange.h"
#include "thinwire/torch_ext/ddp/options.h"

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
  void load_state(const GradientState& state);

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace thinwire::detail
