#include "thinwire/comm/average/layouts.h"

#include <xxhash.h>

#include <algorithm>

namespace thinwire::comm {
namespace {

// Layouts kept of one bucket: that of the plan, and of the one before it or of warm-up.
constexpr std::size_t kLayoutsKept = 2;

std::uint64_t mixed(std::uint64_t hash, std::uint64_t number) {
  return XXH3_64bits_withSeed(&number, sizeof number, hash);
}

std::uint64_t composition_of(const Bucket& bucket) {
  std::uint64_t hash = mixed(bucket.index, static_cast<std::uint64_t>(bucket.buffer.scalar_type()));
  hash = mixed(hash, static_cast<std::uint64_t>(bucket.buffer.device().type()));
  for (const BucketLayer& layer : bucket.layers) {
    hash = XXH3_64bits_withSeed(layer.name.data(), layer.name.size(), hash);
    hash = mixed(hash, static_cast<std::uint64_t>(layer.offset));
    for (const std::int64_t extent : layer.shape)
      hash = mixed(hash, static_cast<std::uint64_t>(extent));
  }
  return hash;
}

// Of the plan and where its ramps are.
std::uint64_t key_of(const Bucket& bucket, const Plan& plan, std::int64_t step) {
  std::uint64_t hash = mixed(plan.id(), 0);
  for (const BucketLayer& layer : bucket.layers) {
    int stage = 0;
    plan.of(layer.name).codec_at(step, &stage);
    hash = mixed(hash, static_cast<std::uint64_t>(stage));
  }
  return hash;
}

}  // namespace

void Layouts::drop_unused(std::int64_t step) {
  if (step == step_) return;
  std::erase_if(known_, [&](const auto& entry) {
    return entry.second.last_step != step_ && entry.second.last_call + kRecent < calls_;
  });
  step_ = step;
}

std::shared_ptr<BucketLayout> Layouts::of(const Bucket& bucket, const Plan& plan, std::int64_t step,
                                          bool part) {
  drop_unused(step);
  Known& known = known_[{composition_of(bucket), part}];
  known.last_step = step;
  known.last_call = ++calls_;
  const auto use = [&](auto layout) {
    std::rotate(known.layouts.begin(), layout, layout + 1);
    return known.layouts.front();
  };
  const std::uint64_t key = key_of(bucket, plan, step);
  const auto same_key = std::ranges::find(known.layouts, key, &BucketLayout::key);
  if (same_key != known.layouts.end()) return use(same_key);

  // A new plan changes few buckets.
  const LayoutText text = describe(bucket, plan, step, options_, group_);
  const auto same_hash = std::ranges::find(known.layouts, text.hash, &BucketLayout::hash);
  if (same_hash != known.layouts.end()) {
    (*same_hash)->key = key;
    return use(same_hash);
  }
  auto made = make_layout(bucket, plan, text, options_, group_, peers_, residuals_);
  made->key = key;
  if (known.layouts.size() >= kLayoutsKept) known.layouts.pop_back();
  known.layouts.insert(known.layouts.begin(), std::move(made));
  return known.layouts.front();
}

std::size_t Layouts::count() const {
  std::size_t count = 0;
  for (const auto& [key, known] : known_) count += known.layouts.size();
  return count;
}

std::size_t Layouts::bytes() const {
  std::size_t bytes = 0;
  for (const auto& [key, known] : known_) {
    for (const auto& layout : known.layouts) bytes += layout->bytes();
  }
  return bytes;
}

}  // namespace thinwire::comm
