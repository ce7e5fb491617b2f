// A rank of a small training whose ranks come and go: what test_elastic.py starts.
//
//   elastic_rank ddp|outer[-device] STEPS EVENT...
//
// With `-device` the model is in GPU memory.
//
// An EVENT is something that happens to this process: kill:STEP, stop:STEP (it is sent SIGSTOP)
// or leave:STEP (it ends itself) within a step after its forward pass; hold:STEP:WORLD, where
// the step waits for that world, or until somebody asks for another one; behind:STEP, whose
// exchange is done when the step fails; kill-joining:N where it takes over the state of the
// training for the N-th time, kill-giving:N where it gives it to others, kill-leaving:N where it
// leaves for its N-th world, fail-taking:N where it cannot take over what others carried there,
// kill-arriving:N where it goes on over that world's group. Prints a line of JSON for every step,
// and one at the end.
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>

#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include "thinwire/common/error.h"
#include "thinwire/common/log.h"
#include "thinwire/launch/elastic/elastic_training.h"
#include "thinwire/torch_ext/ddp/distributed_data_parallel.h"
#include "thinwire/torch_ext/outer/outer_optimizer.h"

namespace {

using namespace thinwire;

constexpr auto kStepTime = std::chrono::milliseconds(20);
constexpr std::int64_t kBatch = 8;

struct Net : torch::nn::Module {
  Net() {
    first = register_module("first", torch::nn::Linear(32, 64));
    second = register_module("second", torch::nn::Linear(64, 4));
  }
  at::Tensor forward(const at::Tensor& x) { return second(at::relu(first(x))); }
  torch::nn::Linear first{nullptr}, second{nullptr};
};

class Events {
 public:
  Events(int argc, char** argv) {
    for (int i = 0; i < argc; ++i) {
      const std::string event = argv[i];
      const std::size_t colon = event.find(':');
      thinwire::check(colon != std::string::npos, "an event is NAME:NUMBER, got ", event);
      std::size_t digits = 0;
      const std::int64_t number = std::stoll(event.substr(colon + 1), &digits);
      at_.emplace(event.substr(0, colon), number);
      if (event.starts_with("patience:")) patience = std::chrono::seconds(number);
      if (event.starts_with("hold:")) holds_[number] = std::stoll(event.substr(colon + digits + 2));
    }
  }
  std::chrono::seconds patience{20};
  // Does what is to be done then.
  void at(const std::string& place, std::int64_t number) const {
    const auto is = [&](const std::string& event) { return at_.contains({event + place, number}); };
    if (is("stop")) happens(SIGSTOP);
    if (is("kill")) happens(SIGKILL);
    if (is("leave")) _exit(7);
    if (is("fail")) throw CommError(-1, "a test", 0, "a state that does not come");
  }
  bool holds(std::int64_t step, std::int64_t world) const {
    const auto until = holds_.find(step);
    return until != holds_.end() && world < until->second;
  }
  bool is_behind(std::int64_t step) const { return at_.contains({"behind", step}); }

 private:
  static void happens(int signal) {
    const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
    std::printf("{\"signal\": %d, \"time\": %.3f}\n", signal, now.count());
    std::fflush(stdout);
    raise(signal);
  }
  std::set<std::pair<std::string, std::int64_t>> at_;
  std::map<std::int64_t, std::int64_t> holds_;  // by step, the world that ends it
};

// Carries nothing, and sees when the others are on their way.
struct Traveller {
  void begin_step() {}
  void end_step() {}
  std::int64_t finished_steps() const { return 0; }
  void leave(Standing) { events.at("-leaving", ++left); }
  NamedTensors shared_state() const { return {}; }
  void take_over(const NamedTensors&) { events.at("-taking", ++taken); }
  void arrive(const c10::intrusive_ptr<c10d::ProcessGroup>&, std::chrono::milliseconds) {
    events.at("-arriving", ++worlds);
  }
  const Events& events;
  std::int64_t left = 0, taken = 0, worlds = 0;
};

// The images of a step: from the place where the data stand, in the order of the ranks.
at::Tensor inputs(std::int64_t begin) {
  auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(begin));
  return at::randn({kBatch, 32}, generator, at::kFloat);
}

