#include "thinwire/torch_ext/ddp/data_parallel_state.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <algorithm>
#include <exception>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "thinwire/comm/failure/agreement.h"
#include "thinwire/comm/failure/backward_failure.h"
#include "thinwire/comm/failure/departure.h"
#include "thinwire/comm/failure/watched_group.h"
#include "thinwire/comm/join/next_name.h"
#include "thinwire/comm/state/names.h"
#include "thinwire/common/env.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/cuda/cuda_module.h"
#include "thinwire/torch_ext/ddp/joined_results.h"
#include "thinwire/torch_ext/ddp/replica_check.h"

namespace thinwire::detail {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;
// PyTorch's: a small first bucket lets the exchange begin early in the backward pass.
constexpr std::size_t kFirstBucketBytes = std::size_t{1} << 20;
// Looking through the whole module costs as much as ten small kernels, so only some forward passes
// do it once training is under way.
constexpr std::int64_t kLookAlways = 4, kLookEvery = 16;

// A line an option that decides which collectives are made.
std::string options_text(const DistributedDataParallelOptions& options) {
  const auto yes = [](bool value) { return value ? "true" : "false"; };
  return concat("bucket_cap_mb ", options.bucket_cap_mb, "\nbroadcast_buffers ",
                yes(options.broadcast_buffers), "\nfind_unused_parameters ",
                yes(options.find_unused_parameters), "\ngradient_as_bucket_view ",
                yes(options.gradient_as_bucket_view), "\nstatic_graph ", yes(options.static_graph),
                "\n");
}

}  // namespace

DataParallelEngine::State::State(std::shared_ptr<torch::nn::Module> module,
                                 c10::intrusive_ptr<c10d::ProcessGroup> the_group,
                                 DistributedDataParallelOptions options)
    : group(std::move(the_group)), module_(std::move(module)), options_(std::move(options)) {
  check(group != nullptr, "DistributedDataParallel needs a process group, got a null pointer");
  watched_ = comm::watched(group);
  if (group->getSize() > 1) comm::prepare_for_backward_failures();
  comm::take_back_departure(*group);
  const comm::CommunicationThreadOptions thread_options{options_.communication_threads,
                                                        options_.communication_cpus};
  comm::agree_on_result(*group, comm::next_name(*group, "ddp"),
                        "the model and the options of DistributedDataParallel", [&] {
                          check(options_.bucket_cap_mb > 0, "bucket_cap_mb must be positive, got ",
                                options_.bucket_cap_mb);
                          tensors.emplace(module_, options_.ignored_parameters);
                          if (tensors->device().is_cuda()) CudaModule::get();
                          // One that cannot be made is to be noticed before anybody waits for this
                          // rank.
                          const comm::CommunicationThread probe(thread_options);
                          return tensors->description() + options_text(options_);
                        });
  exchange = std::make_shared<GradientExchange>(group, /*model=*/"", tensors->layers(),
                                                options_.compression, options_.timeline,
                                                thread_options, tensors->device());
  broadcast(tensors->parameters(), /*root=*/0, "model");
  broadcast(tensors->buffers(), /*root=*/0, "model");
  guarded("building the Reducer", [&] { make_reducer(); });
}

DataParallelEngine::State::~State() {
  if (!reducer_) return;  // the constructor has failed, and said why
  const std::string reason =
      concat(has_left_                                  ? "it went on in another world after "
             : std::uncaught_exceptions() > exceptions_ ? "an exception ended its training after "
                                                        : "it ended its training after ",
             exchange->submitted_steps(), " steps");
  comm::say_departure(*group, reason);
  comm::say_departure(*exchange->group(), reason);
}

