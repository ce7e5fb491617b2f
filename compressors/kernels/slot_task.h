// Entropy-coded slots (entropy/step_coder.h) in GPU memory: the arguments of their kernels. Plain
// data, for the C interface of the CUDA module.
//
// Quantising the values of one slot, which its payload is then made of:
//
//   zone    one block a part: how it is quantised, by a sample of its values
//   code    one block a tile: a symbol an element, what the payload's tables and centroids follow
//           from, and how many numbers are beyond the symbols
//   place   one block: where those of each tile begin
//   list    one block a tile: these numbers, in order
//
// Reading slots:
//
//   read    one warp a slot: its codes to scratch memory, or why it is refused
//   apply   one block a tile: values =, += or −= what the codes stand for
#pragma once

#include <cstddef>
#include <cstdint>

#include "thinwire/common/dtype.h"

namespace thinwire::kernels {

// Elements of a part that one block takes.
inline constexpr std::uint32_t kSlotTile = 2048;

// A part of a slot, as all ranks derive it from the layout.
struct SlotPart {
  std::uint64_t first;       // element among those of the slot's parts
  std::uint64_t value;       // element among the values that it is applied to
  std::uint32_t numel;       // may be 0
  std::uint32_t first_tile;  // among those of the slot's parts
};

// What a slot says of a part.
struct ReadPart {
  std::uint32_t kind;       // entropy::PartKind
  std::uint32_t centroids;  // a byte each, the lowest for m = 1
};

// Why a slot was refused; what entropy::StepDecoder throws a FrameError for.
enum class SlotFault : std::uint32_t { kNone, kSize, kParts, kStep, kExcess, kStream };

struct ReadState {
  float step;
  SlotFault fault;
};

struct Slot {
  const std::byte* payload;  // at any address
  std::uint64_t bytes;       // of the slot
  const SlotPart* parts;
  std::uint32_t count;
  std::uint32_t tiles;       // of all parts
  std::uint64_t first_tile;  // among those of all slots of the task
  // Scratch memory of so many parts, elements, tiles and elements. Of the excess the first of each
  // tile is at `before`.
  ReadPart* read;
  std::uint8_t* symbols;
  std::uint32_t* before;
  std::uint32_t* excess;
  ReadState* state;
};

enum class SlotApply : std::uint32_t { kAssign, kAdd, kSubtract };

struct SlotTask {
  const Slot* slots;
  std::uint32_t count;
  std::uint64_t tiles;  // of all slots
  // Of `apply`. Slots that were refused change nothing.
  void* values;
  DType dtype;  // float32 but for kAssign
  SlotApply apply;
};

enum class SlotStage : std::uint32_t { kRead, kApply };

// What quantising found of a part.
struct CodedPart {
  float rounding;
  std::uint32_t bound;        // 15, or 2 where codes go in pairs
  std::uint32_t not_finite;   // above 0: the rest means nothing
  std::uint32_t symbols[32];  // how often each occurs, or each pair
  std::uint64_t count[3];     // of each centroid (entropy::QuantisedSums)
  std::uint64_t fraction[3];  // two's complement
};

struct CodeTask {
  const SlotPart* parts;
  std::uint32_t count;
  std::uint32_t tiles;
  const float* values;
  const float* step;  // in GPU memory; 0: all values are zero
  float rounding;
  bool rounding_by_part;
  CodedPart* coded;
  std::uint8_t* symbols;
  // Numbers beyond the bound, and before each tile; their number is at the end, after all tiles.
  std::uint32_t* before;
  std::uint32_t* excess;
};

enum class CodeStage : std::uint32_t { kZone, kCode, kPlace, kList };

}  // namespace thinwire::kernels
