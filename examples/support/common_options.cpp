#include "thinwire/examples/support/common_options.h"

#include <ATen/detail/CUDAHooksInterface.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <exception>

#include "thinwire/common/env.h"
#include "thinwire/common/error.h"
#include "thinwire/common/log.h"
#include "thinwire/compressors/cuda/cuda_module.h"
#include "thinwire/examples/support/resumable.h"

namespace thinwire::examples {

void add_common_options(CLI::App& app, CommonOptions& options, const CommonTexts& texts) {
  app.add_option("--backend", options.backend, "Collectives: auto, mpi, gloo or nccl")
      ->capture_default_str();
  app.add_option("--device", options.device,
                 "Where the model and its gradients are: cpu or cuda, which is over nccl unless "
                 "--backend says otherwise")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--compression", options.compression, texts.compression)->capture_default_str();
  app.add_option("--seed", options.seed, texts.seed)->capture_default_str();
  app.add_option("--threads", options.threads,
                 "Threads of one rank; 0: the host's cores shared among its ranks")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--timeout", options.timeout_seconds,
                 "Seconds after which an exchange fails; 0: THINWIRE_TIMEOUT, else 300")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--data", options.data, texts.data);
  app.add_option("--log,--log-file", options.log, texts.log);
  app.add_option("--timeline", options.timeline,
                 "Write a Chrome trace of rank 0's exchanges to FILE");
  app.add_option("--checkpoint", options.checkpoint,
                 "Folder for the training's whole state: saved there while it runs, and what is "
                 "there is gone on from. SIGUSR1 and SIGTERM save at once and end with exit code "
                 "75");
  app.add_option("--checkpoint-every", options.checkpoint_every,
                 concat("Save after so many ", texts.step, "; 0: only when it ends"))
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--record-gradients", options.record_gradients,
                 "Write what each rank brings to be averaged to FILE.RANK, for `thinwire replay "
                 "FILE`");
  app.add_option("--record-from", options.record_from, "First step to record")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--record-steps", options.record_steps, "Steps to record")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
}

launch::World join(const CommonOptions& options) {
  const std::chrono::milliseconds timeout(static_cast<std::int64_t>(1e3 * options.timeout_seconds));
  const bool chooses =
      options.device == "cuda" && options.backend == "auto" && Env::get().backend == "auto";
  return launch::init({.backend = chooses ? "nccl" : options.backend, .timeout = timeout});
}

at::Device device_of(const launch::World& world, const CommonOptions& options) {
  if (options.device == "cpu") return at::kCPU;
  CudaModule::get();
  if (const auto bound = world.group()->getBoundDeviceId()) return *bound;
  const int count = at::detail::getCUDAHooks().getNumGPUs();
  check(count > 0, "--device=cuda: this process sees no GPU");
  return {at::kCUDA, static_cast<at::DeviceIndex>(world.local_rank() % count)};
}

void check_on_cpu(const CommonOptions& options, const std::string& what) {
  check(options.device == "cpu", "--device=cuda: ", what,
        " takes tensors in host memory alone, so far; leave --device away. train_fashion_mnist "
        "and train_lora train on GPUs");
}

CompressionOptions compression_of(const CommonOptions& options) {
  CompressionOptions compression(options.compression);
  compression.seed = options.seed;
  compression.record_gradients = options.record_gradients;
  compression.record_from = options.record_from;
  compression.record_steps = options.record_steps;
  return compression;
}

std::unique_ptr<Timeline> make_timeline(const launch::World& world, const CommonOptions& options) {
  if (world.rank() != 0 || options.timeline.empty()) return nullptr;
  return std::make_unique<Timeline>(options.timeline, world.rank());
}

int run_program(CLI::App& app, int argc, char** argv, const std::function<int()>& train) {
  constexpr int kError = 1, kUsage = 2;
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kUsage;  // 0: --help
  }
  try {
    return train();
  } catch (const Stopped& stopped) {
    log::info(stopped.what());
    return StopSignal::kStoppedExitCode;
  } catch (const std::exception& error) {
    log::error(error.what());
    return kError;
  }
}

}  // namespace thinwire::examples
