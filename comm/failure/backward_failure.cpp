#include "thinwire/comm/failure/backward_failure.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <mutex>
#include <typeinfo>
#include <unordered_map>
#include <vector>

#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/graph_task.h>

#include "thinwire/comm/failure/failure.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

using torch::autograd::Engine;
using torch::autograd::GraphTask;

struct Watcher {
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  const char* operation;
  std::uint64_t sequence;
};

// Who waits for which backward pass.
class Watchers {
 public:
  static Watchers& get() {
    static auto* watchers = new Watchers();  // backward passes may outlive static objects
    return *watchers;
  }

  // Whether the pass was not known.
  bool add(std::uint64_t pass, const Watcher& watcher) {
    const std::lock_guard lock(mutex_);
    const auto [entry, is_new] = passes_.try_emplace(pass);
    const bool known = std::any_of(entry->second.begin(), entry->second.end(),
                                   [&](const Watcher& w) { return w.group == watcher.group; });
    if (!known) entry->second.push_back(watcher);
    return is_new;
  }
  std::vector<Watcher> remove(std::uint64_t pass) {
    const std::lock_guard lock(mutex_);
    const auto node = passes_.extract(pass);
    return node.empty() ? std::vector<Watcher>() : std::move(node.mapped());
  }

 private:
  std::mutex mutex_;
  std::unordered_map<std::uint64_t, std::vector<Watcher>> passes_;
};

class WatchingEngine final : public Engine {
 public:
  void thread_on_exception(const std::shared_ptr<GraphTask>& pass,
                           const std::shared_ptr<torch::autograd::Node>& node,
                           std::exception& error) override {
    // The engine calls this where it caught the exception.
    const std::exception_ptr cause = std::current_exception();
    std::exception_ptr named = cause;
    for (const Watcher& watcher : Watchers::get().remove(pass->id_)) {
      try {
        raise_collective_failure(*watcher.group, watcher.operation, watcher.sequence, cause);
      } catch (...) {
        named = std::current_exception();
      }
    }
    try {
      std::rethrow_exception(named);
    } catch (std::exception& its_name) {
      Engine::thread_on_exception(pass, node, its_name);
    } catch (...) {
      Engine::thread_on_exception(pass, node, error);
    }
  }

  static Engine& instance() {
    static auto* engine = new WatchingEngine();  // as LibTorch's own: it has threads
    return *engine;
  }
};

// Lives as long as a pass of another engine.
class PassEnd {
 public:
  explicit PassEnd(std::uint64_t pass) : pass_(pass) {}
  PassEnd(const PassEnd&) = delete;
  PassEnd& operator=(const PassEnd&) = delete;
  ~PassEnd() {
    // While the exception, which nobody can look at here, leaves the engine.
    for (const Watcher& watcher : Watchers::get().remove(pass_)) {
      try {
        const Error cause("an exception in its backward pass, which it reports itself");
        raise_collective_failure(*watcher.group, watcher.operation, watcher.sequence,
                                 std::make_exception_ptr(cause));
      } catch (...) {  // is what the others get; this rank has its own
      }
    }
  }
  void ended_well() { Watchers::get().remove(pass_); }

 private:
  std::uint64_t pass_;
};

}  // namespace

void prepare_for_backward_failures() {
  static const bool installed = [] {
    const Engine& in_place = Engine::get_default_engine();
    const bool is_default = typeid(in_place) == typeid(Engine);
    if (is_default) torch::autograd::set_default_engine_stub(WatchingEngine::instance);
    return is_default;
  }();
  static_cast<void>(installed);
}

void tell_backward_failure(const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                           const char* operation, std::uint64_t sequence) {
  if (group == nullptr || group->getSize() == 1) return;
  Engine& engine = Engine::get_default_engine();
  const auto pass = static_cast<std::uint64_t>(torch::autograd::get_current_graph_task_id());
  if (!Watchers::get().add(pass, {group, operation, sequence})) return;
  if (typeid(engine) == typeid(WatchingEngine)) {
    engine.queue_callback([pass] { Watchers::get().remove(pass); });
  } else {
    engine.queue_callback([end = std::make_shared<PassEnd>(pass)] { end->ended_well(); });
  }
}

}  // namespace thinwire::comm
