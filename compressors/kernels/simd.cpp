#include "thinwire/compressors/kernels/simd.h"

#include <hwy/highway.h>

#include <atomic>
#include <mutex>

#include "thinwire/common/env.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/kernels/dispatch.h"

namespace thinwire::kernels {
namespace {

// The target in use where it was named; 0: the best.
std::atomic<std::int64_t> named_target{0};

}  // namespace

hwy::ChosenTarget& chosen_target() {
  static hwy::ChosenTarget instance;
  static const bool initialised = [] {
    instance.Update(hwy::SupportedTargets());
    return true;
  }();
  static_cast<void>(initialised);
  return instance;
}

std::vector<std::string> simd_targets() {
  std::vector<std::string> names;
  // Lower bits are better targets, and come first.
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
    names.emplace_back(hwy::TargetName(target));
  }
  return names;
}

std::string simd_target() {
  const std::int64_t named = named_target.load();
  return named != 0 ? hwy::TargetName(named) : simd_targets().front();
}

void set_simd_target(std::string_view name) {
  std::string list;
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
    if (name.empty() || name == hwy::TargetName(target)) {
      chosen_target().Update(name.empty() ? hwy::SupportedTargets() : target);
      named_target.store(name.empty() ? 0 : target);
      return;
    }
    list += (list.empty() ? "" : ", ") + std::string(hwy::TargetName(target));
  }
  throw InvalidArgument(concat("SIMD target '", name, "' is not one of this processor: ", list));
}

void apply_simd_environment() {
  static std::once_flag once;
  std::call_once(once, [] {
    if (!Env::get().simd.empty()) set_simd_target(Env::get().simd);
  });
}

}  // namespace thinwire::kernels
