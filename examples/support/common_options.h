// The part of the command line that all training examples have, and the frame of their main().
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include <c10/core/Device.h>

#include "thinwire/common/timeline.h"
#include "thinwire/launch/world.h"
#include "thinwire/torch_ext/compression/compression_options.h"

namespace CLI {
class App;
}

namespace thinwire::examples {

struct CommonOptions {
  std::string backend = "auto";
  std::string device = "cpu";
  std::string compression;  // empty: THINWIRE_COMPRESSION, else none
  std::uint64_t seed = 1;
  int threads = 0;             // 0: the host's cores shared among its ranks
  double timeout_seconds = 0;  // 0: THINWIRE_TIMEOUT, else five minutes
  std::filesystem::path data;
  std::filesystem::path log;
  std::filesystem::path timeline;
  std::filesystem::path checkpoint;     // folder; empty: none
  std::int64_t checkpoint_every = 100;  // 0: only at the end and when asked to stop
  // See CompressionOptions.
  std::string record_gradients = {};
  std::int64_t record_from = 0, record_steps = 20;
};

// What these options mean to one program, for its --help.
struct CommonTexts {
  std::string compression;
  std::string seed = "Seed of weights, order of images and codecs";
  std::string data = "Folder of the data set";
  std::string log;
  std::string step = "steps";  // what --checkpoint-every counts
};

// --backend, --device, --compression, --seed, --threads, --timeout, --data, --log (--log-file),
// --timeline,
// --checkpoint, --checkpoint-every, --record-gradients, --record-from, --record-steps; values land
// in `options`. torchrun's parser takes --log for its own --log-dir: under it write
// --log-file.
void add_common_options(CLI::App& app, CommonOptions& options, const CommonTexts& texts);

// launch::init() with the backend and the timeout of the command line. With --device=cuda and no
// backend named, that is nccl.
launch::World join(const CommonOptions& options);

// Where this rank's model and data belong: the CPU, or for --device=cuda the GPU that
// launch::init() chose, or of the host's as many as the rank's local number. Throws InvalidArgument
// where there is none.
at::Device device_of(const launch::World& world, const CommonOptions& options);
// For programs that train on the CPU alone: throws InvalidArgument for --device=cuda, saying that
// `what` takes tensors in host memory. To be called before join().
void check_on_cpu(const CommonOptions& options, const std::string& what);

// Spec, seed and what is recorded.
CompressionOptions compression_of(const CommonOptions& options);

// Rank 0's trace, null where none was asked for and on the other ranks.
std::unique_ptr<Timeline> make_timeline(const launch::World& world, const CommonOptions& options);

// Parses the command line, then returns what train() returns. 2 for a command line that is wrong,
// as the thinwire program's; StopSignal::kStoppedExitCode when the job was asked to
// stop and has saved its state; 1 for another exception, which is logged.
int run_program(CLI::App& app, int argc, char** argv, const std::function<int()>& train);

}  // namespace thinwire::examples
