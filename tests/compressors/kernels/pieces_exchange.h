// Two ranks that average a bucket by the kernels of pieces_cuda.cu, executed from their PTX, and
// the same by the codecs on the CPU.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/compressors/kernels/float_arrays.h"
#include "thinwire/compressors/kernels/frame_block.h"
#include "thinwire/compressors/kernels/piece_block.h"
#include "thinwire/tests/compressors/codecs/payloads.h"
#include "thinwire/tests/support/ptx/machine.h"
#include "thinwire/tests/support/ptx/named_kernels.h"

namespace thinwire::testing {

using namespace kernels;

inline constexpr int kRanks = 2;
inline constexpr std::uint64_t kStep = 3, kSeed = 11, kSequence = 42, kLayout = 0x123456789ABCDEFu;

struct Layer {
  const char* codec;
  std::uint32_t numel;
  bool keeps = false, second = false, orphan = false;
  std::int64_t reset_every = 0;
  float decay = 1;
  std::uint64_t first = 5;  // the layer's number times this is its first element
};

// The owner of a layer is its number modulo the ranks.
inline constexpr Layer kLayers[] = {
    {"quantize(bits=4, bucket=256)", 1601, true, true, true},
    {"cast(format=bf16)", 1030},
    {"quantize(bits=3, bucket=1024, norm=l2, rounding=stochastic)", 1601},
    {"cast(format=fp8_e4m3)", 1111, true, true, false, 0, 0.5f},
    {"cast(format=fp16)", 77, true, false, false, kStep},
    {"cast(format=fp8_e5m2)", 1025, true, true, false, kStep, 0.5f},
    {"identity", 1029},
    {"quantize(bits=1, bucket=512, norm=linf)", 515, true, true, true, 0, 0.25f},
    {"onebit(bucket=128)", 301, true, true, true, 0, 0.5f},
    {"terngrad(bucket=192)", 413, false, false, false, 0, 1, 64},
    {"terngrad(bucket=128, clip=1.5)", 139, true, true, true, 0, 0.5f, 64},
};
inline constexpr std::size_t kLayerCount = std::size(kLayers);

inline const std::vector<ptx::Kernel>& compiled() {
  static const std::vector<ptx::Kernel> kernels = ptx::kernels_of_file(THINWIRE_PIECES_PTX);
  return kernels;
}

inline std::string instance(const std::string& name, DType dtype) {
  return ptx::instance(name, "DType", static_cast<int>(dtype));
}

// One rank: what it has, its tables and its workspace. Frames: 0 and 1 leave for the owners, 2 and
// 3 come from the ranks, 4 is the mean, 5 and 6 are the means of all.
struct Rank {
  Rank(int number, DType type, float poison);

  int rank;
  DType dtype;
  std::uint32_t threads = 64;
  Tensor bucket;
  std::vector<float> lost, sums;
  std::vector<std::vector<float>> residuals, seconds, orphans;
  std::vector<DevicePiece> pieces;
  std::vector<DeviceFrame> frames;
  std::vector<LayerTiles> layers;
  std::vector<std::byte> workspace;
  std::vector<std::uint64_t> segment_sums = std::vector<std::uint64_t>(64);
  std::vector<std::uint32_t> residual_finite, mean_finite, keep;
  ExchangeWords words{7, 7};
  DeviceVerdict verdict{};
  std::uint64_t tiles = 0;
  // Of one rank's frames: where they begin, by owner, and how long the longest is.
  std::uint64_t frame_bytes[kRanks] = {}, longest = 0;

