#include "thinwire/torch_ext/adaptive/layer_choice.h"

#include <algorithm>
#include <cmath>

#include "thinwire/common/error.h"
#include "thinwire/compressors/allocation/allocator.h"
#include "thinwire/torch_ext/adaptive/automatic_choice.h"

namespace thinwire {
namespace {

double seconds_of(const LayerTask& task, double bytes, std::size_t setting) {
  return bytes * task.seconds_per_byte[setting].value();
}

// Of each bucket, on the communication thread.
std::vector<double> bucket_seconds(const LayerTask& task,
                                   const std::vector<std::size_t>& settings) {
  std::vector<double> seconds;
  for (const LayerTask::Bucket& bucket : task.buckets) {
    seconds.push_back(seconds_of(task, bucket.other_bytes, task.uniform));
  }
  for (std::size_t l = 0; l < task.layers.size(); ++l) {
    const LayerTask::Layer& layer = task.layers[l];
    seconds[layer.bucket] += seconds_of(task, layer.bytes, settings[l]);
  }
  return seconds;
}

// Whether there is anything to choose by.
bool was_seen(const LayerTask& task, const LayerTask::Layer& layer) {
  return layer.squared_errors[task.uniform] > 0 &&
         std::ranges::all_of(layer.squared_errors, [](double e) { return std::isfinite(e); });
}

class ChoiceByLayer {
 public:
  ChoiceByLayer(const LayerTask& task, double share)
      : task_(task), settings_(task.layers.size(), task.uniform) {
    const std::vector<double> uniform = bucket_seconds(task, settings_);
    const double last_ready = task.buckets.empty() ? 0 : task.buckets.back().ready;
    const double end = std::max(predicted_end(task, settings_), (1 + kHidden) * last_ready);
    allowed_.resize(task.buckets.size());
    double seconds = 0;
    for (std::size_t b = task.buckets.size(); b-- > 0;) {
      seconds += uniform[b];
      allowed_[b] = seconds + share * (end - task.buckets[b].ready - seconds);
    }
  }

  std::vector<std::size_t> run() {
    choose(0, task_.buckets.size(), 0);
    return settings_;
  }

 private:
  // For the buckets from `first` to `end`, whose followers take `after` seconds.
  void choose(std::size_t first, std::size_t end, double after) {
    if (first == end) return;
    allocate(first, end, allowed_[first] - after);
    const std::vector<double> seconds = bucket_seconds(task_, settings_);
    // Where time is short by most, if anywhere: what comes from there on is chosen for alone.
    std::size_t short_from = first;
    double most = 1e-9 * allowed_[first];
    double taken = after;
    for (std::size_t b = end; b-- > first + 1;) {
      taken += seconds[b];
      if (taken - allowed_[b] <= most) continue;
      most = taken - allowed_[b];
      short_from = b;
    }
    if (short_from == first) return;
    choose(short_from, end, after);
    const std::vector<double> chosen = bucket_seconds(task_, settings_);
    for (std::size_t b = short_from; b < end; ++b) after += chosen[b];
    choose(first, short_from, after);
  }

  // Least error of the layers of some buckets in so many seconds.
  void allocate(std::size_t first, std::size_t end, double seconds) {
    std::vector<lgreco::Layer> layers;
    std::vector<std::size_t> indices;
    std::vector<std::size_t> candidates;
    for (std::size_t i = 0; i <= task_.uniform; ++i) {
      if (task_.seconds_per_byte[i]) candidates.push_back(i);
    }
    double uniform = 0;
    for (std::size_t b = first; b < end; ++b) {
      seconds -= seconds_of(task_, task_.buckets[b].other_bytes, task_.uniform);
    }
    for (std::size_t l = 0; l < task_.layers.size(); ++l) {
      const LayerTask::Layer& layer = task_.layers[l];
      if (layer.bucket < first || layer.bucket >= end) continue;
      settings_[l] = task_.uniform;
      const double own = seconds_of(task_, layer.bytes, task_.uniform);
      if (!was_seen(task_, layer)) {
        seconds -= own;
        continue;
      }
      uniform += own;
      indices.push_back(l);
      lgreco::Layer& made = layers.emplace_back();
      made.reference = candidates.size() - 1;
      for (const std::size_t i : candidates) {
        made.candidates.push_back({.spec = {},
                                   .error = layer.squared_errors[i],
                                   .seconds = seconds_of(task_, layer.bytes, i)});
      }
    }
    if (layers.empty() || uniform <= 0 || seconds <= uniform) return;
    const lgreco::Allocation allocation =
        lgreco::allocate(layers, {.constraint = lgreco::Constraint::kBytes,
                                  .objective = lgreco::Objective::kTime,
                                  .budget = seconds / uniform});
    for (std::size_t n = 0; n < indices.size(); ++n) {
      settings_[indices[n]] = candidates[allocation.choice[n]];
    }
  }

  const LayerTask& task_;
  std::vector<std::size_t> settings_;
  std::vector<double> allowed_;  // by bucket: seconds of it and all after it
};

}  // namespace

double predicted_end(const LayerTask& task, const std::vector<std::size_t>& settings) {
  const std::vector<double> seconds = bucket_seconds(task, settings);
  double end = 0;
  for (std::size_t b = 0; b < seconds.size(); ++b) {
    end = std::max(end, task.buckets[b].ready) + seconds[b];
  }
  return end;
}

double squared_error(const LayerTask& task, const std::vector<std::size_t>& settings) {
  double error = 0;
  for (std::size_t l = 0; l < task.layers.size(); ++l) {
    if (was_seen(task, task.layers[l])) error += task.layers[l].squared_errors[settings[l]];
  }
  return error;
}

std::vector<std::size_t> choose_by_layer(const LayerTask& task, double share) {
  THINWIRE_ASSERT(task.seconds_per_byte.size() > task.uniform && share >= 0 && share <= 1);
  return ChoiceByLayer(task, share).run();
}

}  // namespace thinwire