void DataParallelEngine::State::make_reducer() {
  const std::vector<at::Tensor> parameters = tensors->trained_tensors();
  std::unordered_map<const c10::TensorImpl*, std::string> names;
  std::unordered_map<std::size_t, std::string> names_by_index;
  for (const NamedTensor& item : tensors->trained()) {
    names_by_index.emplace(names.size(), item.name);
    names.emplace(item.tensor.unsafeGetTensorImpl(), item.name);
  }
  watch_ = std::make_shared<BackwardWatch>(parameters, *this);
  const auto bucket_bytes =
      static_cast<std::size_t>(options_.bucket_cap_mb * static_cast<double>(kMiB));
  const std::size_t first_bytes = std::min(kFirstBucketBytes, bucket_bytes);
  auto buckets =
      std::get<0>(c10d::compute_bucket_assignment_by_size(parameters, {first_bytes, bucket_bytes}));
  // The assignment is in order of the parameters; gradients become ready in about the reverse.
  std::reverse(buckets.begin(), buckets.end());
  reducer_ = std::make_shared<ModelReducer>(
      parameters, std::move(buckets), watched_,
      /*expect_sparse_gradients=*/std::vector<bool>(parameters.size(), false),
      static_cast<std::int64_t>(bucket_bytes), options_.find_unused_parameters,
      options_.gradient_as_bucket_view, std::move(names_by_index),
      static_cast<std::int64_t>(first_bytes),
      /*skip_all_reduce_unused_params=*/false, /*use_python_reducer=*/false,
      /*bucket_bytes_cap_list=*/std::vector<std::int64_t>{});
  logger_ = std::make_shared<c10d::Logger>(reducer_);
  logger_->set_construction_data_and_log(module_->name(), /*device_ids=*/{}, /*output_device=*/-1,
                                         options_.broadcast_buffers, /*has_sync_bn=*/false,
                                         options_.static_graph);
  reducer_->set_logger(logger_);
  auto hook = std::make_unique<CompressionHook>(
      exchange, std::move(names), options_.find_unused_parameters || options_.static_graph,
      locally_used(*reducer_));
  hook_ = hook.get();
  reducer_->register_comm_hook(std::move(hook));
  if (options_.static_graph) reducer_->set_static_graph();
}

void DataParallelEngine::State::broadcast(const std::vector<at::Tensor>& values, int root,
                                          const char* what) {
  comm::broadcast(watched_, values, root, concat("broadcast of the ", what),
                  static_cast<std::uint64_t>(forwards_));
}

bool DataParallelEngine::State::broadcasts_buffers() const {
  return options_.broadcast_buffers && module_->is_training();
}

void DataParallelEngine::State::before_forward() {
  if (!at::GradMode::is_enabled()) return;
  exchange->check_device();
  watch_->forget_pass();
  exchange->clock().forward_begins();
  ++forwards_;
  guarded("the forward pass", [&] {
    tensors->check_unchanged(forwards_ <= kLookAlways || forwards_ % kLookEvery == 0);
  });
  compare_replicas();
  int root = 0;
  if (join) {
    root = join->meet(UnevenInputs::Event::kForward, sync, broadcasts_buffers()).first_active;
  }
  if (sync) {
    guarded("agreement on the buckets", [&] { reducer_->rebuild_buckets(); });
    reducer_->prepare_for_forward();
  }
  if (!broadcasts_buffers() || tensors->buffers().empty()) return;
  broadcast(tensors->buffers(), root, "buffers");
  exchange->watch(tensors->device(), "broadcast of the buffers",
                  static_cast<std::uint64_t>(forwards_));
}

// Averaged gradients do not show that a bit of one rank's weights has flipped: all ranks step by
// the same mean from weights that differ.
void DataParallelEngine::State::compare_replicas() {
  const int every = Env::get().check_replicas_every;
  // Within join() some ranks have no forward passes any more.
  if (every == 0 || !sync || join || ++synchronised_forwards_ % every != 0) return;
  check_replicas(*group, tensors->shared(), ++comparisons_);
}

void DataParallelEngine::State::after_forward(const std::vector<at::Tensor*>& results) {
  if (!at::GradMode::is_enabled()) return;
  std::vector<at::Tensor> tensors_with_graph;
  const auto has_graph = [](const at::Tensor* result) { return result->grad_fn() != nullptr; };
  for (const at::Tensor* result : results)
    if (has_graph(result)) tensors_with_graph.push_back(*result);
  if (finds_unused() && !tensors_with_graph.empty()) {
    tensors_with_graph = joined_results(tensors_with_graph);
    auto next = tensors_with_graph.begin();
    for (at::Tensor* result : results)
      if (has_graph(result)) *result = *next++;
  }
  exchange->clock().forward_ends();
  const auto forward = std::make_shared<ForwardPass>();
  forward->number = forwards_;
  forward->sync = sync;
  for (const at::Tensor& tensor : tensors_with_graph)
    forward->roots.emplace_back(tensor.grad_fn(), tensor.output_nr());
  watch_->watch(tensors_with_graph, forward);
  if (!sync) return;
  reducer_->prepare_for_backward(finds_unused() ? tensors_with_graph : std::vector<at::Tensor>{});
  prepared_for_ = forward->number;
}

