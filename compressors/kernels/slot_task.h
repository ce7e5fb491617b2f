// Reading entropy-coded slots (entropy/step_coder.h) in GPU memory: the arguments of its kernels.
// Plain data, for the C interface of the CUDA module.
//
//   read    one warp a slot: its codes to scratch memory, or why it is refused
//   apply   one block a tile: values =, += or −= what the codes stand for
#pragma once

#include <cstddef>
#include <cstdint>

#include "thinwire/common/dtype.h"

namespace thinwire::kernels {

// Elements of a part that one block of `apply` takes.
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

}  // namespace thinwire::kernels
