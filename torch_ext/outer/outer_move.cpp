// An OuterOptimizer on its way to another world, see Note [Changing worlds].
#include <ATen/core/grad_mode.h>
#include <ATen/ops/scalar_tensor.h>

#include <memory>
#include <utility>

#include "thinwire/comm/backend/abandon.h"
#include "thinwire/comm/failure/agreement.h"
#include "thinwire/comm/join/next_name.h"
#include "thinwire/torch_ext/outer/outer_optimizer.h"

namespace thinwire {
namespace {

constexpr const char* kLearningRate = "learning_rate";

}  // namespace

void OuterOptimizer::leave(Standing standing) {
  standing_ = standing;
  if (!averager_) {
    // Those that it was behind are gone before it had their step.
    if (standing == Standing::kRepeats && before_step_)
      carried_ = *std::exchange(before_step_, std::nullopt);
    return;
  }
  comm::abandon(*averager_->group());
  averager_->abandon();
  const auto undo = [this] {
    if (repeat_ == Repeat::kOuterStep) averager_->undo();
  };
  before_step_.reset();
  if (standing == Standing::kRepeats) undo();
  carried_ = detail::state_of(saved_now());
  if (standing == Standing::kBehind) {
    undo();
    before_step_ = detail::state_of(saved_now());
  }
  comm::retire(std::shared_ptr<comm::BucketAverager>(std::move(averager_)));
}

NamedTensors OuterOptimizer::shared_state() const {
  NamedTensors shared = detail::shared_part(carried_);
  // What set_learning_rate() has said so far.
  shared.emplace(kLearningRate, at::scalar_tensor(outer_.learning_rate, at::kDouble));
  return shared;
}

void OuterOptimizer::take_over(const NamedTensors& of_rank_0) {
  OuterState shared = of_rank_0;
  outer_.learning_rate = shared.extract(kLearningRate).mapped().item<double>();
  carried_ = detail::with_shared_part(shared, carried_, standing_);
  before_step_.reset();
  if (standing_ < Standing::kBehind) return;
  begins_at_meeting_ = true;
  repeat_ = standing_ == Standing::kBehind ? Repeat::kNoMore : Repeat::kNothing;
}

void OuterOptimizer::arrive(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                            std::chrono::milliseconds timeout) {
  const at::NoGradGuard no_grad;
  name_ = comm::next_name(*group, "outer");
  loads_ = 0;  // with this name; a new rank has loaded less often
  comm::agree_on_result(*group, name_ + "/module", "the module",
                        [&] { return parameters_.description(); });
  agree_on_options(*group);
  check_device(*group);
  auto averager = make_averager(group);
  detail::SavedOuter carried = detail::outer_of(carried_);
  carried.world = group->getSize();
  carried.averager = comm::for_world(std::move(carried.averager), group->getSize());
  const std::int64_t inner_steps = summary_.inner_steps;
  averager_ = std::move(averager);
  try {
    load_state(detail::state_of(carried));
  } catch (...) {
    comm::retire(std::shared_ptr<comm::BucketAverager>(std::move(averager_)));
    throw;
  }
  comm::set_timeout(*averager_->group(), timeout);
  if (std::exchange(begins_at_meeting_, false)) write_parameters();
  // Between two meetings each rank counts for itself.
  if (standing_ != Standing::kNew) summary_.inner_steps = inner_steps;
}

}  // namespace thinwire
