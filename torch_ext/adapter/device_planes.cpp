#include "thinwire/torch_ext/adapter/device_planes.h"

#include <ATen/DeviceGuard.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <bit>
#include <span>
#include <utility>

#include "thinwire/comm/wire/tensor_bridge.h"
#include "thinwire/common/error.h"
#include "thinwire/compressors/cuda/cuda_module.h"

namespace thinwire {
namespace {

// The values outlive the call, which waits.
template <typename T>
at::Tensor copy_on_device(std::span<const T> values, at::Device device) {
  return at::from_blob(const_cast<T*>(values.data()),
                       {static_cast<std::int64_t>(values.size_bytes())}, at::kByte)
      .to(device);
}

// The entries before every word, and of all, modulo 2^32: differences inside a weight are what
// counts.
std::vector<std::uint32_t> entries_before(std::span<const std::uint64_t> mask) {
  std::vector<std::uint32_t> before;
  before.reserve(mask.size() + 1);
  std::uint32_t entries = 0;
  for (const std::uint64_t word : mask) {
    before.push_back(entries);
    entries += static_cast<std::uint32_t>(std::popcount(word));
  }
  before.push_back(entries);
  return before;
}

}  // namespace

DevicePlanes::DevicePlanes(peft::PlanesView planes, const std::vector<Change>& changes) {
  THINWIRE_ASSERT(!changes.empty());
  CudaModule::get();
  const at::Device device = changes.front().weight.device();
  const std::vector<std::uint32_t> before = entries_before(planes.mask);
  const auto before_entry = [&](std::int64_t i) {
    const auto word = static_cast<std::size_t>(i / 64);
    if (i % 64 == 0) return before[word];
    const std::uint64_t lower = planes.mask[word] & ((std::uint64_t{1} << (i % 64)) - 1);
    return before[word] + static_cast<std::uint32_t>(std::popcount(lower));
  };
  for (const Change& change : changes) {
    const std::int64_t numel = change.weight.numel();
    check(numel < std::int64_t{1} << 32, "a weight of ", numel,
          " elements is too large for an expert in GPU memory; 2^32 - 1 is the most");
    const std::uint32_t first = before_entry(change.begin);
    const std::uint32_t entries = before_entry(change.begin + numel) - first;
    kept_.push_back(at::empty({entries}, change.weight.options()));
    items_.push_back({.target = change.weight.mutable_data_ptr(),
                      .kept = kept_.back().mutable_data_ptr(),
                      .begin = change.begin,
                      .first_tile = tiles_,
                      .numel = static_cast<std::uint32_t>(numel),
                      .kept_before = first,
                      .scale = change.scale,
                      .dtype = comm::dtype_of(change.weight)});
    tiles_ += (static_cast<std::uint64_t>(numel) + kernels::kPlanesTile - 1) / kernels::kPlanesTile;
  }
  mask_ = copy_on_device(planes.mask, device);
  sign_ = copy_on_device(planes.sign, device);
  before_ = copy_on_device(std::span<const std::uint32_t>(before), device);
  table_ = copy_on_device(std::span<const kernels::PlanesItem>(items_), device);
}

void DevicePlanes::put_on() {
  run(kernels::PlanesStage::kPutOn, table_, items_.size(), tiles_);
}

void DevicePlanes::take_off() {
  run(kernels::PlanesStage::kTakeOff, table_, items_.size(), tiles_);
}

void DevicePlanes::take_off(std::size_t index, const at::Tensor& copy) const {
  kernels::PlanesItem item = items_[index];
  const std::uint64_t end = index + 1 < items_.size() ? items_[index + 1].first_tile : tiles_;
  const std::uint64_t tiles = end - std::exchange(item.first_tile, 0);
  item.target = copy.mutable_data_ptr();
  const at::Tensor table =
      copy_on_device(std::span<const kernels::PlanesItem>(&item, 1), copy.device());
  run(kernels::PlanesStage::kTakeOff, table, 1, tiles);
}

void DevicePlanes::run(kernels::PlanesStage stage, const at::Tensor& table, std::size_t count,
                       std::uint64_t tiles) const {
  const at::Device device = mask_.device();
  const at::DeviceGuard guard(device);
  const auto stream = c10::impl::VirtualGuardImpl(device.type()).getStream(device);
  const auto data = [](const at::Tensor& bytes) { return bytes.const_data_ptr(); };
  CudaModule::get().run_planes({.mask = static_cast<const std::uint64_t*>(data(mask_)),
                                .sign = static_cast<const std::uint64_t*>(data(sign_)),
                                .before = static_cast<const std::uint32_t*>(data(before_)),
                                .items = static_cast<const kernels::PlanesItem*>(data(table)),
                                .count = static_cast<std::uint32_t>(count),
                                .tiles = tiles},
                               stage, stream.native_handle());
}

}  // namespace thinwire