  std::uint64_t sent(int owner) const { return owner == 0 ? 0 : frame_bytes[0]; }
  std::uint64_t received(int sender) const {
    return frame_bytes[0] + frame_bytes[1] + static_cast<std::uint64_t>(sender) * frame_bytes[rank];
  }
  std::uint64_t made() const { return received(kRanks); }
  std::uint64_t arrived(int owner) const {
    return made() + longest * static_cast<std::uint64_t>(1 + owner);
  }
};

inline std::size_t payload_bytes(const Layer& layer) {
  return make_codec(layer.codec)->max_compressed_bytes(layer.numel, DType::kFloat32);
}

inline std::uint64_t first_value(std::size_t layer) {
  std::uint64_t first = 3;  // a hole before the first layer
  for (std::size_t l = 0; l < layer; ++l) first += kLayers[l].numel;
  return first;
}

inline Rank::Rank(int number, DType type, float poison)
    : rank(number), dtype(type), bucket(type, [&] {
        auto values =
            normal_values(first_value(kLayerCount), static_cast<std::uint32_t>(10 + number));
        for (const std::size_t layer : {3, 8, 9}) {
          if (poison != 0) values[first_value(layer) + 5] = poison;
        }
        return values;
      }()) {
  std::uint64_t payload[kRanks] = {}, numel[kRanks] = {}, own = 0;
  for (std::size_t l = 0; l < kLayerCount; ++l) {
    payload[l % kRanks] += payload_bytes(kLayers[l]);
    numel[l % kRanks] += kLayers[l].numel;
  }
  for (int owner = 0; owner < kRanks; ++owner) {
    frame_bytes[owner] = (kDeviceHeaderBytes + payload[owner] + 15) / 16 * 16;
    longest = std::max(longest, frame_bytes[owner]);
  }
  std::uint64_t own_first = 0, own_tiles = 0;
  for (int owner = 0; owner < kRanks; ++owner) {
    std::uint64_t byte = kDeviceHeaderBytes;
    if (owner == rank) own_first = tiles;
    for (std::size_t l = static_cast<std::size_t>(owner); l < kLayerCount; l += kRanks) {
      const Layer& layer = kLayers[l];
      const auto seed = static_cast<std::uint32_t>(100 * l + static_cast<std::size_t>(rank));
      const auto make = [&](bool any, std::uint32_t kind) {
        return any ? normal_values(layer.numel, seed + kind, 0.1f) : std::vector<float>();
      };
      residuals.push_back(make(layer.keeps, 10));
      seconds.push_back(make(layer.second && owner == rank, 20));
      orphans.push_back(make(layer.orphan, 30));
      const auto data = [](std::vector<float>& values) {
        return values.empty() ? nullptr : values.data();
      };
      const PieceFormat format = *make_codec(layer.codec)->piece_format();
      pieces.push_back({.format = format,
                        .numel = layer.numel,
                        .layer = static_cast<std::uint32_t>(l),
                        .layer_id = static_cast<std::uint32_t>(l + 1000),
                        .decay = layer.decay,
                        .reset_every = layer.reset_every,
                        .first_tile = tiles,
                        .first_mark = 0,
                        .value = first_value(l),
                        .first_element = layer.first * l,
                        .own = own,
                        .sent = sent(owner) + byte,
                        .received = received(0) + byte,
                        .made = made() + byte,
                        .arrived = arrived(owner) + byte,
                        .residual = data(residuals.back()),
                        .second = data(seconds.back()),
                        .orphan = data(orphans.back()),
                        .leftover = nullptr,
                        .keeps_loss = layer.keeps});
      tiles += (layer.numel + format.tile - 1) / format.tile;
      if (owner == rank) own += layer.numel;
      byte += payload_bytes(layer);
    }
    if (owner == rank) own_tiles = tiles - own_first;
  }
  layers.resize(kLayerCount);
  for (const DevicePiece& piece : pieces) {
    layers[piece.layer] = {piece.first_tile,
                           (piece.numel + piece.format.tile - 1) / piece.format.tile};
  }
  const auto frame = [&](std::uint64_t offset, int owner, int sender, std::uint32_t chunk,
                         std::uint32_t first_segment) {
    frames.push_back({.offset = offset,
                      .numel = numel[owner],
                      .payload_bytes = payload[owner],
                      .first_segment = first_segment,
                      .segments = static_cast<std::uint32_t>((payload[owner] + kSegmentBytes - 1) /
                                                             kSegmentBytes),
                      .sender = static_cast<std::uint32_t>(sender),
                      .chunk = chunk,
                      .codec = 0xFFFF,
                      .first_tile = 0,
                      .tiles = 0});
    return first_segment + frames.back().segments;
  };
  std::uint32_t segment = 0;
  for (int owner = 0; owner < kRanks; ++owner)
    segment = frame(sent(owner), owner, rank, 0, segment);
  segment = 0;
  for (int sender = 0; sender < kRanks; ++sender) {
    segment = frame(received(sender), rank, sender, 0, segment);
  }
  frame(made(), rank, rank, 1, segment);
  frames.back().first_tile = own_first;
  frames.back().tiles = own_tiles;
  segment = 0;
  for (int owner = 0; owner < kRanks; ++owner) {
    segment = frame(arrived(owner), owner, owner, 1, segment);
  }
  lost.resize(bucket.size());
  sums.resize(own);
  workspace.resize(arrived(kRanks));
  residual_finite.resize(tiles);
  mean_finite.resize(tiles);
  keep.resize(kLayerCount);
}

// What is sent to a kernel may be touched by it, and nothing else.
template <typename Task>
void launch(Rank& rank, const std::vector<ptx::Kernel>& kernels, const std::string& name,
            const Task& task, std::uint64_t blocks, std::uint32_t threads, std::uint64_t seed) {
  ptx::GlobalMemory memory;
  const auto add = [&](auto& values) {
    if (!values.empty()) memory.add(values.data(), values.size() * sizeof(values[0]));
  };
  // Not its surroundings.
  memory.add(rank.bucket.data(), rank.bucket.size() * size_of(rank.dtype));
  for (auto* lists : {&rank.residuals, &rank.seconds, &rank.orphans}) {
    for (auto& values : *lists) add(values);
  }
  add(rank.lost);
  add(rank.sums);
  add(rank.pieces);
  add(rank.frames);
  add(rank.layers);
  add(rank.workspace);
  add(rank.segment_sums);
  add(rank.residual_finite);
  add(rank.mean_finite);
  add(rank.keep);
  memory.add(&rank.words, sizeof rank.words);
  memory.add(&rank.verdict, sizeof rank.verdict);
  ptx::run(ptx::kernel_of(kernels, name),
           {.blocks = static_cast<std::uint32_t>(blocks),
            .threads = threads,
            .parameters = std::as_bytes(std::span(&task, 1)),
            .seed = seed},
           memory);
}

// An exchange as DeviceScatter makes it.
struct Exchange {
  const std::vector<ptx::Kernel>& kernels = compiled();
  std::uint64_t seed = 0;
  // Called with what was received, before it is looked at.
  std::function<void(Rank&)> after_scatter = [](Rank&) {}, after_gather = [](Rank&) {};