// What the Reducer would do wrong without a word.
void DataParallelEngine::State::check_backward(const ForwardPass* forward) {
  check(forward || !sync || reducer_->is_prepared(),
        "a backward pass gives gradients to parameters of DistributedDataParallel, but not through "
        "a result of its forward(), so they would not be averaged. Call forward() of "
        "DistributedDataParallel, not that of its module; make the backward pass of a term that "
        "needs no averaging within no_sync()");
  const bool averaged = forward ? forward->sync : reducer_->is_prepared();
  check(!averaged || !at::GradMode::is_enabled(),
        "backward() with create_graph=true through DistributedDataParallel: the averages over the "
        "ranks have no derivative. Take the gradients that are to be differentiated with "
        "torch::autograd::grad(), then call backward() once, without create_graph");
}

void DataParallelEngine::State::backward_begins(const ForwardPass* forward) {
  guarded("the backward pass", [&] { check_backward(forward); });
  averaging_ = forward ? forward->sync : reducer_->is_prepared();
  if (!averaging_) {
    // Prepared by another forward pass, whose backward pass is still to come.
    reducer_->skip_backward();
    return;
  }
  comm::tell_backward_failure(group, "the backward pass", static_cast<std::uint64_t>(forwards_));
  hook_->begin_step();
  hook_->set_scale(join ? join->scale(join->meet(UnevenInputs::Event::kBackward)) : 1);
  // One forward pass may have several backward passes, and several forward passes may come before
  // the first backward pass. The Reducer expects one of each in turn.
  const bool expected = reducer_->is_prepared() && (!forward || forward->number == prepared_for_);
  if (!expected && forward) {
    guarded("the backward pass", [&] {
      reducer_->prepare_for_backward(finds_unused() ? forward->results()
                                                    : std::vector<at::Tensor>{});
    });
    prepared_for_ = forward->number;
  }
  steps_before_ = exchange->submitted_steps();
  reducer_->begin_backward();
  if (options_.static_graph && !static_graph_begun_) reducer_->begin_static_graph();
}

void DataParallelEngine::State::gradient_arrives(std::size_t parameter) {
  const NamedTensor& item = tensors->trained()[parameter];
  if (!item.tensor.grad().defined() || item.tensor.grad().layout() == at::kStrided) return;
  guarded("the backward pass", [&] {
    throw InvalidArgument(concat("the gradient of parameter '", item.name, "' is ",
                                 item.tensor.grad().layout(),
                                 ", which is not averaged; make it dense, or name the parameter in "
                                 "ignored_parameters"));
  });
}

std::string DataParallelEngine::State::missing(const std::vector<bool>& reached) const {
  constexpr std::size_t kShown = 5;
  std::size_t count = 0;
  std::string names;
  for (std::size_t i = 0; i < reached.size(); ++i) {
    if (reached[i]) continue;
    const NamedTensor& item = tensors->trained()[i];
    if (++count > kShown) continue;
    names += concat(count == 1 ? "'" : ", '", item.name, "'",
                    item.tensor.requires_grad() ? "" : " (which no longer requires one)");
  }
  return concat(count, " of ", reached.size(), " parameters have got no gradient: ", names,
                count > kShown ? ", ..." : "");
}

void DataParallelEngine::State::backward_ends(const std::vector<bool>& reached) {
  if (!std::exchange(averaging_, false)) return;
  if (options_.static_graph && !static_graph_begun_) {
    static_graph_begun_ = true;
    guarded("averaging of the first step", [&] { reducer_->delay_all_reduce(); });
  }
  guarded("the backward pass", [&] {
    check(exchange->submitted_steps() > steps_before_,
          "a backward pass has ended without averaging all gradients, for ", missing(reached),
          options_.static_graph
              ? ". With static_graph every backward pass must reach the parameters that the first "
                "one reached, equally often"
              : ". Where a forward pass does not use all parameters, or the loss not all results "
                "of forward(), set find_unused_parameters; make the backward pass of a term that "
                "needs no averaging within no_sync()");
  });
  exchange->wait_for_device();
}

void DataParallelEngine::State::zero_grad(bool set_to_none) {
  std::unordered_set<const c10::TensorImpl*> views;
  if (options_.gradient_as_bucket_view)
    for (const NamedTensor& item : tensors->trained())
      views.insert(item.tensor.unsafeGetTensorImpl());
  for (const at::Tensor& parameter : module_->parameters()) {
    if (!parameter.grad().defined()) continue;
    // A view into its bucket stays; dropping it would cost the Reducer a copy.
    if (set_to_none && !views.contains(parameter.unsafeGetTensorImpl())) {
      parameter.mutable_grad().reset();
    } else {
      const at::NoGradGuard no_grad;
      parameter.mutable_grad().zero_();
    }
  }
}

