#include "thinwire/examples/support/run_settings.h"

#include <ATen/ops/arange.h>

#include <algorithm>
#include <thread>

#include "thinwire/common/env.h"
#include "thinwire/common/spec.h"

namespace thinwire::examples {

int threads_of_rank(const launch::World& world, int asked) {
  if (asked > 0) return asked;
  const auto cores = static_cast<int>(std::thread::hardware_concurrency());
  return std::max(1, cores / std::max(1, world.local_size()));
}

std::string compression_text(const std::string& asked) {
  const std::string text = asked.empty() ? Env::get().compression : asked;
  return text.empty() ? "none" : Spec::parse(text).str();
}

at::Tensor share_of_rank(const launch::World& world, std::int64_t count) {
  return at::arange(std::min<std::int64_t>(world.rank(), count), count, world.size());
}

}  // namespace thinwire::examples
