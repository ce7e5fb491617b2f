// Finding the step that fills a slot by a sample of the values: a try costs a small part of one
// that quantises all of them, and the first of these then nearly always fits.
#include <algorithm>
#include <cstdint>

#include "thinwire/compressors/entropy/step_coder.h"
#include "thinwire/compressors/entropy/step_search.h"

namespace thinwire::entropy {
namespace {

// What is smaller gains nothing; of the rest a sixteenth, but not more than says enough.
constexpr std::size_t kFewestToSample = std::size_t{1} << 16;
constexpr std::size_t kLeastSample = std::size_t{1} << 13, kMostSample = std::size_t{1} << 16;
// Of a part with fewer the entropy of its sample is too far below its own.
constexpr std::size_t kFewestOfPart = 512;

}  // namespace

std::size_t sample_period(std::size_t numel) {
  return numel / std::clamp(numel / 16, kLeastSample, kMostSample);
}

std::size_t sampled_runs(std::size_t part, std::size_t period) {
  return (part + kSampledRun * period - 1) / (kSampledRun * period);
}

bool StepEncoder::samples(std::size_t numel, std::size_t parts) {
  return numel >= kFewestToSample && numel / sample_period(numel) >= parts * kFewestOfPart;
}

// Of payloads that need not be full the step is the one that was asked for.
StepEncoder::Sampled StepEncoder::try_sample(std::span<const std::span<const float>> parts,
                                             const StepChoice& choice, std::size_t slot) {
  Sampled found{.step = choice.step};
  const std::size_t numel = total_of(parts);
  if (!choice.fill || !samples(numel, parts.size())) return found;
  take_sample(parts, numel);
  StepSearch search(8 * static_cast<double>(slot), 8 * static_cast<double>(min_bytes(parts.size())),
                    numel, true, kSharesOfSample);
  const double excess_weight =
      static_cast<double>(numel) / static_cast<double>(sample_.values.size());
  StepChoice tried = choice;
  double asked = 0;
  for (int attempt = 0; attempt < kSampledTries; ++attempt) {
    const bool other_zones = choose_zones(parts, tried);
    if (!quantise_parts(sample_.parts, tried, sample_.codes)) return found;
    for (std::size_t p = 0; p < parts.size(); ++p) {
      for (std::uint32_t& count : counts_[p]) {
        if (count > 0) count = static_cast<std::uint32_t>(count * sample_.weights[p] + 0.5);
      }
    }
    // Which parts share a table hardly depends on the step.
    if (other_zones) {
      group_parts(sample_.codes);
    } else {
      count_groups(sample_.codes);
    }
    const double bits = price(sample_.codes, excess_weight);
    if (attempt == 0) asked = bits;
    found = {tried.step, asked - bits};
    if (search.takes(bits)) break;
    tried.step = search.after(tried.step, bits, !search.full(bits));
  }
  return found;
}

// Runs of every part, evenly spread.
void StepEncoder::take_sample(std::span<const std::span<const float>> parts, std::size_t numel) {
  const std::size_t period = sample_period(numel);
  sample_.values.clear();
  sample_.parts.clear();
  sample_.weights.clear();
  std::size_t most = 0;
  for (const auto& part : parts) most += kSampledRun * sampled_runs(part.size(), period);
  sample_.values.reserve(most);
  std::uint64_t drawn = numel;
  for (const auto& part : parts) {
    const std::size_t runs = sampled_runs(part.size(), period), first = sample_.values.size();
    for (std::size_t r = 0; r < runs; ++r) {
      drawn = next_drawn(drawn);
      const SampledRun place = sampled_run(part.size(), r, runs, drawn);
      const auto run = part.subspan(place.begin, place.length);
      sample_.values.insert(sample_.values.end(), run.begin(), run.end());
    }
    sample_.parts.push_back(std::span<const float>(sample_.values).subspan(first));
    sample_.weights.push_back(sample_weight(part.size(), sample_.parts.back().size()));
  }
}

}  // namespace thinwire::entropy
