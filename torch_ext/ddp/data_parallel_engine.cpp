#include "thinwire/torch_ext/ddp/data_parallel_engine.h"

#include <utility>
#include <vector>

#include "thinwire/comm/backend/abandon.h"
#include "thinwire/comm/state/names.h"
#include "thinwire/torch_ext/ddp/data_parallel_state.h"

namespace thinwire::detail {
namespace {

GradientState for_world(GradientState state, int world) {
  auto order = state.extract(kBucketsName);
  SavedGradients saved = taken_apart(state);
  saved.world = world;
  saved.averager = comm::for_world(std::move(saved.averager), world);
  GradientState changed = put_together(saved);
  changed.insert(std::move(order));
  return changed;
}

}  // namespace

DataParallelEngine::DataParallelEngine(std::shared_ptr<torch::nn::Module> module,
                                       c10::intrusive_ptr<c10d::ProcessGroup> group,
                                       DistributedDataParallelOptions options)
    : module_(std::move(module)),
      options_(std::move(options)),
      state_(std::make_unique<State>(module_, std::move(group), options_)) {}

DataParallelEngine::~DataParallelEngine() = default;

void DataParallelEngine::before_forward() {
  state_->before_forward();
}
void DataParallelEngine::after_forward(const std::vector<at::Tensor*>& results) {
  state_->after_forward(results);
}
void DataParallelEngine::zero_grad(bool set_to_none) {
  state_->zero_grad(set_to_none);
}
void DataParallelEngine::set_sync(bool sync) {
  state_->sync = sync;
}
bool DataParallelEngine::sync() const {
  return state_->sync;
}
void DataParallelEngine::begin_join(const JoinOptions& options) {
  check(!state_->join, "join() within join()");
  state_->join.emplace(state_->group, options);
}
void DataParallelEngine::take_part_until_all_end() {
  state_->take_part_until_all_end();
}
void DataParallelEngine::abandon_join() {
  state_->join.reset();
}
GradientExchange& DataParallelEngine::exchange() {
  return *state_->exchange;
}
const GradientExchange& DataParallelEngine::exchange() const {
  return *state_->exchange;
}
std::uint32_t DataParallelEngine::parameters_crc32c() const {
  return state_->tensors->crc32c();
}
GradientState DataParallelEngine::state() const {
  return state_->state();
}
GradientState DataParallelEngine::state_in_place() const {
  return state_->state_in_place();
}
void DataParallelEngine::load_state(const GradientState& state) {
  state_->load_state(state);
}
bool DataParallelEngine::replicas_equal() {
  return state_->replicas_equal();
}

void DataParallelEngine::begin_step() {
  state_->begin_step();
}

void DataParallelEngine::end_step() {
  finished_steps_ = state_->exchange->submitted_steps();
}

void DataParallelEngine::leave(Standing standing) {
  standing_ = standing;
  if (!state_) {
    // Those that it was behind are gone before it had their step.
    if (standing == Standing::kRepeats && before_step_)
      carried_ = *std::exchange(before_step_, std::nullopt);
    return;
  }
  // What holds a group lives on until nothing is under way in it.
  auto exchange = state_->exchange;
  auto groups = std::make_shared<std::vector<c10::intrusive_ptr<c10d::ProcessGroup>>>();
  *groups = {state_->group, exchange->group()};
  for (const auto& group : *groups) comm::abandon(*group);
  before_step_.reset();
  carried_ = state_->leave(/*undo=*/standing == Standing::kRepeats);
  if (standing == Standing::kBehind) before_step_ = state_->leave(/*undo=*/true);
  sync_ = state_->sync;
  state_.reset();
  comm::retire(std::move(exchange));
  comm::retire(std::move(groups));
}

NamedTensors DataParallelEngine::shared_state() const {
  return shared_part(carried_);
}

void DataParallelEngine::take_over(const NamedTensors& of_rank_0) {
  carried_ = with_shared_part(of_rank_0, carried_, standing_);
  before_step_.reset();
}

void DataParallelEngine::arrive(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                                std::chrono::milliseconds timeout) {
  auto state = std::make_unique<State>(module_, group, options_);
  state->load_state(for_world(carried_, group->getSize()));
  comm::set_timeout(*state->exchange->group(), timeout);
  state->sync = sync_;
  state_ = std::move(state);
  finished_steps_ = state_->exchange->submitted_steps();
}

}  // namespace thinwire::detail