  static PieceTable table(Rank& rank) {
    return {rank.pieces.data(), static_cast<std::uint32_t>(rank.pieces.size()), rank.threads,
            rank.workspace.data()};
  }
  // By which kernels find the loss: in place where the bucket is float32.
  static float* lost(Rank& rank) {
    return rank.dtype == DType::kFloat32 ? static_cast<float*>(rank.bucket.data())
                                         : rank.lost.data();
  }
  static PieceKey key(const Rank& rank) {
    return {kSeed, kStep, static_cast<std::uint32_t>(rank.rank)};
  }
  static FrameTask frame_task(Rank& rank) {
    return {.arrived = nullptr,
            .arrivals = 0,
            .leaving = nullptr,
            .departures = 0,
            .sums = rank.segment_sums.data(),
            .workspace = rank.workspace.data(),
            .layout = kLayout,
            .sequence = kSequence,
            .bucket = 9,
            .begins = false,
            .words = &rank.words,
            .verdict = &rank.verdict,
            .mean_finite = rank.mean_finite.data(),
            .layers = nullptr,
            .layer_count = 0,
            .residual_finite = rank.residual_finite.data(),
            .keep = rank.keep.data()};
  }
  void sum(Rank& rank, std::size_t first, std::uint32_t count) {
    std::uint32_t segments = 0;
    for (std::uint32_t f = 0; f < count; ++f) segments += rank.frames[first + f].segments;
    launch(rank, kernels, "sum_frames_kernel",
           SumTask{&rank.frames[first], count, segments, rank.workspace.data(),
                   rank.segment_sums.data()},
           segments, 256, seed);
  }
  void frames(Rank& rank, const FrameTask& task) {
    // One team of threads looks at one frame after another, several at all of them at once.
    launch(rank, kernels, "13frames_kernel", task, 1, seed % 2 == 0 ? 256 : 32, seed);
  }

