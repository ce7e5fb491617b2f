// Coding one tile (piece_task.h) with a block of threads, from float32 and to float32: what encode,
// reduce and decode share. Threads keep their elements: what element i was, is read by the thread
// that gets it decoded. Payloads may lie at any address. See block.h.
#pragma once

#include "thinwire/common/philox.h"
#include "thinwire/compressors/kernels/block.h"
#include "thinwire/compressors/kernels/fp8.h"
#include "thinwire/compressors/kernels/piece_task.h"
#include "thinwire/compressors/kernels/quantize_block.h"
#include "thinwire/compressors/kernels/sign_block.h"

namespace thinwire::kernels {

// Elements of which one thread finds the largest, for the scale of a block of 8-bit floats.
inline constexpr std::uint32_t kFp8Run = 16;

struct TileShared {
  QuantizeShared quantize;
  SignShared signs;
  std::uint32_t largest[kTileElements / kFp8Run];  // bits of magnitudes
  std::uint32_t scale[kTileElements / kFp8Block];
  bool all[kMaxBlockThreads];
};

// One tile of a piece.
struct TilePlace {
  std::uint32_t begin;  // its first element in the piece
  std::uint32_t elements;
  std::uint64_t byte;  // of the piece's payload
};

THINWIRE_HOST_DEVICE const DevicePiece& piece_of(const PieceTable& table, std::uint64_t tile) {
  return table.pieces[last_begun(table.pieces, table.count, &DevicePiece::first_tile, tile)];
}

THINWIRE_HOST_DEVICE TilePlace place_of(const DevicePiece& piece, std::uint64_t tile) {
  const std::uint64_t number = tile - piece.first_tile;
  const auto begin = static_cast<std::uint32_t>(number * piece.format.tile);
  const std::uint32_t left = piece.numel - begin;
  return {begin, left < piece.format.tile ? left : piece.format.tile,
          number * piece.format.tile_bytes};
}

// Whether it holds for all threads; for thread 0 alone to read. Another sync has to come before it
// is called again.
template <typename Context>
THINWIRE_HOST_DEVICE bool holds_for_all(Context& block, TileShared& shared, bool mine) {
  const std::uint32_t thread = block.thread(), size = block.size();
  shared.all[thread] = mine;
  block.sync();
  std::uint32_t half = 1;
  while (2 * half < size) half *= 2;
  for (; half > 0; half /= 2) {
    if (thread < half && thread + half < size) {
      mine = mine && shared.all[thread + half];
      shared.all[thread] = mine;
    }
    block.sync();
  }
  return mine;
}

THINWIRE_HOST_DEVICE void store_half(std::byte* at, std::uint16_t half) {
  if (reinterpret_cast<std::uintptr_t>(at) % sizeof half == 0) {
    std::memcpy(__builtin_assume_aligned(at, sizeof half), &half, sizeof half);
  } else {
    std::memcpy(at, &half, sizeof half);
  }
}
THINWIRE_HOST_DEVICE std::uint16_t load_half(const std::byte* at) {
  std::uint16_t half;
  if (reinterpret_cast<std::uintptr_t>(at) % sizeof half == 0) {
    std::memcpy(&half, __builtin_assume_aligned(at, sizeof half), sizeof half);
  } else {
    std::memcpy(&half, at, sizeof half);
  }
  return half;
}

// Where code `i` of a row of 8-bit floats lies, scales counted.
THINWIRE_HOST_DEVICE std::uint32_t fp8_byte(std::uint32_t i) {
  return i + i / static_cast<std::uint32_t>(kFp8Block) + 1;
}

// As ref::fp8_encode(). First runs of elements, then blocks of runs, for a maximum may be taken in
// any order.
template <Fp8 kFormat, typename Context>
THINWIRE_HOST_DEVICE void write_fp8(Context& block, TileShared& shared, const float* x,
                                    std::uint32_t elements, std::byte* payload) {
  constexpr auto kBlock = static_cast<std::uint32_t>(kFp8Block);
  const std::uint32_t runs = (elements + kFp8Run - 1) / kFp8Run;
  for (std::uint32_t run = block.thread(); run < runs; run += block.size()) {
    std::uint32_t largest = 0;
    for (std::uint32_t i = run * kFp8Run; i < (run + 1) * kFp8Run && i < elements; ++i) {
      const std::uint32_t magnitude = bits_of(x[i]) & 0x7FFFFFFFu;
      if (magnitude < kFloatInfinityBits && magnitude > largest) largest = magnitude;
    }
    shared.largest[run] = largest;
  }
  block.sync();
  const std::uint32_t blocks = (elements + kBlock - 1) / kBlock;
  for (std::uint32_t b = block.thread(); b < blocks; b += block.size()) {
    std::uint32_t largest = 0;
    for (std::uint32_t run = b * (kBlock / kFp8Run);
         run < (b + 1) * (kBlock / kFp8Run) && run < runs; ++run) {
      const std::uint32_t next = shared.largest[run];
      largest = next > largest ? next : largest;
    }
    const std::uint32_t scale = fp8_scale<kFormat>(largest);
    shared.scale[b] = scale;
    payload[fp8_byte(b * kBlock) - 1] = static_cast<std::byte>(scale);
  }
  block.sync();
  for (std::uint32_t i = block.thread(); i < elements; i += block.size()) {
    const float scaled = x[i] * fp8_inverse(shared.scale[i / kBlock]);
    payload[fp8_byte(i)] = static_cast<std::byte>(fp8_from_float<kFormat>(scaled));
  }
}

template <Fp8 kFormat, typename Context, typename Visit>
THINWIRE_HOST_DEVICE void read_fp8(const Context& block, const std::byte* payload,
                                   std::uint32_t elements, const Visit& visit) {
  constexpr auto kBlock = static_cast<std::uint32_t>(kFp8Block);
  for (std::uint32_t i = block.thread(); i < elements; i += block.size()) {
    const std::byte scale = payload[fp8_byte(i / kBlock * kBlock) - 1];
    const float value = float_from_fp8<kFormat>(static_cast<std::uint8_t>(payload[fp8_byte(i)]));
    visit(i, is_finite(value) ? value * fp8_multiplier(static_cast<std::uint32_t>(scale)) : value);
  }
}

// Encodes `elements` values, which other threads may have written before the last sync. `first` is
// the index in the layer of the first one.
template <typename Context>
THINWIRE_HOST_DEVICE void write_tile(Context& block, TileShared& shared, const PieceFormat& format,
                                     const float* x, std::uint32_t elements,
                                     const PhiloxStream& random, std::uint64_t first,
                                     std::byte* payload) {
  switch (format.codec) {
    case PieceCodec::kIdentity:
      for (std::uint32_t i = block.thread(); i < elements; i += block.size()) {
        store_word(payload + std::size_t{4} * i, bits_of(x[i]));
      }
      return;
    case PieceCodec::kBFloat16:
      for (std::uint32_t i = block.thread(); i < elements; i += block.size()) {
        store_half(payload + std::size_t{2} * i, bfloat_from_float(x[i]));
      }
      return;
    case PieceCodec::kFloat16:
      for (std::uint32_t i = block.thread(); i < elements; i += block.size()) {
        store_half(payload + std::size_t{2} * i, half_from_float(x[i]));
      }
      return;
    case PieceCodec::kE4M3:
      return write_fp8<Fp8::kE4M3>(block, shared, x, elements, payload);
    case PieceCodec::kE5M2:
      return write_fp8<Fp8::kE5M2>(block, shared, x, elements, payload);
    case PieceCodec::kOnebit:
      return write_onebit(block, shared.signs, x, elements, payload);
    case PieceCodec::kTerngrad:
      return write_terngrad(block, shared.signs, format.clip, x, elements, random, first, payload);
    case PieceCodec::kQuantize:
      break;
  }
  const QuantizeTask task{{format.bits, format.norm, DType::kFloat32, elements, elements},
                          format.stochastic,
                          first,
                          random,
                          x,
                          payload,
                          nullptr};
  const BucketPlace whole{0, elements, 0};
  analyse_bucket<DType::kFloat32>(block, shared.quantize, task, whole);
  pack_bucket<DType::kFloat32>(block, shared.quantize, task, whole);
}

// Calls visit(i, value) for the elements of this thread: thread(), thread() + size(), …
template <typename Context, typename Visit>
THINWIRE_HOST_DEVICE void read_tile(const Context& block, const PieceFormat& format,
                                    const std::byte* payload, std::uint32_t elements,
                                    const Visit& visit) {
  switch (format.codec) {
    case PieceCodec::kIdentity:
      for (std::uint32_t i = block.thread(); i < elements; i += block.size()) {
        visit(i, float_of(load_word(payload + std::size_t{4} * i)));
      }
      return;
    case PieceCodec::kBFloat16:
      for (std::uint32_t i = block.thread(); i < elements; i += block.size()) {
        visit(i, float_from_bfloat(load_half(payload + std::size_t{2} * i)));
      }
      return;
    case PieceCodec::kFloat16:
      for (std::uint32_t i = block.thread(); i < elements; i += block.size()) {
        visit(i, float_from_half(load_half(payload + std::size_t{2} * i)));
      }
      return;
    case PieceCodec::kE4M3:
      return read_fp8<Fp8::kE4M3>(block, payload, elements, visit);
    case PieceCodec::kE5M2:
      return read_fp8<Fp8::kE5M2>(block, payload, elements, visit);
    case PieceCodec::kOnebit:
      return read_onebit(block, payload, elements, visit);
    case PieceCodec::kTerngrad:
      return read_terngrad(block, payload, elements, visit);
    case PieceCodec::kQuantize:
      break;
  }
  const Levels levels = levels_of(format.norm, format.bits);
  const Bounds bounds = read_header(format.norm, payload);
  const DecodeGrid grid = decode_grid(levels, bounds);
  const std::byte* codes = payload + header_bytes(format.norm);
  for (std::uint32_t i = block.thread(); i < elements; i += block.size()) {
    float value = bounds.hi;
    if (is_finite(bounds.hi)) {
      const auto code = static_cast<int>(unpacked_code(codes, format.bits, elements, i));
      value = value_of(levels, grid, code + levels.lowest);
    }
    visit(i, value);
  }
}

}  // namespace thinwire::kernels
