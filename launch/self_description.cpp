#include "thinwire/launch/self_description.h"

#include <ATen/detail/CUDAHooksInterface.h>

#include <algorithm>
#include <cstdlib>
#include <utility>
#include <vector>

#include "thinwire/comm/backend/mpi/backend.h"
#include "thinwire/comm/backend/nccl/backend.h"
#include "thinwire/comm/backend/torch_version.h"
#include "thinwire/common/env.h"
#include "thinwire/common/error.h"
#include "thinwire/common/spec.h"

namespace thinwire::launch {
namespace {

std::string asked_backend(const InitOptions& options) {
  const std::string name = options.backend == "auto" ? Env::get().backend : options.backend;
  const std::vector<std::string> known = {"auto", "mpi", "gloo", "nccl"};
  if (std::find(known.begin(), known.end(), name) == known.end()) {
    const std::string near = nearest_name(name, known);
    throw InvalidArgument(concat("unknown backend '", name, "', known are auto, mpi, gloo and nccl",
                                 near.empty() ? "" : concat("; did you mean ", near, "?")));
  }
  return name;
}

int usable_gpus() {
  if (Env::get().disable_cuda || !comm::nccl_backend_usable()) return 0;
  return at::detail::getCUDAHooks().getNumGPUs();
}

// See Note [Variables that must agree].
std::vector<std::pair<std::string, std::string>> settings_of(std::chrono::milliseconds timeout) {
  std::vector<std::pair<std::string, std::string>> settings = {
      {"the timeout, by THINWIRE_TIMEOUT or the program", std::to_string(timeout.count()) + " ms"}};
  for (const Env::Variable& variable : Env::get().variables())
    if (variable.must_agree) settings.emplace_back(variable.name, variable.value);
  return settings;
}

}  // namespace

Enrolment describe(const RankEnv& ranks, const std::string& host, const InitOptions& options,
                   std::chrono::milliseconds timeout) {
  Enrolment mine;
  mine.size = ranks.size;
  mine.local_rank = ranks.local_rank;
  mine.host = host;
  try {
    comm::check_torch_version();
    check(options.timeout.count() >= 0, "InitOptions::timeout must not be negative, got ",
          options.timeout.count(), " ms");
    mine.backend = asked_backend(options);
    mine.has_mpi = comm::mpi_backend_usable();
    mine.gpus = usable_gpus();
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    mine.visible_devices = visible ? visible : "";
    mine.settings = settings_of(timeout);
  } catch (const InvalidArgument& error) {
    mine.problem = error.what();
  }
  return mine;
}

std::chrono::milliseconds timeout_of(const InitOptions& options) {
  if (options.timeout.count() > 0) return options.timeout;
  try {
    return Env::get().timeout;
  } catch (const InvalidArgument&) {
    return std::chrono::minutes(5);
  }
}

}  // namespace thinwire::launch
