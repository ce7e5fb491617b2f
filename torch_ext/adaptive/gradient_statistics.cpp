#include "thinwire/torch_ext/adaptive/gradient_statistics.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstddef>
#include <numeric>

#include "thinwire/comm/failure/failure.h"
#include "thinwire/common/error.h"
#include "thinwire/common/shape.h"
#include "thinwire/compressors/kernels/cast.h"
#include "thinwire/compressors/kernels/float_arrays.h"

namespace thinwire {
namespace {

// Elements of the messages to all ranks together: 2 MiB each way, whatever the number of ranks.
constexpr std::size_t kMessageElements = std::size_t{1} << 20;

// Sums travel in bfloat16: curves do not notice its 0.2 %, and its range is that of float32.
const kernels::CastFormat& wire_format() {
  return kernels::cast_formats().front();
}

}  // namespace

GradientStatistics::GradientStatistics(std::vector<LayerInfo> layers, int rank, int world)
    : layers_(std::move(layers)), rank_(rank), world_(world), places_(layers_.size()) {
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    places_[i].numel = static_cast<std::size_t>(numel_of(layers_[i].shape));
    const bool added = index_.emplace(layers_[i].name, i).second;
    check(added, "two layers are called '", layers_[i].name, "'");
  }
  // Largest first, each to the rank that has the least so far.
  std::vector<std::size_t> order(layers_.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return places_[a].numel > places_[b].numel;
  });
  std::vector<std::size_t> load(static_cast<std::size_t>(world), 0);
  for (const std::size_t i : order) {
    const auto least = std::min_element(load.begin(), load.end());
    places_[i].owner = static_cast<int>(least - load.begin());
    places_[i].offset = *least;
    *least += places_[i].numel;
  }
  region_begin_.push_back(0);
  for (const std::size_t numel : load) region_begin_.push_back(region_begin_.back() + numel);
  for (Place& place : places_) place.offset += region_begin_[static_cast<std::size_t>(place.owner)];
}

void GradientStatistics::reset() {
  release();
  steps_ = 0;
  left_out_ = 0;
}

void GradientStatistics::release() {
  // Not `= {}`, which would keep the memory.
  sums_ = std::vector<float>();
  means_ = std::vector<float>();
}

std::span<float> GradientStatistics::mutable_values(std::size_t layer) {
  return std::span(sums_).subspan(places_[layer].offset, places_[layer].numel);
}

std::span<const float> GradientStatistics::values(std::size_t layer) const {
  const auto me = static_cast<std::size_t>(rank_);
  if (sums_.empty()) {
    if (places_[layer].owner != rank_ || means_.empty()) return {};
    return std::span(means_).subspan(places_[layer].offset - region_begin_[me],
                                     places_[layer].numel);
  }
  return std::span(sums_).subspan(places_[layer].offset, places_[layer].numel);
}

void GradientStatistics::add(const comm::Bucket& bucket) {
  means_ = std::vector<float>();
  sums_.resize(region_begin_.back());
  for (const comm::BucketLayer& layer : bucket.layers) {
    const auto found = index_.find(layer.name);
    if (found == index_.end()) continue;
    const std::span<float> sum = mutable_values(found->second);
    const at::Tensor part =
        bucket.buffer.narrow(0, layer.offset, layer.numel()).to(at::kFloat).contiguous();
    const std::span gradient(part.const_data_ptr<float>(), static_cast<std::size_t>(part.numel()));
    THINWIRE_ASSERT(gradient.size() == sum.size());
    if (!kernels::all_finite(gradient)) {
      ++left_out_;
      continue;
    }
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += gradient[i];
  }
}

std::uint64_t GradientStatistics::exchange(c10d::ProcessGroup& group, std::uint64_t sequence) {
  THINWIRE_ASSERT(steps_ > 0);
  const auto world = static_cast<std::size_t>(world_);
  const auto me = static_cast<std::size_t>(rank_);
  const auto region_size = [&](std::size_t owner) {
    return region_begin_[owner + 1] - region_begin_[owner];
  };
  std::size_t largest = 0;
  for (std::size_t owner = 0; owner < world; ++owner) {
    largest = std::max(largest, region_size(owner));
  }
  std::uint64_t sent = 0;
  if (world > 1) {
    // Piece by piece of every region, so that the messages stay small beside the model.
    const std::size_t piece = std::max<std::size_t>(1, kMessageElements / world);
    const auto piece_of = [&](std::size_t owner, std::size_t begin) {
      const std::size_t size = region_size(owner);
      return begin < size ? std::min(piece, size - begin) : 0;
    };
    const auto numbers = [](std::size_t n) { return static_cast<std::int64_t>(n); };
    const kernels::CastFormat& format = wire_format();
    at::Tensor send = at::empty({numbers(format.bytes(piece * world))}, at::kByte);
    at::Tensor receive = at::empty({numbers(format.bytes(piece * world))}, at::kByte);
    std::vector<float> theirs(piece);
    for (std::size_t begin = 0; begin < largest; begin += piece) {
      std::vector<std::int64_t> send_splits, receive_splits;
      const std::size_t mine = piece_of(me, begin);
      auto* out = static_cast<std::byte*>(send.mutable_data_ptr());
      for (std::size_t owner = 0; owner < world; ++owner) {
        const std::size_t count = piece_of(owner, begin);
        format.encode(sums_.data() + region_begin_[owner] + begin, count, out);
        out += format.bytes(count);
        send_splits.push_back(numbers(format.bytes(count)));
        receive_splits.push_back(numbers(format.bytes(mine)));
        if (owner != me) sent += format.bytes(count);
      }
      const auto* first = static_cast<const std::byte*>(send.const_data_ptr());
      at::Tensor input = send.narrow(0, 0, out - first);
      at::Tensor output = receive.narrow(0, 0, numbers(format.bytes(mine) * world));
      comm::wait(group, group.alltoall_base(output, input, receive_splits, send_splits),
                 "exchange of the gradients' statistics", sequence);
      const auto* in = static_cast<const std::byte*>(receive.const_data_ptr());
      float* sum = sums_.data() + region_begin_[me] + begin;
      format.decode(in, mine, sum);
      for (std::size_t rank = 1; rank < world; ++rank) {
        format.decode(in + rank * format.bytes(mine), mine, theirs.data());
        for (std::size_t i = 0; i < mine; ++i) sum[i] += theirs[i];
      }
    }
  }
  const auto count = static_cast<float>(steps_ * world_);
  means_.assign(sums_.begin() + static_cast<std::ptrdiff_t>(region_begin_[me]),
                sums_.begin() + static_cast<std::ptrdiff_t>(region_begin_[me + 1]));
  for (float& mean : means_) mean /= count;
  sums_ = std::vector<float>();
  return sent;
}

}  // namespace thinwire
