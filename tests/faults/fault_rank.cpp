// A rank of a small data-parallel training in which one rank meets with a fault: what
// fault_matrix.py starts.
//
//   fault_rank FAULT VICTIM [FOLDER]
//
// Rank VICTIM prints "fault TIME" (seconds since 1970) when it happens; every rank that comes to
// its end prints "end CRC", of its parameters. Over NCCL the model is on the rank's GPU.
#include <dlfcn.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>

#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include "thinwire/common/error.h"
#include "thinwire/common/log.h"
#include "thinwire/launch/world.h"
#include "thinwire/torch_ext/checkpoint/checkpoint.h"
#include "thinwire/torch_ext/ddp/distributed_data_parallel.h"

namespace {

using namespace thinwire;

constexpr int kSteps = 60;
constexpr auto kStepTime = std::chrono::milliseconds(5);

void say_fault() {
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  std::printf("fault %.3f\n", now.count());
  std::fflush(stdout);
}

// Whoever started the job does something to the network meanwhile, and then leaves this file.
void wait_for_the_network() {
  const std::filesystem::path done = std::getenv("FAULT_NETWORK_DONE");
  while (!std::filesystem::exists(done)) std::this_thread::sleep_for(std::chrono::milliseconds(5));
}

// tests/faults/damaged_wire.cpp
void damage_a_message(const std::string& how) {
  const auto damage =
      reinterpret_cast<void (*)(const char*, int)>(dlsym(RTLD_DEFAULT, "damage_a_message"));
  check(damage != nullptr, "wire faults need the library damaged_wire to be loaded");
  damage(how.c_str(), std::stoi(std::getenv("FAULT_MESSAGES_BEFORE")));
}

struct Net : torch::nn::Module {
  explicit Net(std::int64_t width, at::ScalarType type) {
    first = register_module("first", torch::nn::Linear(32, width));
    second = register_module("second", torch::nn::Linear(width, 4));
    to(type);
  }
  at::Tensor forward(const at::Tensor& x) {
    at::Tensor hidden = at::relu(first(x));
    if (throws) {
      hidden.register_hook([](const at::Tensor&) -> at::Tensor {
        say_fault();
        throw std::runtime_error("a fault of a layer");
      });
    }
    return second(hidden);
  }
  torch::nn::Linear first{nullptr}, second{nullptr};
  bool throws = false;  // in the backward pass
};

int train(const std::string& fault, int victim, const std::string& folder) {
  const launch::World world = launch::init();
  const bool mine = world.rank() == victim;
  const auto is = [&](const char* name) { return mine && fault == name; };
  // Faults of what ranks must agree on happen while they set up.
  if (is("shape") || is("dtype") || is("spec")) say_fault();
  const at::Device device = world.group()->getBoundDeviceId().value_or(at::Device(at::kCPU));
  // A step on the fake device takes as long as many on the CPU.
  const int fault_step = device.is_cpu() ? 20 : 6;
  const std::string codec = device.is_cpu() ? "topk(density=0.1)" : "quantize(bits=4)";
  const std::string other = device.is_cpu() ? "topk(density=0.2)" : "quantize(bits=5)";
  torch::manual_seed(1);
  auto net = std::make_shared<Net>(is("shape") ? 65 : 64, is("dtype") ? at::kDouble : at::kFloat);
  net->to(device);
  DistributedDataParallel ddp(net, world.group(), {.compression = is("spec") ? other : codec});
  torch::optim::SGD optimizer(net->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
  std::unique_ptr<Checkpoint> checkpoint;
  if (!folder.empty()) {
    checkpoint = std::make_unique<Checkpoint>(
        world.group(), CheckpointOptions{.directory = folder + "/" + std::to_string(world.rank())});
    checkpoint->add("model", *net);
    checkpoint->add("optimizer", optimizer);
    checkpoint->add("gradients", ddp);
  }
  int steps = kSteps;
  if (is("fewer-steps")) steps = fault_step;
  auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(world.rank()));
  for (int step = 0; step < steps; ++step) {
    std::this_thread::sleep_for(kStepTime);
    at::Tensor x = at::randn({16, 32}, generator, at::kFloat).to(net->first->weight.options());
    const bool now = step == fault_step;
    if (now && mine && (fault == "kill" || fault == "stop" || fault == "exit")) say_fault();
    if (now && is("kill")) raise(SIGKILL);
    if (now && is("stop")) raise(SIGSTOP);
    if (now && is("exit")) _exit(7);
    if (now && is("throw-forward")) {
      say_fault();
      throw std::runtime_error("a fault in forward");
    }
    if (now && is("out-of-memory")) {
      say_fault();
      const rlimit least = {1 << 20, 1 << 20};
      setrlimit(RLIMIT_AS, &least);
      x = at::randn({1 << 14, 32});
    }
    if (now && is("nan")) {
      say_fault();
      x.fill_(NAN);
    }
    if (now && mine && fault.starts_with("network-")) {
      say_fault();
      wait_for_the_network();
    }
    if (now && mine && fault.starts_with("wire-")) {
      say_fault();
      damage_a_message(fault.substr(5));
    }
    net->throws = now && is("throw-layer");
    ddp.zero_grad();
    at::Tensor out = ddp.forward(x);
    if (now && is("throw-backward")) {
      out.register_hook([](const at::Tensor&) -> at::Tensor {
        say_fault();
        throw std::runtime_error("a fault in backward");
      });
    }
    const at::Tensor loss = (out - x.narrow(1, 0, 4)).pow(2).mean();
    loss.backward();
    if (fault == "nan") {  // as a loss scaler does: a step that is not finite is left out
      bool finite = true;
      for (const auto& p : net->parameters()) finite &= p.grad().isfinite().all().item<bool>();
      if (!finite) continue;
    }
    optimizer.step();
    if (!device.is_cpu()) loss.item();  // where a host waits for its device
    if (now && is("flip-a-bit")) {
      say_fault();
      at::NoGradGuard no_grad;
      net->second->weight.view(at::kInt)[1][2].bitwise_xor_(1 << 12);
    }
    if (checkpoint && step >= fault_step) {
      if (now && mine) say_fault();
      checkpoint->save(step);
    }
  }
  if (is("fewer-steps")) say_fault();
  std::printf("end %u\n", ddp.parameters_crc32c());
  std::fflush(stdout);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    thinwire::check(argc >= 3, "usage: fault_rank FAULT VICTIM [FOLDER]");
    return train(argv[1], std::stoi(argv[2]), argc > 3 ? argv[3] : "");
  } catch (const std::exception& error) {
    thinwire::log::error(error.what());
    return 1;
  }
}
