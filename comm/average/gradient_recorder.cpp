#include "thinwire/comm/average/gradient_recorder.h"

#include <span>
#include <utility>
#include <vector>

#include "thinwire/common/error.h"
#include "thinwire/common/log.h"
#include "thinwire/compressors/peft/safetensors.h"

namespace thinwire::comm {

GradientRecorder::GradientRecorder(std::filesystem::path path, int rank, int world,
                                   std::int64_t first, std::int64_t steps)
    : path_(std::move(path)), rank_(rank), world_(world), first_(first), steps_(steps) {
  check_steps(first, steps);
}

void GradientRecorder::check_steps(std::int64_t first, std::int64_t steps) {
  check(first >= 0 && steps >= 1,
        "gradients are recorded for one step or more, from step 0 or a later one on, got ", steps,
        " steps from ", first);
}

GradientRecorder::~GradientRecorder() {
  if (tensors_.empty() || written_) return;
  try {
    write();
  } catch (const std::exception& error) {
    log::warn(concat("the recorded gradients are lost: ", error.what()));
  }
}

void GradientRecorder::record(const Bucket& bucket, std::int64_t step) {
  if (step < first_ || written_) return;
  if (step >= first_ + steps_) return write();
  for (const BucketLayer& layer : bucket.layers) {
    tensors_[concat(step, "/", rank_, "/", layer.name)] =
        bucket.buffer.narrow(0, layer.offset, layer.numel())
            .view(layer.shape)
            .to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
  }
}

void GradientRecorder::write() {
  std::filesystem::path of_rank = path_;
  of_rank += concat(".", rank_);
  std::vector<peft::TensorInfo> infos;
  for (const auto& [name, tensor] : tensors_) {
    infos.push_back({name, "F32", tensor.sizes().vec()});
  }
  peft::SafetensorsWriter writer(of_rank, infos, {{"ranks", std::to_string(world_)}},
                                 /*overwrite=*/true);
  for (const auto& [name, tensor] : tensors_) {
    writer.write(std::as_bytes(
        std::span(tensor.const_data_ptr<float>(), static_cast<std::size_t>(tensor.numel()))));
  }
  writer.commit();
  tensors_.clear();
  written_ = true;
}

}  // namespace thinwire::comm
