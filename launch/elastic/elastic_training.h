// Training that goes on when ranks die, leave or come.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "thinwire/comm/state/named_tensors.h"
#include "thinwire/launch/elastic/elastic_world.h"
#include "thinwire/torch_ext/elastic/move.h"

namespace torch::nn {
class Module;
}
namespace torch::optim {
class Optimizer;
}

namespace thinwire::launch {

//   thinwire::launch::ElasticWorld world;
//   thinwire::DistributedDataParallel ddp(net, world.group(), options);   // of this process alone
//   torch::optim::SGD optimizer(net->parameters(), 0.1);
//   std::int64_t step = 0;
//
//   thinwire::launch::ElasticTraining training(world);
//   training.moves(ddp);
//   training.replicated("model", *net);
//   training.replicated("optimizer", optimizer);
//   training.replicated("step", step);
//   training.run([&] { return step < steps; }, [&] {
//     ddp.zero_grad();
//     loss(ddp.forward(batch(step, world.rank(), world.size()))).backward();
//     optimizer.step();
//     ++step;
//   });
//
// A step is one call of the second function. When it throws CommError, those who are left make
// another world and the step again, or, where one of them had finished it, take its end from there:
// see Note [Changing worlds]. So what a step changes of the program's own (here the optimizer and
// the counter) comes after its last collective. A process that comes later waits until the others
// are between two steps, and takes what is registered from rank 0, but for residuals.
//
// All processes register the same things in the same order; they must outlive run(). Not
// thread-safe.
class ElasticTraining {
 public:
  explicit ElasticTraining(ElasticWorld& world) : world_(world) {}

  // What averages: DistributedDataParallel, OuterOptimizer.
  template <Movable Part>
  void moves(Part& part) {
    parts_.push_back({[&part] { part.begin_step(); }, [&part] { part.end_step(); },
                      [&part] { return std::int64_t{part.finished_steps()}; },
                      [&part](Standing standing) { part.leave(standing); },
                      [&part] { return part.shared_state(); },
                      [&part](const NamedTensors& of_rank_0) { part.take_over(of_rank_0); },
                      [&part](const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                              std::chrono::milliseconds timeout) { part.arrive(group, timeout); }});
  }

  struct State {
    std::function<NamedTensors()> save;
    std::function<void(const NamedTensors&)> load;
  };
  // What is the same on all ranks after each step. Taken from rank 0 by a rank that is new, or that
  // lacks a step's end.
  void replicated(const std::string& name, State state) { add(true, name, std::move(state)); }
  // Throws InvalidArgument for a module that has a MoELayer over a group: each of its experts is on
  // one rank.
  void replicated(const std::string& name, torch::nn::Module& module);
  void replicated(const std::string& name, torch::optim::Optimizer& optimizer);
  void replicated(const std::string& name, std::int64_t& number);
  // What each rank has of its own, and a new one begins with as rank 0 has it: the inner optimizer
  // and the counter of steps where an OuterOptimizer moves.
  void own(const std::string& name, State state) { add(false, name, std::move(state)); }
  void own(const std::string& name, torch::optim::Optimizer& optimizer);
  void own(const std::string& name, std::int64_t& number);

  // Calls step() while more() says so, and returns when all ranks have finished. Throws what step()
  // throws, but for CommError; CommError where too few ranks are left, the store does not answer or
  // worlds fail again and again; InvalidArgument on a new rank that does not fit the others.
  void run(const std::function<bool()>& more, const std::function<void()>& step);

 private:
  struct Part {
    std::function<void()> begin_step, end_step;
    std::function<std::int64_t()> finished_steps;
    std::function<void(Standing)> leave;
    std::function<NamedTensors()> shared_state;
    std::function<void(const NamedTensors&)> take_over;
    std::function<void(const c10::intrusive_ptr<c10d::ProcessGroup>&, std::chrono::milliseconds)>
        arrive;
  };
  struct NamedState {
    bool is_replicated;
    std::string name;
    State state;
  };

  void add(bool is_replicated, const std::string& name, State state);
  void change(std::string why);
  void enter(const ElasticWorld::Place& place);
  void hand_over(const ElasticWorld::Place& place, bool is_behind);
  Standing standing_of(std::size_t part, const ElasticWorld::Place& place) const;
  bool wait_for_the_others();

  ElasticWorld& world_;
  std::vector<Part> parts_;
  std::vector<NamedState> states_;
  std::vector<std::int64_t> finished_;  // by part
  bool is_new_ = true;
  bool in_step_ = false;  // one that has failed
  int changes_in_a_row_ = 0;
};

}  // namespace thinwire::launch
