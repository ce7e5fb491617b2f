// What a DataParallelEngine is in one world: its Reducer, hooks and exchange over one group.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/logger.hpp>

#include "thinwire/comm/failure/guard.h"
#include "thinwire/torch_ext/ddp/backward_watch.h"
#include "thinwire/torch_ext/ddp/comm_hook.h"
#include "thinwire/torch_ext/ddp/data_parallel_engine.h"
#include "thinwire/torch_ext/ddp/model_reducer.h"
#include "thinwire/torch_ext/ddp/model_tensors.h"
#include "thinwire/torch_ext/ddp/uneven_inputs.h"

namespace thinwire::detail {

class DataParallelEngine::State final : public BackwardListener {
 public:
  State(std::shared_ptr<torch::nn::Module> module, c10::intrusive_ptr<c10d::ProcessGroup> group,
        DistributedDataParallelOptions options);
  ~State() override;

  void before_forward();
  void after_forward(const std::vector<at::Tensor*>& results);
  void zero_grad(bool set_to_none);

  void backward_begins(const ForwardPass* forward) override;
  void gradient_arrives(std::size_t parameter) override;
  void backward_ends(const std::vector<bool>& reached) override;

  void take_part_until_all_end();
  bool replicas_equal();
  GradientState state() const;
  GradientState state_in_place() const;
  void load_state(const GradientState& state);

  // See Note [Changing worlds]. What leave() returns has no other use for this object; `undo` as
  // GradientExchange::leave(), and for buffers.
  void begin_step();
  GradientState leave(bool undo);

  std::shared_ptr<GradientExchange> exchange;
  std::optional<ModelTensors> tensors;
  std::optional<UnevenInputs> join;
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  bool sync = true;

 private:
  void make_reducer();
  void broadcast(const std::vector<at::Tensor>& values, int root, const char* what);
  bool finds_unused() const { return options_.find_unused_parameters && !options_.static_graph; }
  bool broadcasts_buffers() const;
  void check_backward(const ForwardPass* forward);
  GradientState with_order_of_buckets(GradientState state) const;
  void compare_replicas();
  void take_part(const UnevenInputs::Round& round);
  void take_part_in_backward(const UnevenInputs::Round& round);
  std::string missing(const std::vector<bool>& reached) const;

  // Does what may fail on this rank alone while others wait for it.
  template <typename Action>
  void guarded(const char* operation, const Action& action) {
    comm::guard(*group, operation, 0, action);
  }

  std::shared_ptr<torch::nn::Module> module_;
  // The group for the collectives that c10d makes and waits for itself.
  c10::intrusive_ptr<c10d::ProcessGroup> watched_;
  DistributedDataParallelOptions options_;
  // The watch before the Reducer, for its hooks have to be the first.
  std::shared_ptr<BackwardWatch> watch_;
  std::shared_ptr<ModelReducer> reducer_;
  // The Reducer reports to it, also when a program asks for nothing.
  std::shared_ptr<c10d::Logger> logger_;
  CompressionHook* hook_ = nullptr;  // the Reducer's

  std::int64_t forwards_ = 0;
  std::int64_t prepared_for_ = 0;  // the forward pass that the Reducer expects the backward of
  bool static_graph_begun_ = false;
  bool averaging_ = false;  // the backward pass under way
  std::int64_t steps_before_ = 0;
  std::uint64_t comparisons_ = 0;
  std::int64_t synchronised_forwards_ = 0;
  const int exceptions_ = std::uncaught_exceptions();
  std::vector<at::Tensor> buffers_before_;  // at begin_step()
  bool has_left_ = false;
};

}  // namespace thinwire::detail
