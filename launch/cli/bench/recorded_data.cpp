#include "thinwire/launch/cli/bench/recorded_data.h"

#include <algorithm>

#include "thinwire/common/crc32c.h"
#include "thinwire/common/error.h"

namespace thinwire::launch {

RecordedData::RecordedData(const Recording& recording, std::int64_t bytes)
    : recording_(recording),
      copies_(std::max<std::int64_t>(bytes / 4 / std::max<std::int64_t>(recording.numel(), 1), 1)) {
  for (std::int64_t copy = 0; copy < copies_; ++copy) {
    for (RecordedLayer layer : recording.layers()) {
      if (copy > 0) layer.name += concat(" (", copy + 1, ")");
      layers_.push_back(std::move(layer));
    }
  }
}

void RecordedData::read(std::int64_t run, int rank, std::span<float> into) const {
  const std::int64_t steps = recording_.steps();
  const auto length = static_cast<std::size_t>(recording_.numel());
  for (std::int64_t copy = 0; copy < copies_; ++copy) {
    const std::int64_t step = (run + copy * steps / copies_) % steps;
    recording_.read(step, rank, into.subspan(static_cast<std::size_t>(copy) * length, length));
  }
}

std::vector<double> RecordedData::exact_mean(std::int64_t run, int world) const {
  std::vector<double> mean(static_cast<std::size_t>(numel()));
  std::vector<float> values(mean.size());
  for (int rank = 0; rank < world; ++rank) {
    read(run, rank, values);
    for (std::size_t i = 0; i < values.size(); ++i) mean[i] += double{values[i]};
  }
  for (double& value : mean) value /= world;
  return mean;
}

std::string describe(const Recording& recording, int world) {
  check(recording.world() >= world, "the gradients were recorded by ", recording.world(),
        recording.world() == 1 ? " rank" : " ranks", ", this job has ", world);
  std::string text = concat(recording.steps(), " steps\n");
  for (const RecordedLayer& layer : recording.layers()) {
    text += layer.name;
    for (const std::int64_t extent : layer.shape) text += concat(' ', extent);
    text += '\n';
  }
  // Of the first step, by which recordings of one model are told apart.
  std::vector<float> values(static_cast<std::size_t>(recording.numel()));
  for (int rank = 0; rank < world; ++rank) {
    recording.read(0, rank, values);
    text +=
        concat("gradients of rank ", rank, ": ", crc32c(std::as_bytes(std::span(values))), "\n");
  }
  return text;
}

}  // namespace thinwire::launch
