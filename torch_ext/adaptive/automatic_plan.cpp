#include "thinwire/torch_ext/adaptive/automatic_plan.h"

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <string_view>
#include <utility>

#include "thinwire/comm/failure/guard.h"
#include "thinwire/comm/link/link_probe.h"
#include "thinwire/common/error.h"
#include "thinwire/common/log.h"
#include "thinwire/common/shape.h"
#include "thinwire/compressors/allocation/curve_errors.h"
#include "thinwire/compressors/codecs/ecsq.h"
#include "thinwire/compressors/kernels/float_arrays.h"

namespace thinwire {
namespace {

// The first steps of a training, in which LibTorch's Reducer orders its buckets anew, memory is
// taken and codecs find their steps, and those after a change of the setting.
constexpr std::int64_t kFirstSteps = 4, kSettlingSteps = 2;
// An odd number, so that a median is a step.
constexpr std::int64_t kWindow = 5;
// Of a setting, after which the last of them is looked at alone: steps may be too long for more.
constexpr std::int64_t kFirstLook = 2;
// Between two windows in which nothing is searched for. Two of them notice a change.
constexpr std::int64_t kWatchEvery = 8;
// Of the time that is left beside the uniform setting, what settings by layer are given at first
// and, where they prove slower, then.
constexpr double kFirstShare = 0.9, kSecondShare = 0.45;

double seconds_per_byte(const MeasuredSteps& steps) {
  double bytes = 0, seconds = 0;
  for (const MeasuredSteps::Bucket& bucket : steps.buckets) {
    bytes += bucket.bytes;
    seconds += bucket.work;
  }
  return bytes > 0 ? seconds / bytes : 0;
}

// What loses as much as a setting, to be measured: ecsq(as=CODEC) takes the time to get there.
CodecPtr codec_to_measure(const comm::LayerSetting& setting) {
  const EcsqOptions* ecsq = ecsq_options(*setting.codec);
  return ecsq != nullptr && ecsq->as ? ecsq->as : setting.codec;
}

// "3 layers none, 20 cast(bf16)".
std::string counts_text(const std::vector<std::string>& ladder,
                        const std::vector<std::size_t>& settings) {
  std::string text;
  for (std::size_t i = 0; i < ladder.size(); ++i) {
    const auto count = std::ranges::count(settings, i);
    if (count == 0) continue;
    text += concat(text.empty() ? "" : ", ", count,
                   !text.empty() ? " " : (count == 1 ? " layer " : " layers "), ladder[i]);
  }
  return text;
}

}  // namespace

AutomaticPlan::AutomaticPlan(c10::intrusive_ptr<c10d::ProcessGroup> group,
                             AutomaticCompression automatic, comm::Plan start, std::int64_t first)
    : group_(std::move(group)),
      automatic_(std::move(automatic)),
      choice_(automatic_.ladder),
      plan_(std::move(start)),
      next_step_(0),
      window_ends_(first + kFirstSteps + kWindow),
      first_look_(first + kFirstLook) {
  for (const std::string& spec : automatic_.ladder) {
    settings_.push_back(automatic_.setting(spec));
    settings_.back().may_be_skipped = false;
  }
  forget_search();
  apply();
}

bool AutomaticPlan::begin_step(std::int64_t step, const Measure& measure) {
  if (step == next_step_ - 1 || automatic_.layers.empty() || group_->getSize() == 1) return false;
  if (std::exchange(next_step_, step + 1) != step) {
    choice_ = AutomaticChoice(automatic_.ladder);
    forget_search();
    window_ends_ = std::max(window_ends_, step + kFirstSteps + kWindow);
    first_look_ = std::max(first_look_, step + kFirstLook);
    apply();
    return true;
  }
  if (by_layer_ && !by_layer_->tries && !choice_.by_layer()) return try_by_layer(step);
  if (step != first_look_ && step < window_ends_) return false;
  if (by_layer_ && by_layer_->tries) {
    return step == window_ends_ && judge_by_layer(step, measure);
  }
  const bool searched = choice_.searching();
  const bool changed = look(step, measure);
  const bool chosen = searched && !choice_.searching();
  const bool may_vary = choice_.current() > 0 && automatic_.layers.size() > 1;
  if (chosen && may_vary) begin_by_layer();
  if (changed) apply();
  if (chosen && !may_vary) tell(step);
  return changed;
}

// At the end of a window, or after the first steps of one.
bool AutomaticPlan::look(std::int64_t step, const Measure& measure) {
  const bool first = step < window_ends_;
  if (first && !choice_.asks_for_first()) return false;
  const std::size_t setting = choice_.current();
  const bool searched = choice_.searching(), by_layer = choice_.by_layer();
  MeasuredSteps steps = measure(first ? 1 : kWindow);
  const WindowTimes times = agreed(steps.times);
  const bool changed = first ? choice_.note_first(times) : choice_.note(times);
  if (choice_.searching() && !searched) {
    by_layer_.reset();
    for (std::size_t i = 0; i < of_setting_.size(); ++i) {
      if (!choice_.knows(i)) of_setting_[i].reset();
    }
  }
  if (searched || (choice_.searching() && !by_layer)) of_setting_[setting] = std::move(steps);
  if (changed) first_look_ = step + kFirstLook;
  if (changed || !first) {
    window_ends_ = step + (changed               ? kSettlingSteps + kWindow
                           : choice_.searching() ? kWindow
                                                 : kWatchEvery);
  }
  return changed;
}

void AutomaticPlan::forget_search() {
  of_setting_.assign(choice_.ladder().size(), std::nullopt);
  by_layer_.reset();
}

// The step is as long as that of the slowest rank. Where even that one waits for the last mean, it
// is for the network, not for another rank.
WindowTimes AutomaticPlan::agreed(const WindowTimes& own) {
  std::array<double, 3> values = {own.step, -own.exposed, own.exchange};
  comm::guard(*group_, "comparing the times of the steps", static_cast<std::uint64_t>(next_step_),
              [&] { comm::take_largest(*group_, values); });
  return {.step = values[0], .exposed = -values[1], .exchange = values[2]};
}

// The gradients of the step that begins are looked at.
void AutomaticPlan::begin_by_layer() {
  by_layer_.emplace();
  by_layer_->squared_errors.assign(automatic_.layers.size() * settings_.size(), 0.0);
}

void AutomaticPlan::observe(const comm::Bucket& bucket) {
  if (!by_layer_ || by_layer_->tries || choice_.by_layer()) return;
  std::vector<CodecPtr> codecs;
  std::vector<std::size_t> tried;
  for (std::size_t i = 1; i <= choice_.current(); ++i) {
    if (!of_setting_[i]) continue;
    codecs.push_back(codec_to_measure(settings_[i]));
    tried.push_back(i);
  }
  for (const comm::BucketLayer& layer : bucket.layers) {
    const auto known = std::ranges::find(automatic_.layers, layer.name, &LayerInfo::name);
    if (known == automatic_.layers.end()) continue;
    double* const errors =
        by_layer_->squared_errors.data() +
        static_cast<std::size_t>(known - automatic_.layers.begin()) * settings_.size();
    const at::Tensor part =
        bucket.buffer.narrow(0, layer.offset, layer.numel()).to(at::kFloat).contiguous();
    const std::span gradient(part.const_data_ptr<float>(), static_cast<std::size_t>(part.numel()));
    const bool finite = kernels::all_finite(gradient);
    const std::vector<double> measured =
        finite ? lgreco::measured_squared_errors(gradient, codecs) : std::vector<double>();
    for (std::size_t n = 0; n < tried.size(); ++n) {
      errors[tried[n]] = finite ? measured[n] : std::numeric_limits<double>::infinity();
    }
  }
}

// From what each rank measured: of every number the largest. False where there is nothing to
// choose.
bool AutomaticPlan::agree_on_task() {
  const std::size_t uniform = choice_.current();
  const std::vector<MeasuredSteps::Bucket>& buckets = of_setting_[uniform]->buckets;
  std::vector<double> numbers = std::move(by_layer_->squared_errors);
  for (const auto& steps : of_setting_) numbers.push_back(steps ? seconds_per_byte(*steps) : 0);
  for (const MeasuredSteps::Bucket& bucket : buckets) numbers.push_back(bucket.ready);
  comm::guard(*group_, "comparing the errors of the layers", static_cast<std::uint64_t>(next_step_),
              [&] { comm::take_largest(*group_, numbers); });
  const double* number = numbers.data() + automatic_.layers.size() * settings_.size();
  LayerTask& task = by_layer_->task;
  task.uniform = uniform;
  for (const auto& steps : of_setting_) {
    task.seconds_per_byte.push_back(steps ? std::optional(*number) : std::nullopt);
    ++number;
  }
  std::map<std::string_view, std::size_t> layer_at;
  for (std::size_t l = 0; l < automatic_.layers.size(); ++l) {
    layer_at.emplace(automatic_.layers[l].name, l);
  }
  for (std::size_t b = 0; b < buckets.size(); ++b) {
    LayerTask::Bucket& made = task.buckets.emplace_back();
    made = {.ready = *number++, .other_bytes = buckets[b].bytes};
    for (const std::string& name : buckets[b].layers) {
      const auto found = layer_at.find(name);
      if (found == layer_at.end()) continue;
      const LayerInfo& layer = automatic_.layers[found->second];
      const double bytes =
          static_cast<double>(numel_of(layer.shape)) * static_cast<double>(layer.element_bytes);
      made.other_bytes = std::max(0.0, made.other_bytes - bytes);
      const double* errors = numbers.data() + found->second * settings_.size();
      task.layers.push_back(
          {.bucket = b, .bytes = bytes, .squared_errors = {errors, errors + uniform + 1}});
      by_layer_->layers.push_back(found->second);
    }
  }
  return !task.layers.empty() && task.seconds_per_byte[uniform] > 0;
}

// Before the step after that whose gradients were looked at, or after a trial that was too slow.
bool AutomaticPlan::try_by_layer(std::int64_t step) {
  const bool first = by_layer_->task.layers.empty();
  if (!first || agree_on_task()) {
    by_layer_->share = first ? kFirstShare : kSecondShare;
    by_layer_->settings = choose_by_layer(by_layer_->task, by_layer_->share);
    by_layer_->tries = std::ranges::any_of(by_layer_->settings,
                                           [&](std::size_t i) { return i != choice_.current(); });
  }
  if (!by_layer_->tries) {
    by_layer_.reset();
    window_ends_ = step + kWatchEvery;
    apply();
    tell(step);
    return !first;
  }
  window_ends_ = step + kSettlingSteps + kWindow;
  apply();
  return true;
}

// After the window of a trial by layer.
bool AutomaticPlan::judge_by_layer(std::int64_t step, const Measure& measure) {
  const bool kept = choice_.note_by_layer(agreed(measure(kWindow).times));
  by_layer_->tries = false;
  if (!kept && by_layer_->share == kFirstShare) return try_by_layer(step);
  if (!kept) by_layer_.reset();
  window_ends_ = step + kWatchEvery;
  if (!kept) apply();
  tell(step);
  return !kept;
}

void AutomaticPlan::apply() {
  const comm::LayerSetting& setting = settings_[choice_.current()];
  for (const LayerInfo& layer : automatic_.layers) plan_.set(layer.name, setting);
  summary_.setting = choice_.ladder()[choice_.current()];
  if (!by_layer_ || by_layer_->settings.empty()) return;
  std::vector<std::size_t> settings(automatic_.layers.size(), choice_.current());
  for (std::size_t l = 0; l < by_layer_->layers.size(); ++l) {
    settings[by_layer_->layers[l]] = by_layer_->settings[l];
    plan_.set(automatic_.layers[by_layer_->layers[l]].name, settings_[by_layer_->settings[l]]);
  }
  summary_.setting = counts_text(choice_.ladder(), settings);
}

void AutomaticPlan::tell(std::int64_t step) {
  summary_.reason = choice_.reason();
  summary_.searches = choice_.searches();
  summary_.tried.clear();
  for (std::size_t i = 0; i < choice_.ladder().size(); ++i) {
    const auto& times = choice_.tried()[i];
    if (!times) continue;
    summary_.tried.push_back({choice_.ladder()[i], times->step, times->exposed});
  }
  if (choice_.by_layer()) {
    const LayerTask& task = by_layer_->task;
    const std::vector<std::size_t> uniform(task.layers.size(), task.uniform);
    const double part = squared_error(task, by_layer_->settings) / squared_error(task, uniform);
    const std::string& name = choice_.ladder()[task.uniform];
    summary_.reason += concat("; the squared error of the gradients is ",
                              static_cast<double>(static_cast<int>(100 * part + 0.5)) / 100,
                              " of that with ", name);
  }
  if (group_->getRank() == 0) {
    log::info("auto: ", summary_.setting, " from step ", step, ": ", summary_.reason);
  }
}

}  // namespace thinwire
