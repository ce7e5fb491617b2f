#include "thinwire/launch/cli/diagnosis.h"

#include <dlfcn.h>

#include <array>
#include <cstdlib>

#include "thinwire/comm/backend/mpi/backend.h"
#include "thinwire/comm/backend/nccl/backend.h"
#include "thinwire/comm/backend/torch_version.h"
#include "thinwire/common/crc32c.h"
#include "thinwire/common/error.h"
#include "thinwire/common/spec.h"
#include "thinwire/compressors/kernels/simd.h"
#include "thinwire/launch/rank_env.h"

namespace thinwire::launch {
namespace {

// NCCL's and CUDA's functions, of the part or of a LibTorch that this process has loaded, or null.
// By name, since their headers belong to one file each.
template <typename Function>
Function* loaded_function(const char* name) {
  void* const found = comm::find_nccl_function(name);
  return reinterpret_cast<Function*>(found != nullptr ? found : dlsym(RTLD_DEFAULT, name));
}

// "Open MPI v4.1.4, package: ..." -> "Open MPI v4.1.4"
std::string loaded_mpi() {
  const auto get =
      reinterpret_cast<int (*)(char*, int*)>(comm::find_mpi_function("MPI_Get_library_version"));
  if (!get) return "";
  std::array<char, 8192> text{};  // MPI_MAX_LIBRARY_VERSION_STRING is 256 to 8192
  int length = 0;
  if (get(text.data(), &length) != 0) return "";
  const std::string whole(text.data());
  return whole.substr(0, whole.find_first_of(",\n"));
}

std::string loaded_nccl() {
  const auto get = loaded_function<int(int*)>("ncclGetVersion");
  int version = 0;
  if (!get || get(&version) != 0) return "";
  return concat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

// CUDA's numbers are 1000 major + 10 minor; the driver says 0 where there is none.
std::string cuda_version(const char* function) {
  const auto get = loaded_function<int(int*)>(function);
  int version = 0;
  if (!get || get(&version) != 0 || version == 0) return "";
  return concat(version / 1000, ".", version % 1000 / 10);
}

// The reason that `check` throws, "" if it does not.
std::string reason_of(const auto& checked) {
  try {
    checked();
    return "";
  } catch (const std::exception& error) {
    return error.what();
  }
}

void read_environment(Diagnosis& result) {
  const std::string bad = reason_of([&] { result.variables = Env::get().variables(); });
  if (!bad.empty()) {
    result.warnings.push_back(bad);
    // The defaults, with what is set in their place, the faulty value included.
    result.variables = Env([](const std::string&) { return std::nullopt; }).variables();
    for (auto& variable : result.variables) {
      const char* value = std::getenv(variable.name.c_str());
      variable.is_set = value && *value;
      if (variable.is_set) variable.value = value;
    }
  }
  // Compared without what all of them begin with, which would make any two look alike.
  const std::string prefix = "THINWIRE_";
  std::vector<std::string> known;
  for (const auto& variable : result.variables) {
    known.push_back(variable.name.substr(prefix.size()));
  }
  result.unknown_variables = Env::unknown_variables();
  for (const auto& name : result.unknown_variables) {
    const std::string near = nearest_name(name.substr(prefix.size()), known);
    result.warnings.push_back(
        concat("nothing reads the environment variable ", name,
               near.empty() ? "" : concat("; did you mean ", prefix, near, "?")));
  }
}

void read_launcher(Diagnosis& result) {
  RankEnv ranks;
  const std::string bad = reason_of([&] { ranks = read_rank_env(); });
  result.launcher = bad.empty() ? std::string(name_of(ranks.launcher)) : "contradictory";
  result.rank = ranks.rank;
  result.size = ranks.size;
  if (!bad.empty()) result.warnings.push_back(bad);
}

void read_simd(Diagnosis& result) {
  const std::string bad = reason_of([] { kernels::apply_simd_environment(); });
  // A malformed variable of another kind is reported by read_environment() already.
  if (!bad.empty() && result.warnings.empty()) result.warnings.push_back(bad);
  result.simd_target = kernels::simd_target();
  result.simd_targets = kernels::simd_targets();
  result.crc32c_hardware = detail::crc32c_has_hardware();
}

// MPI is not started for it: outside mpirun that would start a daemon, under it wait for the other
// ranks.
Diagnosis::Backend look_at_mpi() {
  if (std::string_view(THINWIRE_BUILT_MPI).empty()) {
    return {"mpi", false, reason_of([] { comm::check_mpi_backend(0, 1); })};
  }
  return {"mpi", true, comm::mpi_backend_usable() ? "" : "in programs that mpirun starts"};
}

}  // namespace

Diagnosis diagnose() {
  Diagnosis result;
  result.version = THINWIRE_VERSION;
  result.libraries = {
      {"torch", comm::compiled_torch_version(), comm::loaded_torch_version()},
      {"mpi", THINWIRE_BUILT_MPI, loaded_mpi()},
      {"nccl", THINWIRE_BUILT_NCCL, loaded_nccl()},
      {"cuda", THINWIRE_BUILT_CUDA, cuda_version("cudaRuntimeGetVersion")},
  };
  result.cuda_driver = cuda_version("cudaDriverGetVersion");
  const std::string torch = reason_of([] { comm::check_torch_version(); });
  if (!torch.empty()) result.warnings.push_back(torch);

  read_environment(result);
  read_simd(result);
  read_launcher(result);

  const std::string nccl = reason_of([] { comm::check_nccl_backend(0); });
  result.backends = {{"nccl", nccl.empty(), nccl}, look_at_mpi(), {"gloo", true, ""}};
  return result;
}

}  // namespace thinwire::launch
