#include "thinwire/comm/average/device/device_verdicts.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstring>
#include <vector>

#include "thinwire/comm/failure/guard.h"
#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

constexpr auto kVerdictBytes = static_cast<std::int64_t>(sizeof(kernels::DeviceVerdict));

std::string_view field_name(kernels::FrameField field) {
  using kernels::FrameField;
  switch (field) {
    case FrameField::kMagic:
      return "the magic number";
    case FrameField::kVersion:
      return "the version";
    case FrameField::kSender:
      return "the sender";
    case FrameField::kSequence:
      return "the sequence number";
    case FrameField::kLayout:
      return "the layout hash";
    case FrameField::kChunk:
      return "the chunk";
    case FrameField::kCodec:
      return "the codec";
    case FrameField::kNumel:
      return "the number of elements";
    case FrameField::kPayloadBytes:
      return "the payload's size";
    case FrameField::kChecksum:
      return "the checksum";
    case FrameField::kSlot:
      return "what is wrong with its slot (SlotFault)";
  }
  return "a field";
}

std::string verdict_text(const kernels::DeviceVerdict& verdict) {
  const std::string place =
      concat("bucket ", verdict.bucket, ", exchange #", verdict.sequence, ": ");
  if (verdict.kind == 1) {
    return concat(place, "rank ", verdict.sender, " refused the frame of rank ", verdict.blamed);
  }
  return concat(place, "the frame of rank ", verdict.sender,
                " was refused: ", field_name(static_cast<kernels::FrameField>(verdict.field)),
                " is ", verdict.found, ", expected ", verdict.expected);
}

}  // namespace

DeviceVerdicts::DeviceVerdicts(c10d::ProcessGroup& group, at::Device device, DeviceWatch* watch)
    : group_(group),
      watch_(watch),
      mine_(at::zeros({kVerdictBytes}, at::TensorOptions(at::kByte).device(device))),
      all_(at::zeros({kVerdictBytes * group.getSize()},
                     at::TensorOptions(at::kByte).device(device))) {
  for (Step& step : steps_) {
    step.host = at::empty({all_.numel()}, at::TensorOptions(at::kByte).pinned_memory(true));
    step.copied.emplace(device.type());
  }
}

kernels::DeviceVerdict* DeviceVerdicts::note() const {
  return static_cast<kernels::DeviceVerdict*>(mine_.mutable_data_ptr());
}

void DeviceVerdicts::end_step(std::int64_t step) {
  constexpr const char* kOperation = "agreement on the result";
  Step& place = steps_[next_];
  THINWIRE_ASSERT(!place.pending);
  next_ = (next_ + 1) % kStepsAhead;
  if (group_.getSize() > 1) {
    run_collective(group_, kOperation, static_cast<std::uint64_t>(step),
                   [&] { return group_._allgather_base(all_, mine_); });
  } else {
    all_.copy_(mine_);
  }
  place.host.copy_(all_, /*non_blocking=*/true);
  place.copied->record(
      c10::impl::VirtualGuardImpl(mine_.device().type()).getStream(mine_.device()));
  place.number = step;
  place.pending = true;
  mine_.zero_();
}

void DeviceVerdicts::look_at(Step& step) const {
  if (!step.pending) return;
  if (!step.copied->query()) step.copied->synchronize();
  if (watch_) watch_->check();  // it may have ended the wait, and then nothing has been gathered
  step.pending = false;
  kernels::DeviceVerdict worst{};
  int refuser = -1;
  const auto* bytes = static_cast<const std::byte*>(step.host.const_data_ptr());
  for (int rank = 0; rank < group_.getSize(); ++rank) {
    kernels::DeviceVerdict verdict;
    std::memcpy(&verdict, bytes + static_cast<std::ptrdiff_t>(rank) * kVerdictBytes,
                sizeof verdict);
    if (verdict.kind <= worst.kind) continue;
    worst = verdict;
    refuser = rank;
  }
  if (refuser < 0) return;
  throw FrameError(
      concat("step ", step.number, ": rank ", refuser, " reports: ", verdict_text(worst)));
}

void DeviceVerdicts::begin_step() {
  look_at(steps_[next_]);
}

void DeviceVerdicts::settle() {
  for (std::size_t i = 0; i < kStepsAhead; ++i) look_at(steps_[(next_ + i) % kStepsAhead]);
}

void DeviceVerdicts::forget() {
  for (Step& step : steps_) step.pending = false;
}

}  // namespace thinwire::comm
