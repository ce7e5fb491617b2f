#include "thinwire/torch_ext/adaptive/gradient_statistics.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <numeric>

#include "thinwire/comm/failure/guard.h"
#include "thinwire/common/error.h"
#include "thinwire/common/philox.h"
#include "thinwire/common/shape.h"
#include "thinwire/compressors/kernels/float_arrays.h"
#include "thinwire/compressors/kernels/half_math.h"

namespace thinwire {
namespace {

// Elements of the messages to all ranks together: 2 MiB each way, whatever the number of ranks.
constexpr std::size_t kMessageElements = std::size_t{1} << 20;

std::int64_t as_int64(std::size_t n) {
  return static_cast<std::int64_t>(n);
}

// sums[i] += gradient[i], rounded up with the probability that makes the mean right: to the
// nearest, a sum of some hundred equal gradients would not grow any more. `salt` tells steps apart.
void add_at_random(std::span<std::uint16_t> sums, const float* gradient, std::uint32_t salt) {
  for (std::size_t i = 0; i < sums.size(); ++i) {
    // A mixer of 32 bits: two rounds of multiply and shift.
    std::uint32_t random = static_cast<std::uint32_t>(i) * 0x9E3779B9u ^ salt;
    random = (random ^ (random >> 16)) * 0x7FEB352Du;
    random = (random ^ (random >> 15)) * 0x846CA68Bu;
    const auto sum =
        std::bit_cast<std::uint32_t>(kernels::float_from_bfloat(sums[i]) + gradient[i]);
    sums[i] = static_cast<std::uint16_t>((sum + (random >> 16)) >> 16);
  }
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
  values_ = std::vector<std::uint16_t>();
  holds_means_ = false;
}

std::size_t GradientStatistics::own_elements() const {
  const auto me = static_cast<std::size_t>(rank_);
  return region_begin_[me + 1] - region_begin_[me];
}

void GradientStatistics::check_fits(const Saved& saved) const {
  const std::size_t expected = saved.holds_means ? own_elements() : region_begin_.back();
  check(saved.steps >= 0 && saved.left_out >= 0, "statistics of ", saved.steps, " steps without ",
        saved.left_out, " gradients cannot be");
  check(saved.values.size() == expected, "statistics of ", saved.values.size(),
        " elements are not of this model, whose have ", expected);
}

void GradientStatistics::restore(Saved saved) {
  steps_ = saved.steps;
  left_out_ = saved.left_out;
  holds_means_ = saved.holds_means;
  values_ = std::move(saved.values);
}

std::vector<float> GradientStatistics::values(std::size_t layer) const {
  const Place& place = places_[layer];
  if (values_.empty() || (holds_means_ && place.owner != rank_)) return {};
  const std::size_t first =
      holds_means_ ? region_begin_[static_cast<std::size_t>(rank_)] : std::size_t{0};
  std::vector<float> values(place.numel);
  std::ranges::transform(std::span(values_).subspan(place.offset - first, place.numel),
                         values.begin(), kernels::float_from_bfloat);
  return values;
}

void GradientStatistics::add(const comm::Bucket& bucket) {
  if (holds_means_) release();
  values_.resize(region_begin_.back());
  const at::Tensor buffer = bucket.buffer.cpu();  // itself where it is there
  for (const comm::BucketLayer& layer : bucket.layers) {
    const auto found = index_.find(layer.name);
    if (found == index_.end()) continue;
    const Place& place = places_[found->second];
    const std::span sum = std::span(values_).subspan(place.offset, place.numel);
    const at::Tensor part =
        buffer.narrow(0, layer.offset, layer.numel()).to(at::kFloat).contiguous();
    const std::span gradient(part.const_data_ptr<float>(), static_cast<std::size_t>(part.numel()));
    THINWIRE_ASSERT(gradient.size() == sum.size());
    if (!kernels::all_finite(gradient)) {
      ++left_out_;
      continue;
    }
    const std::uint32_t salt =
        philox4x32({static_cast<std::uint32_t>(found->second), static_cast<std::uint32_t>(steps_),
                    static_cast<std::uint32_t>(rank_), 0},
                   {})[0];
    add_at_random(sum, gradient.data(), salt);
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
  // Piece by piece of every region, so that the messages stay small beside the model. The means
  // take the place of the sums.
  const std::size_t piece = std::max<std::size_t>(1, kMessageElements / world);
  const auto piece_of = [&](std::size_t owner, std::size_t begin) {
    const std::size_t size = region_size(owner);
    return begin < size ? std::min(piece, size - begin) : 0;
  };
  const auto count = static_cast<float>(steps_ * world_);
  const std::size_t most = std::min(piece, largest) * world;
  // Of 16 bits an element, whatever they mean: not every backend knows bfloat16.
  const at::Tensor send = at::empty({as_int64(2 * most)}, at::kByte);
  const at::Tensor receive = at::empty({as_int64(2 * most)}, at::kByte);
  std::uint64_t sent = 0;
  for (std::size_t begin = 0; begin < largest; begin += piece) {
    const std::size_t mine = piece_of(me, begin);
    auto* own = values_.data() + region_begin_[me] + begin;
    std::span<const std::uint16_t> theirs(own, mine);
    if (world > 1) {
      std::vector<std::int64_t> send_splits, receive_splits;
      auto* out = static_cast<std::uint16_t*>(send.mutable_data_ptr());
      for (std::size_t owner = 0; owner < world; ++owner) {
        const std::size_t numel = piece_of(owner, begin);
        out = std::copy_n(values_.data() + region_begin_[owner] + begin, numel, out);
        send_splits.push_back(as_int64(2 * numel));
        receive_splits.push_back(as_int64(2 * mine));
        if (owner != me) sent += 2 * numel;
      }
      at::Tensor input = send.narrow(
          0, 0, std::accumulate(send_splits.begin(), send_splits.end(), std::int64_t{0}));
      at::Tensor output = receive.narrow(0, 0, as_int64(2 * mine * world));
      comm::run_collective(group, "exchange of the gradients' statistics", sequence, [&] {
        return group.alltoall_base(output, input, receive_splits, send_splits);
      });
      theirs = {static_cast<const std::uint16_t*>(receive.const_data_ptr()), mine * world};
    }
    for (std::size_t i = 0; i < mine; ++i) {
      float sum = kernels::float_from_bfloat(theirs[i]);
      for (std::size_t rank = 1; rank < world; ++rank)
        sum += kernels::float_from_bfloat(theirs[rank * mine + i]);
      own[i] = kernels::bfloat_from_float(sum / count);
    }
  }
  if (world > 1) {
    const auto first = values_.begin() + static_cast<std::ptrdiff_t>(region_begin_[me]);
    values_ =
        std::vector<std::uint16_t>(first, first + static_cast<std::ptrdiff_t>(own_elements()));
  }
  holds_means_ = true;
  return sent;
}

}  // namespace thinwire
