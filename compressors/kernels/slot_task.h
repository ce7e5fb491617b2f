// Entropy-coded slots (entropy/step_coder.h) in GPU memory, and what averages a bucket in them
// (comm/average/reduce/slot_reduce.h): the arguments of their kernels. Plain data, for the C
// interface of the CUDA module.
//
//   write     one block a slot: the values of its parts become a payload that fits, and its codes
//   read      one warp a slot: its codes to scratch memory, or why it is refused
//   apply     one block a tile: values =, += or −= what the codes stand for
//
// Of an exchange of slices, by the bucket's table of pieces, whose tiles are those of the slots:
//
//   correct   gradients and what they are owed, in float32
//   lose      less what the slots of a chunk stand for: the loss
//   mean      the slots of all ranks added up and divided, and what the mean is owed
//   lose_mean less what the slot of the mean stands for
//   deliver   the means; keeps what was lost where the step counts
//   report    one block: what the prefixes of all means say, and whether the step counts
#pragma once

#include <cstddef>
#include <cstdint>

#include "thinwire/common/dtype.h"
#include "thinwire/compressors/kernels/piece_task.h"

namespace thinwire::kernels {

// Elements of a part that one block takes.
inline constexpr std::uint32_t kSlotTile = 2048;

// In front of a payload, see comm::SlotReduce; both are the same on the two ways but for their
// number.
struct SlotPrefix {
  std::uint32_t wanted_bytes = 0;  // beyond what any payload takes
  // Roots of the squared error, and of what the goal allows; 0 for goals that are no errors.
  float lost = 0, allowed = 0;
};
// In place of the logarithm of a step where everything was zero.
inline constexpr double kNoStep = -1000;
struct MeanPrefix {
  SlotPrefix mean, slices;
  float log2_step = 0;
};
static_assert(sizeof(SlotPrefix) == 12 && sizeof(MeanPrefix) == 28);

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

struct Slot {
  std::byte* payload;   // at any address
  std::uint64_t bytes;  // of the slot
  const SlotPart* parts;
  std::uint32_t count;
  std::uint32_t tiles;       // of all parts
  std::uint64_t first_tile;  // among those of all slots of the task
  // Scratch memory of so many parts, elements, tiles and one more, and elements. Of the excess the
  // first of each tile is at `before`.
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

// How a part is quantised, and what that found. Scratch memory.
struct CodedPart {
  float rounding;
  std::uint32_t bound;        // 15, or 2 where codes go in pairs
  std::uint32_t kind;         // entropy::PartKind, without models and tables of others
  std::uint32_t group;        // whose table it has
  bool joins;                 // where others before it have that
  std::uint32_t not_finite;   // above 0: the rest means nothing
  std::uint32_t symbols[32];  // how often each occurs, or each pair
  std::uint64_t count[3];     // of each centroid (entropy::QuantisedSums)
  std::uint64_t fraction[3];  // two's complement
};

// Parts with one table. Scratch memory.
struct CodedGroup {
  std::uint32_t symbols[32];
  std::int64_t bits;       // about, with the table (entropy::FixedBits)
  std::uint64_t count[3];  // as CodedPart's
  std::uint64_t fraction[3];
  bool pairs;
  std::uint8_t zeros, decay, last;  // a model in place of a table where `last` is not 0
};

// What a sample has of a part of the slot.
struct SampledPart {
  SlotPart part;            // among the values of the sample
  std::uint32_t first_run;  // among the runs of all parts
  std::uint32_t runs;
  double weight;  // elements of the part that one of the sample stands for
};

// A slot to be written. Its codes are left as those of a slot that was read.
struct SlotCode {
  Slot slot;
  std::uint64_t numel;
  CodedPart* coded;  // as many as parts
  CodedGroup* groups;
  // Where the values are sampled for a step that fills the slot: room for the sample; else null.
  float* sample;
  const SampledPart* sampled;  // as many as parts
  std::uint32_t sample_tiles;
  std::uint64_t sample_numel;
  // Of a mean: the slots of the ranks that it is made of, whose prefixes are in front of them; else
  // null. Its own prefix is then a MeanPrefix.
  const Slot* received;
};

struct WriteTask {
  const SlotCode* slots;
  std::uint32_t count;
  std::uint32_t ranks;  // of SlotCode::received
  const float* values;
  float step, rounding;
  bool rounding_by_part, fill;
  // The first step that is tried, over `step`, and what was used of it by the last slot; null: 1.
  const float* begin;
  float* next_begin;
};

// A pass over some of a bucket's tiles of kSlotTile elements.
struct SlotPassTask {
  const DevicePiece* pieces;
  std::uint32_t count;
  std::uint64_t first_tile, tiles;
  DType dtype;   // of the bucket
  void* values;  // the bucket
  // Of the bucket's size; the bucket itself where that is float32.
  float* lost;
  float* sums;  // by DevicePiece::own
  std::uint64_t step;
  float ranks, divisor;
  // `lose`, `deliver`: by first_tile, as the bucket counts. `mean`: of each rank, in order.
  // `lose_mean`: one.
  const Slot* slots;
  std::uint32_t slot_count;
  std::uint32_t* residual_finite;  // by mark, see DevicePiece
  std::uint32_t* mean_finite;      // by tile of the bucket
  const ExchangeWords* words;
  const std::uint32_t* keep;  // by layer of the bucket
  // `report`: by slot, and the words behind.
  MeanPrefix* report;
};

enum class SlotPass : std::uint32_t { kCorrect, kLose, kMean, kLoseMean, kDeliver, kReport };

static_assert(kIsPlain<WriteTask> && kIsPlain<SlotTask> && kIsPlain<SlotPassTask> &&
              kIsPlain<SlotCode> && kIsPlain<SampledPart>);

}  // namespace thinwire::kernels
