#include "thinwire/comm/average/device/sparse_tables.h"

#include <algorithm>
#include <utility>

#include "thinwire/comm/average/device/table_upload.h"
#include "thinwire/comm/average/reduce/exact_mean.h"
#include "thinwire/comm/wire/frame.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/sparse_values.h"

namespace thinwire::comm {
namespace {

// Chunks of frames of entries are counted apart from those of slices of the same bucket.
constexpr std::uint32_t kEntriesChunk = 0x10000;

// The codec of a frame of these layers, as FrameHeader::codec_id has it.
std::uint32_t codec_of_all(std::span<const DeviceLayer> layers) {
  const auto id = [](const DeviceLayer& layer) {
    return static_cast<std::uint32_t>(layer.codec->facts().id);
  };
  const std::uint32_t first = id(layers.front());
  const bool same =
      std::ranges::all_of(layers, [&](const DeviceLayer& layer) { return id(layer) == first; });
  return same ? first : kMixedCodecs;
}

// Of float32, as far as that matters: the means do not depend on it.
constexpr std::size_t kChunkOfEntries = std::size_t{4} << 20;

kernels::EntryForm form_of(const Codec& codec) {
  if (codec.traits().summable) return kernels::EntryForm::kDrawn;
  const auto form = codec.entry_form();
  THINWIRE_ASSERT(form.has_value());
  return *form;
}

}  // namespace

// Layer, its entries and its payload get the places after those before it.
kernels::SparseLayer SparseTables::made_of(const DeviceLayer& layer, DeviceMemory& memory) {
  THINWIRE_ASSERT(layer.numel > 0);
  const std::int64_t kept = kept_count(layer.codec->facts().density.value(), layer.numel);
  at::Tensor residual, velocity, new_velocity;
  if (layer.momentum) {
    const DeviceMemory::Momentum held = memory.momentum(layer.name, layer.numel);
    residual = held.residual;
    velocity = held.velocity;
    new_velocity = held.next;
  } else if (layer.keeps_loss) {
    residual = memory.residual(layer.name, layer.numel);
  }
  const at::Tensor leftover =
      layer.momentum ? memory.held(layer.name) : memory.held_momentum(layer.name);
  const at::Tensor orphan = memory.orphans(layer.name, layer.numel, {});
  pays_back_ = pays_back_ || leftover.defined() || orphan.defined();
  for (const at::Tensor& values : {residual, velocity, new_velocity, leftover, orphan}) {
    if (values.defined()) held_.push_back(values);
  }
  kernels::SparseLayer made{};
  made.form = form_of(*layer.codec);
  made.layer_id = layer.id;
  made.unbiased = layer.codec->traits().unbiased;
  made.numel = static_cast<std::uint32_t>(layer.numel);
  made.kept = static_cast<std::uint32_t>(kept);
  made.shape = kernels::EliasFano::of(made.numel, made.kept);
  made.value = static_cast<std::uint64_t>(layer.offset);
  made.first_tile = tiles_;
  made.first_run = runs_;
  made.first_entry = static_cast<std::uint64_t>(entries_);
  made.payload = static_cast<std::uint64_t>(frame_bytes_) - kFrameHeaderBytes;
  made.decay = layer.decay;
  made.reset_every = layer.reset_every;
  made.has_momentum = layer.momentum.has_value();
  if (layer.momentum) {
    made.nesterov = layer.momentum->nesterov;
    made.momentum = static_cast<float>(layer.momentum->momentum);
  }
  made.residual = address_of(residual, 0);
  made.velocity = address_of(velocity, 0);
  made.new_velocity = address_of(new_velocity, 0);
  made.leftover = address_of(leftover, 0);
  made.orphan = address_of(orphan, 0);
  tiles_ += (made.numel + kernels::kSparseTile - 1) / kernels::kSparseTile;
  runs_ += (made.kept + kernels::kEntryRun - 1) / kernels::kEntryRun;
  entries_ += kept;
  if (made.form == kernels::EntryForm::kDrawn) return made;
  frame_bytes_ += padded_frame(kernels::entry_payload_bytes(made.form, made.shape, made.kept));
  return made;
}

SparseTables::SparseTables(std::span<const DeviceLayer> layers, int rank, int world,
                           at::Device device, DeviceMemory& memory)
    : frame_bytes_(kFrameHeaderBytes) {
  std::vector<kernels::SparseLayer> made;
  std::uint64_t numel = 0;
  for (const DeviceLayer& layer : layers) {
    numel += static_cast<std::uint64_t>(layer.numel);
    made.push_back(made_of(layer, memory));
  }
  count_ = static_cast<std::uint32_t>(made.size());
  const auto payload = static_cast<std::size_t>(frame_bytes_) - kFrameHeaderBytes;
  segments_ = segments_of(payload);
  std::vector<kernels::DeviceFrame> frames;
  // The own one, then those that arrive: a rank that is alone receives what it sends.
  for (int r = -1; r < world; ++r) {
    const std::int64_t place = world == 1 ? 0 : r + 1;
    frames.push_back({.offset = static_cast<std::uint64_t>(place * frame_bytes_),
                      .numel = numel,
                      .payload_bytes = payload,
                      .first_segment = r <= 0 ? 0 : static_cast<std::uint32_t>(r) * segments_,
                      .segments = segments_,
                      .sender = static_cast<std::uint32_t>(r < 0 ? rank : r),
                      .chunk = kEntriesChunk,
                      .codec = codec_of_all(layers),
                      .first_tile = 0,
                      .tiles = r < 0 ? runs_ : 0});
  }
  layers_ = table_on(device, made);
  frames_ = table_on(device, frames);
  memory_version_ = memory.version();
  sent_bytes_ = static_cast<std::uint64_t>(frame_bytes_) * static_cast<std::uint64_t>(world - 1);
  record_on_current_stream(held_, device);
  if (made.empty() || made.front().form != kernels::EntryForm::kDrawn) return;
  const PartitionLayer all{entries_, &identity_codec()};
  const DeviceLayer one{.codec = all.codec, .numel = entries_};
  slices_ = std::make_unique<PieceTables>(std::span(&one, 1),
                                          Partition(std::span(&all, 1), world, kChunkOfEntries),
                                          rank, device, memory);
}

kernels::SparseTask SparseTables::task() const {
  kernels::SparseTask task{};
  task.layers = static_cast<const kernels::SparseLayer*>(layers_.const_data_ptr());
  task.count = count_;
  task.tiles = tiles_;
  task.runs = runs_;
  return task;
}

const kernels::DeviceFrame* SparseTables::leaving() const {
  return static_cast<const kernels::DeviceFrame*>(frames_.const_data_ptr());
}

}  // namespace thinwire::comm
