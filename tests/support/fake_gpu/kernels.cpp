#include "thinwire/tests/support/fake_gpu/kernels.h"

#include <cxxabi.h>
#include <dlfcn.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "thinwire/common/text.h"
#include "thinwire/tests/support/fake_gpu/detector.h"
#include "thinwire/tests/support/fake_gpu/host_sync.h"
#include "thinwire/tests/support/fake_gpu/memory.h"
#include "thinwire/tests/support/fake_gpu/names.h"
#include "thinwire/tests/support/fake_gpu/stream.h"
#include "thinwire/tests/support/ptx/machine.h"

namespace thinwire::fake_gpu {
namespace {

namespace ptx = thinwire::testing::ptx;

struct Kernels {
  std::mutex mutex;
  std::unordered_map<const void*, const char*> names;
  // By folder: what the *.ptx files there hold, by name.
  std::unordered_map<std::string, std::unordered_map<std::string, ptx::Kernel>> compiled;
};

Kernels& all_kernels() {
  static auto* all = new Kernels;
  return *all;
}

std::string demangled(const char* name) {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> text(
      abi::__cxa_demangle(name, nullptr, nullptr, &status), &std::free);
  return text == nullptr ? name : text.get();
}

// Without namespaces and arguments: what a sentence needs.
std::string short_name(const char* name) {
  std::string text = demangled(name);
  constexpr std::string_view kAnonymous = "(anonymous namespace)";
  if (const auto at = text.find(kAnonymous); at != std::string::npos)
    text.erase(at, kAnonymous.size());
  text.resize(std::min(text.find_first_of("<("), text.size()));
  return text.substr(text.find_last_of(": ") + 1);
}

std::unordered_map<std::string, ptx::Kernel> compiled_in(const std::filesystem::path& folder) {
  std::unordered_map<std::string, ptx::Kernel> kernels;
  std::error_code none;
  for (const auto& file : std::filesystem::directory_iterator(folder, none)) {
    if (file.path().extension() != ".ptx") continue;
    std::ifstream in(file.path());
    std::ostringstream text;
    text << in.rdbuf();
    for (ptx::Kernel& kernel : ptx::parse(text.str()))
      kernels.insert_or_assign(kernel.name, std::move(kernel));
  }
  return kernels;
}

const ptx::Kernel* find_kernel(const void* host_function, std::string& name) {
  Kernels& all = all_kernels();
  const std::lock_guard lock(all.mutex);
  const auto known = all.names.find(host_function);
  if (known == all.names.end()) return nullptr;
  name = short_name(known->second);
  Dl_info library{};
  if (dladdr(host_function, &library) == 0) return nullptr;
  const auto folder = std::filesystem::path(library.dli_fname).parent_path();
  auto compiled = all.compiled.find(folder.string());
  if (compiled == all.compiled.end())
    compiled = all.compiled.emplace(folder.string(), compiled_in(folder)).first;
  const auto kernel = compiled->second.find(known->second);
  return kernel == compiled->second.end() ? nullptr : &kernel->second;
}

// PTX's addresses are numbers.
const void* pointer_to(std::uint64_t address) {
  return reinterpret_cast<const void*>(address);  // NOLINT(performance-no-int-to-ptr)
}

// Memory as kernels see it: any allocation of the device, and pinned memory.
ptx::GlobalMemory device_memory() {
  return ptx::GlobalMemory([](std::uint64_t address) -> std::optional<ptx::GlobalMemory::Found> {
    const void* pointer = pointer_to(address);
    const auto device = device_allocation_of(pointer);
    const auto place = device ? device : pinned_allocation_of(pointer);
    if (!place) return std::nullopt;
    const void* begin = pointer_to(place->begin);
    return ptx::GlobalMemory::Found{
        place->begin,
        {static_cast<std::byte*>(shadow(begin)), place->bytes},
        [begin = place->begin](std::size_t at) { return is_written(begin + at); }};
  });
}

void execute(const ptx::Kernel& kernel, const Grid& grid, const std::vector<std::byte>& parameters,
             const std::string& name) {
  ptx::GlobalMemory memory = device_memory();
  const auto& task = current_task();
  try {
    ptx::run(kernel,
             {.blocks = grid.blocks,
              .threads = grid.threads,
              .parameters = parameters,
              .seed = task->number},
             memory);
  } catch (const std::runtime_error& error) {
    add_finding(concat("kernel ", name, " on ", describe_stream(task->stream), ": ", error.what()));
  }
  // What it wrote is noted as read too where it was: the order of a kernel's own accesses is the
  // interpreter's to check.
  memory.for_each_touched([&](std::uint64_t address, std::size_t bytes, bool read, bool written) {
    const void* begin = pointer_to(address);
    if (read && !written) note(task, named({begin, bytes, false}));
    if (written) note(task, named({begin, bytes, true}));
  });
}

}  // namespace

void register_kernel(const void* host_function, const char* name) {
  Kernels& all = all_kernels();
  const std::lock_guard lock(all.mutex);
  all.names[host_function] = name;
}

bool launch_kernel(const void* host_function, const Grid& grid, void* const* arguments,
                   Stream* stream) {
  std::string name = "that nothing registered";
  const ptx::Kernel* kernel = find_kernel(host_function, name);
  if (kernel == nullptr) {
    add_finding(concat("kernel ", name, ": there is no PTX of it to execute"));
    return false;
  }
  std::vector<std::byte> parameters(kernel->parameter_bytes);
  for (std::size_t i = 0; i < kernel->parameters.size(); ++i) {
    const auto& [offset, bytes] = kernel->parameters[i];
    std::memcpy(parameters.data() + offset, arguments[i], bytes);
  }
  ++counting().launches;
  enqueue(stream, {name, [kernel, grid, name, parameters = std::move(parameters)] {
                     execute(*kernel, grid, parameters, name);
                   }});
  return true;
}

void refuse_launch(const void* host_function, const char* why) {
  std::string name = "that nothing registered";
  find_kernel(host_function, name);
  add_finding(concat("kernel ", name, ": the fake GPU cannot launch it, ", why));
}

}  // namespace thinwire::fake_gpu
