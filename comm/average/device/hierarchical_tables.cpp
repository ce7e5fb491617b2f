#include "thinwire/comm/average/device/hierarchical_tables.h"

#include "thinwire/comm/average/reduce/exact_mean.h"
#include "thinwire/comm/wire/frame.h"

namespace thinwire::comm {
namespace {

std::vector<DeviceLayer> as_they_are(std::span<const DeviceLayer> layers) {
  std::vector<DeviceLayer> copies(layers.begin(), layers.end());
  for (DeviceLayer& layer : copies) layer.codec = &identity_codec();
  return copies;
}

std::vector<int> members_of(const Peers& peers) {
  std::vector<int> members;
  for (int peer = 0; peer < peers.size(); ++peer) members.push_back(peers.group_rank(peer));
  return members;
}

PieceScope scope_inside(std::span<const DeviceLayer> layers, const Hierarchical& reduction,
                        int group_size) {
  const Partition& partition = reduction.inside();
  PieceScope scope = PieceScope::of_group(layers, partition, reduction.host().rank());
  scope.members = members_of(reduction.host());
  scope.group_size = group_size;
  scope.keeps_means = false;
  scope.sums_apart = true;
  return scope;
}

// First elements of this rank's slices, and of their pieces, in the order of DevicePiece::own.
std::vector<std::vector<std::int64_t>> own_places(const Hierarchical& reduction) {
  std::vector<std::vector<std::int64_t>> places;
  std::int64_t at = 0;
  for (int c = 0; c < reduction.inside().chunks(); ++c) {
    auto& of_chunk = places.emplace_back();
    for (const Piece& piece : reduction.inside().slice(c, reduction.host().rank()).pieces) {
      of_chunk.push_back(at);
      at += piece.numel;
    }
  }
  return places;
}

PieceScope scope_between(const Hierarchical& reduction, int group_size, bool only_codes) {
  return {.members = members_of(reduction.lane()),
          .rank = reduction.lane().rank(),
          .group_size = group_size,
          .chunks = reduction.inside().chunks(),
          .slice = [&reduction](int chunk, int owner) -> const Slice& {
            return reduction.between(chunk).slice(0, owner);
          },
          .place = [&reduction, own = own_places(reduction)](
                       int chunk, const Piece& piece) -> PieceScope::Place {
            const Piece& whole =
                reduction.inside().slice(chunk, reduction.host().rank()).pieces[piece.layer];
            return {whole.layer, whole.begin + piece.begin,
                    own[static_cast<std::size_t>(chunk)][piece.layer] + piece.begin};
          },
          .pays = false,
          .only_codes = only_codes,
          .means_apart = true};
}

}  // namespace

HierarchicalTables::HierarchicalTables(std::span<const DeviceLayer> layers,
                                       const Hierarchical& reduction, int group_size,
                                       at::Device device, DeviceMemory& memory)
    : uncompressed_(as_they_are(layers)),
      inside_(uncompressed_, scope_inside(uncompressed_, reduction, group_size), device, memory),
      between_(layers, scope_between(reduction, group_size, /*only_codes=*/true), device, memory),
      kept_(layers, scope_between(reduction, group_size, /*only_codes=*/false), device, memory) {
  std::int64_t own = 0;
  for (int c = 0; c < reduction.inside().chunks(); ++c) {
    const DeviceChunk& chunk = inside_.chunks()[static_cast<std::size_t>(c)];
    values_at_.push_back(chunk.made_at + static_cast<std::int64_t>(kFrameHeaderBytes) -
                         own * static_cast<std::int64_t>(sizeof(float)));
    own += reduction.inside().slice(c, reduction.host().rank()).numel;
  }
}

}  // namespace thinwire::comm
