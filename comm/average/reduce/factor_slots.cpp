#include "thinwire/comm/average/reduce/factor_slots.h"

#include <algorithm>
#include <numeric>

#include "thinwire/common/error.h"
#include "thinwire/compressors/spectral/level_order.h"

namespace thinwire::comm {
namespace {

constexpr std::int64_t kMostSizeClasses = 16;
// A class costs a byte in every slice, and it takes some elements to know a table.
constexpr std::int64_t kLeastOfSizeClass = 256;

// Of elements in descending order of their size: equal shares of each class, by chunk and owner.
std::vector<std::vector<Slice>> slices_of_classes(std::int64_t numel, int world, int chunks) {
  std::vector<std::vector<Slice>> slices(static_cast<std::size_t>(chunks),
                                         std::vector<Slice>(static_cast<std::size_t>(world)));
  const std::int64_t cells = std::int64_t{chunks} * world;
  const std::int64_t classes =
      std::clamp<std::int64_t>(numel / (cells * kLeastOfSizeClass), 1, kMostSizeClasses);
  for (std::int64_t k = 0; k < classes; ++k) {
    const std::int64_t first = numel * k / classes, size = numel * (k + 1) / classes - first;
    for (std::int64_t cell = 0; cell < cells; ++cell) {
      const std::int64_t begin = size * cell / cells, end = size * (cell + 1) / cells;
      if (begin == end) continue;
      Slice& slice =
          slices[static_cast<std::size_t>(cell / world)][static_cast<std::size_t>(cell % world)];
      slice.pieces.push_back({.begin = first + begin, .numel = end - begin});
      slice.numel += end - begin;
    }
  }
  return slices;
}

}  // namespace

FactorSlots::FactorSlots(std::vector<Column> columns, const Codec& codec, const Peers& peers,
                         std::size_t chunk_bytes, SharedSteps& steps, std::string factor)
    : columns_(std::move(columns)), factor_(std::move(factor)) {
  THINWIRE_ASSERT(!columns_.empty());
  for (const Column& column : columns_) numel_ += column.numel;
  const PartitionLayer all{static_cast<std::int64_t>(numel_), &codec};
  const int chunks = Partition::chunks_for(std::span(&all, 1), peers.size(), chunk_bytes);
  slots_ = std::make_unique<SlotReduce>(slices_of_classes(all.numel, peers.size(), chunks), codec,
                                        peers, steps, concat("factors=", codec.spec()));
}

// Calls visit(column, where it begins in order).
template <typename Visit>
void FactorSlots::for_each_column(const Visit& visit) const {
  std::size_t at = 0;
  for (const std::uint32_t c : order_) {
    visit(columns_[c], at);
    at += columns_[c].numel;
  }
}

void FactorSlots::start(const ReductionContext& context, const LayerValues& first,
                        std::span<float> buffer, std::span<float> lost,
                        std::span<const float> sizes) {
  THINWIRE_ASSERT(sizes.size() == columns_.size());
  buffer_ = buffer;
  lost_ = lost;
  divisor_ = static_cast<float>(context.divisor);
  order_.resize(columns_.size());
  std::iota(order_.begin(), order_.end(), 0u);
  std::ranges::stable_sort(order_, std::ranges::greater(),
                           [&](std::uint32_t c) { return spectral::level_of(sizes[c]); });
  Arena& arena = context.workspace->arena;
  sorted_ = arena.floats(numel_);
  lost_of_sorted_ = arena.floats(lost.empty() ? 0 : numel_);
  for_each_column([&](const Column& column, std::size_t at) {
    std::ranges::copy(buffer.subspan(column.begin, column.numel), sorted_.begin() + at);
  });
  name_ = concat(first.name, "/", factor_);
  whole_ = {.id = first.id,
            .name = name_,
            .values = sorted_,
            .residual = lost_of_sorted_,
            .second = lost.empty() ? nullptr : &of_means_,
            .second_decay = 0};
  slots_->start(context, std::span(&whole_, 1));
}

void FactorSlots::deliver(bool finite) {
  slots_->deliver(finite);
  // Where a mean is not finite this is how the layers learn of it.
  for_each_column([&](const Column& column, std::size_t at) {
    std::ranges::copy(sorted_.subspan(at, column.numel), buffer_.begin() + column.begin);
  });
  if (!finite || lost_.empty()) return;
  slots_->store_losses();
  for (const Piece& piece : slots_->owned()) {
    const auto of_mean = of_means_.of(name_, piece.begin, piece.numel);
    float* const lost = lost_of_sorted_.data() + piece.begin;
    for (std::size_t i = 0; i < of_mean.size(); ++i) lost[i] += divisor_ * of_mean[i];
  }
  for_each_column([&](const Column& column, std::size_t at) {
    std::ranges::copy(lost_of_sorted_.subspan(at, column.numel), lost_.begin() + column.begin);
  });
}

}  // namespace thinwire::comm
