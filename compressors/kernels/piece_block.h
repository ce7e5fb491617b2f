// Averaging in GPU memory, one tile at a time: the bodies of the kernels that encode gradients,
// make means and decode them, see block.h and piece_task.h. They give the bits of
// comm/average/reduce/scatter_reduce.cpp: every operation is rounded by itself, sums are in the
// order of the ranks.
#pragma once

#include "thinwire/compressors/kernels/owed.h"
#include "thinwire/compressors/kernels/tile_block.h"

namespace thinwire::kernels {

THINWIRE_HOST_DEVICE PhiloxStream random_of(const PieceKey& key, const DevicePiece& piece,
                                            std::uint32_t stage) {
  if (!piece.format.stochastic) return {};
  return PhiloxStream::of({key.seed, key.step, piece.layer_id, key.rank, stage, 0});
}

template <DType kType, typename Context>
THINWIRE_HOST_DEVICE void encode_tile(Context& block, TileShared& shared, const EncodeTask& task,
                                      std::uint64_t tile) {
  const DevicePiece& piece = piece_of(task.table, tile);
  const TilePlace place = place_of(piece, tile);
  const std::uint64_t first = piece.value + place.begin;
  const bool without_residual = resets(piece, task.key.step);
  float* const x = task.lost + first;
  for (std::uint32_t i = block.thread(); i < place.elements; i += block.size()) {
    x[i] = with_owed(piece, load_element<kType>(task.values, first + i), task.ranks,
                     without_residual, place.begin + i);
  }
  block.sync();
  std::byte* const payload = task.table.workspace + piece.sent + place.byte;
  write_tile(block, shared, piece.format, x, place.elements, random_of(task.key, piece, 0),
             piece.first_element + place.begin, payload);
  bool finite = true;
  if (piece.keeps_loss) {
    // Others' codes are read next, and others may still read the values.
    block.sync();
    read_tile(block, piece.format, payload, place.elements, [&](std::uint32_t i, float decoded) {
      const float lost = x[i] - decoded;
      finite = finite && is_finite(lost);
      x[i] = lost;
    });
  }
  finite = holds_for_all(block, shared, finite);
  if (block.thread() == 0) task.residual_finite[tile] = finite ? 1 : 0;
}

template <typename Context>
THINWIRE_HOST_DEVICE void reduce_tile(Context& block, TileShared& shared, const ReduceTask& task,
                                      std::uint64_t tile) {
  const DevicePiece& piece = piece_of(task.table, tile);
  const TilePlace place = place_of(piece, tile);
  float* const sums = task.sums + piece.own + place.begin;
  const std::byte* received = task.table.workspace + piece.received + place.byte;
  for (std::uint32_t r = 0; r < task.ranks; ++r, received += task.stride) {
    read_tile(block, piece.format, received, place.elements,
              [&](std::uint32_t i, float value) { sums[i] = r == 0 ? value : sums[i] + value; });
  }
  const float decay = resets(piece, task.key.step) ? 0.0f : piece.decay;
  for (std::uint32_t i = block.thread(); i < place.elements; i += block.size()) {
    float mean = sums[i] / task.divisor;
    if (piece.second != nullptr) mean = mean + decay * piece.second[place.begin + i];
    sums[i] = mean;
  }
  block.sync();
  std::byte* const payload = task.table.workspace + piece.made + place.byte;
  write_tile(block, shared, piece.format, sums, place.elements, random_of(task.key, piece, 1),
             piece.first_element + place.begin, payload);
  block.sync();
  bool finite = true;
  read_tile(block, piece.format, payload, place.elements, [&](std::uint32_t i, float decoded) {
    const float lost = sums[i] - decoded;
    finite = finite && is_finite(piece.keeps_loss ? lost : decoded);
    sums[i] = lost;
  });
  finite = holds_for_all(block, shared, finite);
  if (block.thread() == 0) task.mean_finite[tile] = finite ? 1 : 0;
}

// Threads work by themselves. What was lost may lie where the mean is written.
template <DType kType, typename Context>
THINWIRE_HOST_DEVICE void decode_tile(const Context& block, const DecodeTask& task,
                                      std::uint64_t tile) {
  const DevicePiece& piece = piece_of(task.table, tile);
  const TilePlace place = place_of(piece, tile);
  const std::uint64_t first = piece.value + place.begin;
  const bool keeps = piece.keeps_loss && task.keep[piece.layer] != 0;
  const bool keeps_second =
      piece.second != nullptr && task.words->refused == 0 && task.words->not_finite == 0;
  const float* const sums = task.sums + piece.own;
  read_tile(block, piece.format, task.table.workspace + piece.arrived + place.byte, place.elements,
            [&](std::uint32_t i, float value) {
              const std::uint32_t at = place.begin + i;
              if (keeps) piece.residual[at] = task.lost[first + i];
              if (keeps_second) piece.second[at] = sums[at];
              store_element<kType>(task.values, first + i, value);
            });
}

}  // namespace thinwire::kernels
