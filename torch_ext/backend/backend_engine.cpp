#include "thinwire/torch_ext/backend/backend_engine.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <xxhash.h>

#include <utility>

#include "thinwire/comm/average/state_tensors.h"
#include "thinwire/comm/backend/process_group.h"
#include "thinwire/comm/failure/agreement.h"
#include "thinwire/comm/failure/guard.h"
#include "thinwire/comm/join/next_name.h"
#include "thinwire/common/error.h"

namespace thinwire::detail {
namespace {

// An averager keeps buffers for every list of shapes that it has met. DDP's and FSDP's calls have
// few; a program whose calls have ever new ones must not fill memory with them.
constexpr std::size_t kShapesKept = 64;

constexpr const char* kAveragerPrefix = "all_reduce/";
constexpr const char* kCollectivesPrefix = "parts/";
constexpr const char* kStepsPrefix = "steps/";

comm::LayerSetting without_feedback(comm::LayerSetting setting) {
  setting.feedback.mode = ErrorFeedbackOptions::Mode::kOff;
  setting.feedback.second_residual = ErrorFeedbackOptions::Mode::kOff;
  return setting;
}

}  // namespace

BackendEngine::BackendEngine(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                             const BackendSettings& settings)
    : settings_(settings),
      board_(std::make_shared<CallBoard>(group)),
      duplicate_(comm::duplicate(group, "compressed")),
      collectives_(duplicate_, settings.seed),
      averager_(duplicate_, {.seed = settings.seed}),
      thread_(std::make_unique<comm::CommunicationThread>()) {}

void BackendEngine::on_thread(const std::function<void()>& job) {
  thread_->call(job);
}

void BackendEngine::drain() {
  on_thread([] {});
}

comm::BucketAverager& BackendEngine::plain_averager(const std::string& shapes) {
  plain_shapes_.try_emplace(shapes, 0);
  if (!plain_ || plain_shapes_.size() > kShapesKept) {
    // Nothing is carried from call to call, so any rank may begin anew; all do at the same call.
    plain_ = std::make_unique<comm::BucketAverager>(duplicate_,
                                                    comm::AveragerOptions{.seed = settings_.seed});
    plain_shapes_ = {{shapes, 0}};
  }
  return *plain_;
}

comm::Bucket BackendEngine::bucket_of(const std::vector<at::Tensor>& tensors,
                                      const std::string& key, comm::Plan& plan) const {
  comm::Bucket bucket;
  std::vector<at::Tensor> flat;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor& tensor = tensors[i];
    const std::string name =
        tensors.size() == 1 ? (key.empty() ? "0" : key) : concat(key, key.empty() ? "" : "/", i);
    if (!plan.layers().contains(name)) {
      plan.set(name, key.empty() ? without_feedback(settings_.reduce) : settings_.reduce);
    }
    const std::int64_t offset =
        bucket.layers.empty() ? 0 : bucket.layers.back().offset + bucket.layers.back().numel();
    bucket.layers.push_back({name, offset, tensor.sizes().vec()});
    flat.push_back(tensor.detach().contiguous().view({-1}));
  }
  bucket.buffer = flat.size() == 1 ? flat.front() : at::cat(flat);
  return bucket;
}

std::uint64_t BackendEngine::all_reduce(const std::vector<at::Tensor>& tensors, bool mean,
                                        const std::string& key) {
  const at::NoGradGuard no_grad;
  constexpr const char* kOperation = "all_reduce";
  comm::Plan& plan = key.empty() ? plain_plan_ : plan_;
  std::string shapes = toString(tensors.front().scalar_type());
  for (const at::Tensor& tensor : tensors) shapes += concat(" ", tensor.sizes());
  comm::Bucket bucket =
      comm::guard(*duplicate_, kOperation, calls_, [&] { return bucket_of(tensors, key, plan); });
  comm::BucketAverager& averager = key.empty() ? plain_averager(shapes) : averager_;
  const std::uint64_t before = averager.traffic().sent_bytes;
  averager.average(bucket, plan, static_cast<std::int64_t>(next_step(key)));
  comm::guard(*duplicate_, kOperation, calls_++, [&] {
    if (!mean) bucket.buffer.mul_(duplicate_->getSize());
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      const auto& layer = bucket.layers[i];
      const at::Tensor part = bucket.buffer.narrow(0, layer.offset, layer.numel());
      if (part.const_data_ptr() != tensors[i].const_data_ptr() || !tensors[i].is_contiguous()) {
        tensors[i].detach().copy_(part.view(tensors[i].sizes()));
      }
    }
  });
  return averager.traffic().sent_bytes - before;
}

std::map<std::string, at::Tensor> BackendEngine::state() const {
  std::map<std::string, at::Tensor> state;
  for (auto& [name, tensor] : comm::to_tensors(averager_.state()))
    state.emplace(concat(kAveragerPrefix, name), tensor);
  for (auto& [name, tensor] : collectives_.state())
    state.emplace(concat(kCollectivesPrefix, name), tensor);
  for (const auto& [key, step] : steps_) {
    state.emplace(concat(kStepsPrefix, key),
                  at::scalar_tensor(static_cast<std::int64_t>(step), at::TensorOptions(at::kLong)));
  }
  return state;
}

void BackendEngine::load_state(const std::map<std::string, at::Tensor>& state) {
  std::map<std::string, at::Tensor> averager, collectives;
  std::map<std::string, std::uint64_t> steps;
  comm::AveragerState averager_state;
  CodedCollectives::Memory memory;
  const auto take = [&] {
    for (const auto& [name, tensor] : state) {
      const auto rest_after = [&, &name = name](std::string_view prefix) {
        return name.substr(prefix.size());
      };
      if (name.starts_with(kAveragerPrefix)) {
        averager.emplace(rest_after(kAveragerPrefix), tensor);
      } else if (name.starts_with(kCollectivesPrefix)) {
        collectives.emplace(rest_after(kCollectivesPrefix), tensor);
      } else {
        check(name.starts_with(kStepsPrefix) && tensor.numel() == 1, "'", name,
              "' is not of the state of a process group that compresses");
        steps[rest_after(kStepsPrefix)] = static_cast<std::uint64_t>(tensor.item<std::int64_t>());
      }
    }
    averager_state = comm::state_from_tensors(averager);
    memory = CodedCollectives::memory_of(collectives);
    // What must be equal on all ranks: the steps, from which random numbers come, and what the next
    // differences are added to.
    std::string text;
    for (const auto& [key, step] : steps) text += concat("calls under '", key, "': ", step, "\n");
    for (const auto& [key, values] : memory.received)
      text += concat("received under '", key, "': ", values.size(), " elements of hash ",
                     XXH3_64bits(values.data(), values.size() * sizeof values[0]), "\n");
    return text;
  };
  comm::agree_on_result(*duplicate_, comm::next_name(*duplicate_, "load"),
                        "the state of a process group that compresses", take);
  comm::guard(*duplicate_, "loading the state of a process group that compresses", 0, [&] {
    on_thread([&] {
      collectives_.load(std::move(memory));
      averager_.load_state(std::move(averager_state));
      steps_ = std::move(steps);
    });
  });
}

}  // namespace thinwire::detail
