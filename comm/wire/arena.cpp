#include "thinwire/comm/wire/arena.h"

#include <ATen/ops/empty.h>

#include <algorithm>

namespace thinwire::comm {
namespace {

constexpr std::size_t kAlignment = 64;
// A block that was less than half used in so many runs is made smaller.
constexpr int kRunsOfAReview = 64;

// A need may vary from run to run: a block has so much more, as a part of it. What is not used
// costs no pages.
constexpr std::size_t kSlack = 8;

at::Tensor make_block(std::size_t bytes) {
  return at::empty({static_cast<std::int64_t>(bytes)}, at::kByte);
}

}  // namespace

Arena::Place Arena::take(std::size_t count) {
  count = (count + kAlignment - 1) / kAlignment * kAlignment;
  const auto room = blocks_.empty() ? 0 : static_cast<std::size_t>(blocks_.back().numel()) - used_;
  if (blocks_.empty() || count > room) {
    used_before_ += used_;
    blocks_.push_back(make_block(std::max(count, next_block_)));
    next_block_ = 0;
    used_ = 0;
  }
  Place place{blocks_.back(), used_};
  used_ += count;
  return place;
}

std::span<std::byte> Arena::bytes(std::size_t count) {
  if (count == 0) return {};
  const Place place = take(count);
  return {static_cast<std::byte*>(place.block.mutable_data_ptr()) + place.offset, count};
}

std::span<float> Arena::floats(std::size_t count) {
  const auto memory = bytes(count * sizeof(float));
  return {reinterpret_cast<float*>(memory.data()), count};
}

at::Tensor Arena::tensor(std::size_t bytes) {
  if (bytes == 0) return make_block(0);
  const Place place = take(bytes);
  return place.block.narrow(0, static_cast<std::int64_t>(place.offset),
                            static_cast<std::int64_t>(bytes));
}

void Arena::reset() {
  const std::size_t used = used_before_ + used_;
  peak_ = std::max(peak_, used);
  bool replace = blocks_.size() > 1;
  if (++resets_ == kRunsOfAReview) {
    replace = replace || 2 * peak_ < size();
    resets_ = 0;
    if (!replace) peak_ = 0;
  }
  if (replace) {
    blocks_.clear();
    next_block_ = peak_ + peak_ / kSlack;
    peak_ = 0;
  }
  used_ = used_before_ = 0;
}

std::size_t Arena::size() const {
  std::size_t bytes = 0;
  for (const at::Tensor& block : blocks_) bytes += block.nbytes();
  return bytes;
}

}  // namespace thinwire::comm