void DataParallelEngine::State::take_part_until_all_end() {
  while (true) {
    const UnevenInputs::Round round = join->meet(UnevenInputs::Event::kNoInputs);
    if (round.active == 0) {
      // Ranks that ended early have not made the last steps.
      broadcast(tensors->parameters(), round.first_active, "model");
      if (options_.broadcast_buffers) broadcast(tensors->buffers(), round.first_active, "model");
      break;
    }
    take_part(round);
  }
  join.reset();
}

void DataParallelEngine::State::take_part(const UnevenInputs::Round& round) {
  if (round.event == UnevenInputs::Event::kBackward) {
    take_part_in_backward(round);
    return;
  }
  if (round.sync) guarded("agreement on the buckets", [&] { reducer_->rebuild_buckets(); });
  if (round.broadcast) broadcast(tensors->buffers(), round.first_active, "buffers");
}

void DataParallelEngine::State::take_part_in_backward(const UnevenInputs::Round& round) {
  guarded("the backward pass of other ranks", [&] {
    check(!options_.static_graph || static_graph_begun_,
          "with static_graph every rank must make a backward pass before it runs out of inputs");
    hook_->begin_step();
    hook_->set_scale(join->scale(round));
    std::vector<c10::intrusive_ptr<c10::ivalue::Future>> averages;
    for (c10d::GradBucket& bucket : reducer_->get_grad_buckets(/*return_zero_tensors=*/true))
      averages.push_back(reducer_->run_comm_hook(bucket));
    if (finds_unused()) {
      // The Reducer's own all-reduce, of which parameters were used.
      std::vector<at::Tensor> used = {
          at::zeros({static_cast<std::int64_t>(tensors->trained().size())},
                    at::TensorOptions(at::kInt).device(tensors->device()))};
      watched_->allreduce(used)->wait();
    }
    for (const auto& average : averages) average->waitAndThrow();
    reducer_->push_rebuilt_params_for_all_indices();
  });
}

bool DataParallelEngine::State::replicas_equal() {
  return comm::guard(*group, "comparing the replicas", ++comparisons_, [&] {
    const std::uint32_t mine = tensors->crc32c();
    exchange->check_device();
    return comm::HashAgreement(*group, comparisons_, mine).wait();
  });
}

void DataParallelEngine::State::begin_step() {
  exchange->begin_step();
  buffers_before_.clear();
  for (const at::Tensor& buffer : tensors->buffers()) buffers_before_.push_back(buffer.clone());
}

GradientState DataParallelEngine::State::leave(bool undo) {
  has_left_ = true;
  if (undo && !buffers_before_.empty()) {
    const at::NoGradGuard no_grad;
    const std::vector<at::Tensor> buffers = tensors->buffers();
    for (std::size_t i = 0; i < buffers.size(); ++i) buffers[i].copy_(buffers_before_[i]);
  }
  return with_order_of_buckets(put_together(exchange->leave(undo)));
}

GradientState DataParallelEngine::State::state() const {
  return with_order_of_buckets(exchange->state());
}

GradientState DataParallelEngine::State::state_in_place() const {
  return with_order_of_buckets(exchange->state_in_place());
}

GradientState DataParallelEngine::State::with_order_of_buckets(GradientState state) const {
  const std::vector<std::int64_t> order = reducer_->bucket_order();
  if (!order.empty()) state.emplace(kBucketsName, at::tensor(order, at::kLong));
  return state;
}

void DataParallelEngine::State::load_state(const GradientState& state) {
  GradientState of_exchange = state;
  const auto order = of_exchange.extract(kBucketsName);
  // None: saved before the first pass, or by a thinwire that did not save it. Then the Reducer
  // finds its own.
  std::vector<std::int64_t> buckets;
  exchange->load_state(of_exchange, [&] {
    if (order.empty()) return std::string("no order of buckets");
    const at::Tensor& numbers = order.mapped();
    check(numbers.scalar_type() == at::kLong && numbers.dim() == 1, "'", kBucketsName,
          "' of a saved state must be int64 of one dimension");
    const at::Tensor whole = numbers.contiguous();
    const auto* begin = whole.const_data_ptr<std::int64_t>();
    buckets = {begin, begin + whole.numel()};
    reducer_->check_bucket_order(buckets);
    std::string text = "order of buckets";
    for (const std::int64_t parameter : buckets) text += concat(" ", parameter);
    return text;
  });
  if (!buckets.empty())
    guarded("loading the saved state", [&] { reducer_->restore_bucket_order(buckets); });
}

}  // namespace thinwire::detail
