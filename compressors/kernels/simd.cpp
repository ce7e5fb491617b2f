#include "thinwire/compressors/kernels/simd.h"

#include <hwy/targets.h>

#include <mutex>

#include "thinwire/common/env.h"
#include "thinwire/common/error.h"

namespace thinwire::kernels {
namespace {

// Lower bits are better targets.
std::vector<std::int64_t> supported() {
  const std::int64_t chosen_by_hand = hwy::SupportedTargets();
  hwy::SetSupportedTargetsForTest(0);
  std::vector<std::int64_t> targets = hwy::SupportedAndGeneratedTargets();
  hwy::SetSupportedTargetsForTest(chosen_by_hand);
  return targets;
}

void use(std::int64_t targets) {
  hwy::SetSupportedTargetsForTest(targets);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace

std::vector<std::string> simd_targets() {
  std::vector<std::string> names;
  for (const std::int64_t target : supported()) names.emplace_back(hwy::TargetName(target));
  return names;
}

std::string simd_target() {
  return hwy::TargetName(hwy::SupportedAndGeneratedTargets().front());
}

void set_simd_target(std::string_view name) {
  if (name.empty()) return use(0);
  std::string list;
  for (const std::int64_t target : supported()) {
    if (name == hwy::TargetName(target)) return use(target);
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
