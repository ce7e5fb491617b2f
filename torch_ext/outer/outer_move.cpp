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

void OuterOptimizer::leave(const Move& move) {
  comm::abandon(*averager_->group());
  if (move.standing == Standing::kRepeats && repeat_ == Repeat::kOuterStep) averager_->undo();
  detail::SavedOuter saved = saved_now();
  saved.averager = comm::for_world(std::move(saved.averager), move.group->getSize());
  carried_ = detail::state_of(saved);
  comm::retire(std::shared_ptr<comm::BucketAverager>(std::move(averager_)));
}

void OuterOptimizer::move_to(const Move& move) {
  const at::NoGradGuard no_grad;
  if (averager_) leave(move);
  // What set_learning_rate() has said so far.
  const OuterState rates = detail::tensors_of_rank_0(
      move.group, {{"learning_rate", at::scalar_tensor(outer_.learning_rate, at::kDouble)}},
      "moving the outer optimizer");
  outer_.learning_rate = rates.at("learning_rate").item<double>();
  name_ = comm::next_name(*move.group, "outer");
  loads_ = 0;  // with this name; a new rank has loaded less often
  comm::agree_on_result(*move.group, name_ + "/module", "the module",
                        [&] { return parameters_.description(); });
  agree_on_options(*move.group);
  auto averager = make_averager(move.group);
  OuterState carried = detail::carried_over(move, carried_, "moving the outer optimizer");
  const std::int64_t inner_steps = summary_.inner_steps;
  averager_ = std::move(averager);
  try {
    load_state(carried);
  } catch (...) {
    comm::retire(std::shared_ptr<comm::BucketAverager>(std::move(averager_)));
    throw;
  }
  comm::set_timeout(*averager_->group(), move.timeout);
  if (move.takes_over()) {
    write_parameters();
    repeat_ = move.standing == Standing::kBehind ? Repeat::kNoMore : Repeat::kNothing;
  }
  // Between two meetings each rank counts for itself.
  if (move.standing != Standing::kNew) summary_.inner_steps = inner_steps;
}

}  // namespace thinwire