  void encode(Rank& rank) {
    const EncodeTask task{table(rank),
                          0,
                          rank.tiles,
                          rank.dtype,
                          rank.bucket.data(),
                          lost(rank),
                          kRanks,
                          key(rank),
                          rank.residual_finite.data()};
    launch(rank, kernels, instance("encode_pieces_kernel", rank.dtype), task, rank.tiles,
           rank.threads, seed);
    sum(rank, 0, 2);
    FrameTask leaving = frame_task(rank);
    leaving.leaving = &rank.frames[0];
    leaving.departures = 2;
    leaving.begins = true;
    frames(rank, leaving);
  }
  void reduce(Rank& rank) {
    const DeviceFrame& mean = rank.frames[4];
    launch(rank, kernels, "reduce_pieces_kernel",
           ReduceTask{table(rank), mean.first_tile, mean.tiles, rank.frame_bytes[rank.rank], kRanks,
                      kRanks, rank.sums.data(), key(rank), rank.mean_finite.data()},
           mean.tiles, rank.threads, seed);
    sum(rank, 2, 3);
    FrameTask task = frame_task(rank);
    task.arrived = &rank.frames[2];
    task.arrivals = 2;
    task.leaving = &rank.frames[4];
    task.departures = 1;
    frames(rank, task);
  }
  void decode(Rank& rank) {
    sum(rank, 5, 2);
    FrameTask task = frame_task(rank);
    task.arrived = &rank.frames[5];
    task.arrivals = 2;
    task.layers = rank.layers.data();
    task.layer_count = kLayerCount;
    frames(rank, task);
    launch(rank, kernels, instance("decode_pieces_kernel", rank.dtype),
           DecodeTask{table(rank), 0, rank.tiles, rank.dtype, rank.bucket.data(), lost(rank),
                      rank.sums.data(), &rank.words, rank.keep.data()},
           rank.tiles, rank.threads, seed);
  }
  void run(std::vector<Rank>& ranks) {
    for (Rank& rank : ranks) encode(rank);
    for (Rank& to : ranks) {
      for (const Rank& from : ranks) {
        std::memcpy(&to.workspace[to.received(from.rank)], &from.workspace[from.sent(to.rank)],
                    to.frame_bytes[to.rank]);
      }
      after_scatter(to);
    }
    for (Rank& rank : ranks) reduce(rank);
    for (Rank& to : ranks) {
      for (const Rank& from : ranks) {
        std::memcpy(&to.workspace[to.arrived(from.rank)], &from.workspace[from.made()],
                    from.frame_bytes[from.rank]);
      }
      after_gather(to);
    }
    for (Rank& rank : ranks) decode(rank);
  }
};

// The same on the CPU, in the words of scatter_reduce: bucket, residuals and second residuals of
// all ranks.
struct Expected {
  std::vector<Tensor> buckets;
  std::vector<std::vector<std::vector<float>>> residuals, seconds;
  bool finite = true;
};

inline Expected reference(const std::vector<Rank>& ranks) {
  Expected expected;
  for (const Rank& rank : ranks) {
    expected.buckets.push_back(rank.bucket);
    expected.residuals.push_back(rank.residuals);
    expected.seconds.push_back(rank.seconds);
  }
  std::vector<std::function<void()>> commits;
  for (std::size_t p = 0; p < kLayerCount; ++p) {
    const DevicePiece& piece = ranks[0].pieces[p];
    const Layer& layer = kLayers[piece.layer];
    const CodecPtr codec = make_codec(layer.codec);
    const std::size_t owner = piece.layer % kRanks;
    const bool resets = layer.reset_every > 0 && kStep % std::uint64_t(layer.reset_every) == 0;
    const auto key = [&](std::size_t rank, std::uint32_t stage) {
      return RandomKey{kSeed,          kStep,
                       piece.layer_id, static_cast<std::uint32_t>(rank),
                       stage,          piece.first_element};
    };
    std::vector<float> sums(layer.numel), decoded(layer.numel);
    for (std::size_t r = 0; r < kRanks; ++r) {
      std::vector<float> values(layer.numel);
      for (std::size_t i = 0; i < layer.numel; ++i) values[i] = ranks[r].bucket[piece.value + i];
      if (layer.orphan) add_scaled(values.data(), ranks[r].orphans[p].data(), kRanks, values);
      if (layer.keeps && !resets)
        add_scaled(values.data(), ranks[r].residuals[p].data(), layer.decay, values);
      const auto payload = compressed(*codec, view_of(std::span<const float>(values)), key(r, 0));
      codec->decompress(payload, key(r, 0), view_of(std::span(sums)),
                        r == 0 ? WriteMode::kAssign : WriteMode::kAccumulate);
      if (!layer.keeps) continue;
      codec->decompress(payload, key(r, 0), view_of(std::span(decoded)), WriteMode::kAssign);
      subtract(values, decoded.data());
      commits.emplace_back([&expected, r, p, values] {
        if (all_finite(values)) expected.residuals[r][p] = values;
      });
    }
    divide(sums, kRanks);
    if (!ranks[owner].seconds[p].empty())
      add_scaled(sums.data(), ranks[owner].seconds[p].data(), resets ? 0 : layer.decay, sums);
    const auto payload = compressed(*codec, view_of(std::span<const float>(sums)), key(owner, 1));
    codec->decompress(payload, key(owner, 1), view_of(std::span(decoded)), WriteMode::kAssign);
    expected.finite = expected.finite && all_finite(decoded);
    subtract(sums, decoded.data());
    if (!ranks[owner].seconds[p].empty())
      commits.emplace_back([&expected, owner, p, sums] { expected.seconds[owner][p] = sums; });
    for (Tensor& bucket : expected.buckets) {
      for (std::size_t i = 0; i < layer.numel; ++i)
        ref::store(ranks[0].dtype, bucket.data(), piece.value + i, decoded[i]);
    }
  }
  if (expected.finite)
    for (const auto& commit : commits) commit();
  return expected;
}

inline std::vector<Rank> ranks_of(DType dtype, float poison = 0) {
  std::vector<Rank> ranks;
  for (int r = 0; r < kRanks; ++r) ranks.emplace_back(r, dtype, r == 1 ? poison : 0);
  return ranks;
}

// Empty where the ranks have what is expected, else what they have not.
inline std::string difference(const std::vector<Rank>& ranks, const Expected& expected) {
  for (std::size_t r = 0; r < kRanks; ++r) {
    const auto same = [](const auto& a, const auto& b) {
      for (std::size_t p = 0; p < kLayerCount; ++p) {
        if (a[p].size() != b[p].size() ||
            (!a[p].empty() && std::memcmp(a[p].data(), b[p].data(), a[p].size() * 4) != 0))
          return false;
      }
      return true;
    };
    if (ranks[r].bucket.bytes() != expected.buckets[r].bytes()) return concat("mean of rank ", r);
    if (!same(ranks[r].residuals, expected.residuals[r])) return concat("residuals of rank ", r);
    if (!same(ranks[r].seconds, expected.seconds[r])) return concat("second of rank ", r);
  }
  return {};
}

}  // namespace thinwire::testing
