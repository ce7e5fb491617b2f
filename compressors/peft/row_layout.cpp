#include "thinwire/compressors/peft/row_layout.h"

#include <algorithm>

namespace thinwire::peft::detail {

RowLayout::RowLayout(const Manifest& manifest) : numel_(manifest.numel) {
  for (const PackedTensor& tensor : manifest.tensors) {
    const std::int64_t numel = tensor.info.numel();
    if (tensor.storage != Storage::kTernary || numel == 0) continue;
    const auto& shape = tensor.info.shape;
    const std::int64_t begin = tensors_.empty() ? 0 : tensors_.back().end;
    tensors_.push_back({.begin = begin,
                        .end = begin + numel,
                        .columns = shape.size() > 1 ? numel / shape.front() : numel});
  }
}

void RowLayout::rows_of(std::int64_t block, std::vector<BlockRows>& rows) const {
  rows.clear();
  if (tensors_.empty() || tensors_.back().end != numel_) return;
  std::int64_t at = block * kBlockEntries;
  const std::int64_t end = at + block_entries(numel_, block);
  auto tensor = std::ranges::upper_bound(tensors_, at, {}, &Tensor::end);
  for (; at < end; ++tensor) {
    const std::int64_t stop = std::min(end, tensor->end);
    rows.push_back({.entries = stop - at,
                    .columns = tensor->columns,
                    .first = (at - tensor->begin) % tensor->columns});
    at = stop;
  }
}

}  // namespace thinwire::peft::detail
