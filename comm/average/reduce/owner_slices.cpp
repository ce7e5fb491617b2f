#include "thinwire/comm/average/reduce/owner_slices.h"

#include <algorithm>
#include <numeric>

namespace thinwire::comm {
namespace {

// A piece costs a byte at least, and a table of its own where its values are unlike the others.
constexpr std::int64_t kLeastPiece = 512;

void add_piece(Slice& slice, std::size_t layer, std::int64_t begin, std::int64_t end) {
  if (begin == end) return;
  slice.pieces.push_back({.layer = layer, .begin = begin, .numel = end - begin});
  slice.numel += end - begin;
}

void share_out(std::vector<Slice>& owners, std::size_t layer, std::int64_t begin,
               std::int64_t end) {
  const auto world = static_cast<std::int64_t>(owners.size());
  const std::int64_t numel = end - begin;
  if (numel < world * kLeastPiece) {
    return add_piece(*std::ranges::min_element(owners, {}, &Slice::numel), layer, begin, end);
  }
  for (std::int64_t w = 0; w < world; ++w) {
    // numel · w may be beyond 64 bits for no tensor that fits memory.
    add_piece(owners[static_cast<std::size_t>(w)], layer, begin + numel * w / world,
              begin + numel * (w + 1) / world);
  }
}

}  // namespace

std::vector<std::vector<Slice>> owner_slices(std::span<const std::int64_t> layers, int world,
                                             int chunks) {
  const std::int64_t all = std::accumulate(layers.begin(), layers.end(), std::int64_t{0});
  std::vector<std::vector<Slice>> slices(static_cast<std::size_t>(chunks),
                                         std::vector<Slice>(static_cast<std::size_t>(world)));
  for (int c = 0; c < chunks; ++c) {
    const std::int64_t chunk_begin = all * c / chunks;
    const std::int64_t chunk_end = all * (c + 1) / chunks;
    std::int64_t first = 0;  // of the layer
    for (std::size_t layer = 0; layer < layers.size(); ++layer) {
      const std::int64_t begin = std::clamp(chunk_begin - first, std::int64_t{0}, layers[layer]);
      const std::int64_t end = std::clamp(chunk_end - first, std::int64_t{0}, layers[layer]);
      share_out(slices[static_cast<std::size_t>(c)], layer, begin, end);
      first += layers[layer];
    }
  }
  return slices;
}

}  // namespace thinwire::comm