at::Tensor loss_of(const at::Tensor& y, const at::Tensor& x) {
  return (y - x.narrow(1, 0, 4)).pow(2).mean();
}

int train(const std::string& kind, std::int64_t steps, const Events& events) {
  launch::ElasticWorld world({.patience = events.patience});
  torch::manual_seed(static_cast<std::uint64_t>(getpid()));  // no two processes begin alike
  auto net = std::make_shared<Net>();
  const bool on_device = kind.ends_with("-device"), averages_gradients = kind.starts_with("ddp");
  const at::Device device = on_device ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
  net->to(device);
  torch::optim::SGD optimizer(net->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
  std::unique_ptr<DistributedDataParallel<std::shared_ptr<Net>>> ddp;
  std::unique_ptr<OuterOptimizer> outer;
  std::int64_t step = 0, seen = 0, joined = 0, given = 0;

  launch::ElasticTraining training(world);
  Traveller traveller{events};
  training.moves(traveller);
  if (averages_gradients) {
    ddp = std::make_unique<DistributedDataParallel<std::shared_ptr<Net>>>(
        net, world.group(), DistributedDataParallelOptions{.compression = "topk(density=0.1)"});
    training.moves(*ddp);
    training.replicated("model", *net);
    training.replicated("optimizer", optimizer);
    training.replicated("step", step);
    training.replicated("seen", seen);
  } else {
    outer = std::make_unique<OuterOptimizer>(*net, optimizer, world.group(),
                                             OuterOptimizerOptions{.inner_steps = 5});
    training.moves(*outer);
    training.own("optimizer", optimizer);
    training.own("step", step);
  }
  training.replicated("events", {[&] {
                                   events.at("-giving", ++given);
                                   return NamedTensors();
                                 },
                                 [&](const NamedTensors&) { events.at("-joining", ++joined); }});
  const auto more = [&] { return step < steps; };
  training.run(more, [&] {
    do {
      std::this_thread::sleep_for(kStepTime);
    } while (events.holds(step, world.generation()) && !world.change_is_called());
    const auto x =
        inputs(averages_gradients ? seen + kBatch * world.rank() : 1000 * world.rank() + step)
            .to(device);
    optimizer.zero_grad();
    const auto loss = loss_of(ddp ? ddp->forward(x) : net->forward(x), x);
    events.at("", step);
    loss.backward();
    if (events.is_behind(step)) throw CommError(-1, "a test", 0, "a step without its end");
    if (ddp) {
      optimizer.step();
    } else {
      outer->step();
    }
    ++step;
    seen += kBatch * world.size();
    const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
    std::printf(
        "{\"step\": %lld, \"rank\": %d, \"size\": %d, \"world\": %lld, \"seen\": %lld, "
        "\"finished\": %lld, \"loss\": %.6f, \"time\": %.3f}\n",
        static_cast<long long>(step), world.rank(), world.size(),
        static_cast<long long>(world.generation()), static_cast<long long>(seen),
        static_cast<long long>(ddp ? ddp->finished_steps() + 1 : step), loss.item<double>(),
        now.count());
    std::fflush(stdout);
  });
  const auto crc = ddp ? ddp->parameters_crc32c() : outer->synchronised_crc32c();
  const auto x = inputs(-1).to(device);
  const at::NoGradGuard no_grad;
  std::printf("{\"end\": %u, \"size\": %d, \"loss\": %.6f}\n", crc, world.size(),
              loss_of(net->forward(x), x).item<double>());
  std::fflush(stdout);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    thinwire::check(argc >= 3, "usage: elastic_rank ddp|outer[-device] STEPS EVENT...");
    return train(argv[1], std::stoll(argv[2]), Events(argc - 3, argv + 3));
  } catch (const std::exception& error) {
    thinwire::log::error(error.what());
    return 1;
  }
}
