// What the kernels of averaging in GPU memory work on: plain data, which passes from the library to
// the CUDA module and from there to the device.
//
// The layers of a bucket are cut into pieces (comm/average/reduce/partition.h), and pieces into
// *tiles*, of which a block of threads codes one at a time. A bucket has one table of pieces and
// one of frames; they lie in device memory and are made once a layout. Tiles are numbered through
// the bucket in the order of the table: chunk by chunk, owner by owner, layer by layer. So what a
// chunk, a slice or a layer has is a run of tiles, and one launch codes any of these.
//
// All messages of a bucket lie in one *workspace*, at offsets that the tables give.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "thinwire/common/dtype.h"
#include "thinwire/compressors/kernels/quantize_math.h"

namespace thinwire::kernels {

// The codecs that have kernels here; those of the cast codec in the order of cast_formats().
enum class PieceCodec : std::uint8_t {
  kIdentity,
  kBFloat16,
  kFloat16,
  kE4M3,
  kE5M2,
  kQuantize,
  kOnebit,
  kTerngrad,
};

// Elements of a tile, but of codecs with buckets, whose tile is a bucket.
inline constexpr std::uint32_t kTileElements = 1024;

// How a layer's pieces are coded.
struct PieceFormat {
  PieceCodec codec = PieceCodec::kIdentity;
  bool stochastic = false;    // takes random numbers
  std::uint8_t bits = 0;      // of quantize: 1 to 8
  Norm norm = Norm::kMinMax;  // of quantize
  float clip = 0;             // of terngrad
  std::uint32_t tile = 0;     // elements of a full tile
  std::uint32_t tile_bytes = 0;
};

struct DevicePiece {
  PieceFormat format;
  std::uint32_t numel;  // at most 2^24
  std::uint32_t layer;  // index of the layer among those of the bucket
  std::uint32_t layer_id;
  float decay;               // of what is owed
  std::int64_t reset_every;  // steps after which nothing is owed; 0: never
  std::uint64_t first_tile;
  std::uint64_t first_mark;     // of slots alone: of its tiles in the order of layers
  std::uint64_t value;          // its first element in the bucket
  std::uint64_t first_element;  // in the layer
  std::uint64_t own;            // in the sums of this rank's slices; of own pieces alone
  // Where its payload lies in the workspace: as this rank sends it to the owner; as the first rank
  // sends it to this one; as this rank sends its mean; as the mean arrives.
  std::uint64_t sent, received, made, arrived;
  // Of its first element; null: none. `residual` is what is owed to the gradient. `second` what is
  // owed to the mean, -0 where that is nothing. `orphan` second residuals that this rank holds of
  // elements that others own now, -0 elsewhere.
  float* residual;
  float* second;
  const float* orphan;
  // What momentum correction owes from steps in which it corrected the layer; null: nothing.
  const float* leftover;
  // Whether what encoding loses is kept in `residual`.
  bool keeps_loss;
};

// One frame: a header of kFrameHeaderBytes, then a payload. Frames begin at multiples of 16 bytes.
struct DeviceFrame {
  std::uint64_t offset;  // in the workspace
  std::uint64_t numel;
  std::uint64_t payload_bytes;
  // Its part of the partial sums of the launch that takes them.
  std::uint32_t first_segment, segments;
  std::uint32_t sender;  // rank in the group
  std::uint32_t chunk;   // FrameHeader::chunk
  std::uint32_t codec;   // FrameHeader::codec_id
  // Of a mean of this rank: the tiles that it is made of, else none.
  std::uint64_t first_tile, tiles;
};

// Bytes of a payload whose sum one block of threads takes.
inline constexpr std::uint32_t kSegmentBytes = 16 * 1024;

inline constexpr std::uint32_t kDeviceHeaderBytes = 64;

// Tiles of one layer of the bucket.
struct LayerTiles {
  std::uint64_t first_tile, tiles;
};

// What has come of a bucket's exchange so far.
struct ExchangeWords {
  std::uint32_t refused;     // a frame that did not fit has come
  std::uint32_t not_finite;  // a mean is not finite
};

// The first frame that a rank refused since the host looked.
struct DeviceVerdict {
  // 0: none. 2: one that this rank saw itself; 1: `sender` said that it refused one of `blamed`.
  std::uint32_t kind;
  std::uint32_t sender, blamed;
  std::uint32_t field;  // FrameField
  std::uint64_t found, expected;
  std::uint64_t sequence, bucket;
};

// The fields of a frame's header in the order in which they are compared.
enum class FrameField : std::uint32_t {
  kMagic,
  kVersion,
  kSender,
  kSequence,
  kLayout,
  kChunk,
  kCodec,
  kNumel,
  kPayloadBytes,
  kChecksum,
  kSlot,  // of a slot whose frame is right: `found` is its SlotFault
};

// Why a slot was refused; what entropy::StepDecoder throws a FrameError for.
enum class SlotFault : std::uint32_t { kNone, kSize, kParts, kStep, kExcess, kStream };

struct ReadState {
  float step;
  SlotFault fault;
};

// Where the tables and the workspace are; the same in all launches of a bucket.
struct PieceTable {
  const DevicePiece* pieces;
  std::uint32_t count;
  std::uint32_t threads;  // of a block, at most kMaxBlockThreads
  std::byte* workspace;
};

// Of the random numbers of an exchange.
struct PieceKey {
  std::uint64_t seed, step;
  std::uint32_t rank;
};

// Encodes the tiles [first_tile, first_tile + tiles) to where they are sent.
struct EncodeTask {
  PieceTable table;
  std::uint64_t first_tile, tiles;
  DType dtype;         // of the bucket
  const void* values;  // the bucket: gradients
  // Of the bucket's size; the bucket itself where that is float32. Receives, where a piece keeps
  // its loss, what was lost; is overwritten elsewhere.
  float* lost;
  float ranks;  // by which orphans are multiplied
  PieceKey key;
  std::uint32_t* residual_finite;  // by tile of the bucket
};

// Makes the means of tiles of this rank's slice: adds the ranks' payloads in their order, divides,
// encodes.
struct ReduceTask {
  PieceTable table;
  std::uint64_t first_tile, tiles;
  std::uint64_t stride;  // bytes from one rank's frame to the next one's
  std::uint32_t ranks;
  float divisor;
  float* sums;  // by DevicePiece::own; receives what encoding the mean lost
  PieceKey key;
  std::uint32_t* mean_finite;  // by tile of the bucket
};

// Decodes the means of tiles into the bucket; keeps what was lost where the step counts.
struct DecodeTask {
  PieceTable table;
  std::uint64_t first_tile, tiles;
  DType dtype;
  void* values;
  const float* lost;
  const float* sums;
  const ExchangeWords* words;
  const std::uint32_t* keep;  // by layer of the bucket
};

// Sums of the payloads of `count` frames, segment by segment.
struct SumTask {
  const DeviceFrame* frames;
  std::uint32_t count;
  std::uint32_t segments;  // of all of them
  const std::byte* workspace;
  std::uint64_t* sums;  // by segment
};

// Looks at the frames that have arrived, then writes the headers of those that leave. Their
// segments are counted together.
struct FrameTask {
  const DeviceFrame* arrived;
  std::uint32_t arrivals;
  const DeviceFrame* leaving;
  std::uint32_t departures;
  const std::uint64_t* sums;
  std::byte* workspace;
  std::uint64_t layout, sequence, bucket;
  bool begins;  // the words of the exchange are cleared first
  ExchangeWords* words;
  DeviceVerdict* verdict;
  const std::uint32_t* mean_finite;  // by tile of the bucket
  // Where the exchange ends here: whether each layer keeps its loss is decided. Else no layers.
  const LayerTiles* layers;
  std::uint32_t layer_count;
  const std::uint32_t* residual_finite;
  std::uint32_t* keep;
  // Of the frames that have arrived, where these hold slots, which are read before; else null.
  const ReadState* states = nullptr;
};

template <typename Task>
inline constexpr bool kIsPlain =
    std::is_trivially_copyable_v<Task>&& std::is_standard_layout_v<Task>;
static_assert(kIsPlain<DevicePiece> && kIsPlain<DeviceFrame> && kIsPlain<EncodeTask> &&
              kIsPlain<ReduceTask> && kIsPlain<DecodeTask> && kIsPlain<SumTask> &&
              kIsPlain<FrameTask> && kIsPlain<DeviceVerdict>);

}  // namespace thinwire::kernels
