// Random and adversarial allocation problems for the tests.
#pragma once

#include <cmath>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "thinwire/compressors/allocation/allocator.h"

namespace thinwire::lgreco {

// Small integers make ties common, the others make them rare.
inline std::vector<Layer> random_problem(std::mt19937_64& rng, std::size_t layers,
                                         std::size_t most_candidates, bool integers) {
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(rng() % n); };
  const auto uniform = [&] { return std::uniform_real_distribution<double>(0, 1)(rng); };
  std::vector<Layer> problem(layers);
  for (std::size_t l = 0; l < layers; ++l) {
    problem[l].name = "layer" + std::to_string(l);
    const std::size_t count = 1 + below(most_candidates);
    for (std::size_t c = 0; c < count; ++c) {
      Candidate candidate{"c" + std::to_string(c), 0, 0, 0};
      candidate.bytes = static_cast<double>(below(integers ? 12 : 1'000'000));
      candidate.error = integers ? static_cast<double>(below(12)) : uniform();
      candidate.seconds = integers ? static_cast<double>(below(6)) : uniform();
      problem[l].candidates.push_back(candidate);
    }
    problem[l].reference = below(count);
  }
  return problem;
}

// Rate-distortion curves as codecs give them: error falls as bytes grow, layers of very different
// size and norm.
inline std::vector<Layer> curve_problem(std::mt19937_64& rng, std::size_t layers,
                                        std::size_t candidates, double noise) {
  const auto uniform = [&] { return std::uniform_real_distribution<double>(0, 1)(rng); };
  std::vector<Layer> problem(layers);
  for (std::size_t l = 0; l < layers; ++l) {
    problem[l].name = "layer" + std::to_string(l);
    const double numel = std::floor(std::exp(5 + 10 * uniform()));
    const double norm = std::exp(4 * uniform());
    const double decay = 0.3 + uniform();
    for (std::size_t c = 0; c < candidates; ++c) {
      const double density =
          std::pow(10.0, -3 + 2.0 * static_cast<double>(c) / static_cast<double>(candidates));
      const double wobble = 1 + noise * (uniform() - 0.5);
      problem[l].candidates.push_back({"c" + std::to_string(c), std::ceil(numel * density) * 8,
                                       norm * std::exp(-decay * 10 * density) * wobble, 0});
    }
    problem[l].reference = candidates / 2;
  }
  return problem;
}

struct Adversary {
  const char* name;
  std::function<std::vector<Layer>(std::mt19937_64&)> make;
};

// Problems that break careless solvers, each at the largest size.
inline std::vector<Adversary> adversaries() {
  constexpr std::size_t kLayers = 1000, kCandidates = 64;
  using Fill = std::function<void(std::mt19937_64&, std::size_t, std::size_t, Candidate&)>;
  const auto filled = [](Fill fill) {
    return [fill](std::mt19937_64& rng) {
      std::vector<Layer> problem(kLayers);
      for (std::size_t l = 0; l < kLayers; ++l) {
        problem[l].name = "layer" + std::to_string(l);
        problem[l].reference = rng() % kCandidates;
        for (std::size_t c = 0; c < kCandidates; ++c) {
          Candidate candidate{"c" + std::to_string(c), 0, 0, 0};
          fill(rng, l, c, candidate);
          problem[l].candidates.push_back(candidate);
        }
      }
      return problem;
    };
  };
  const auto uniform = [](std::mt19937_64& rng) {
    return std::uniform_real_distribution<double>(0, 1)(rng);
  };
  const auto whole = [](std::mt19937_64& rng) { return static_cast<double>(rng() % 1'000'000); };
  return {
      {"independent", filled([=](auto& rng, auto, auto, Candidate& c) {
         c.bytes = whole(rng), c.error = uniform(rng);
       })},
      {"curves", [](auto& rng) { return curve_problem(rng, kLayers, kCandidates, 0); }},
      {"noisy curves", [](auto& rng) { return curve_problem(rng, kLayers, kCandidates, 0.2); }},
      {"huge dynamic range", filled([=](auto& rng, auto, auto, Candidate& c) {
         c.bytes = std::floor(std::exp2(50 * uniform(rng)) / 1000);
         c.error = std::exp2(2000 * uniform(rng) - 1000);
       })},
      {"denormals", filled([=](auto& rng, auto, auto, Candidate& c) {
         c.bytes = whole(rng), c.error = 5e-324 * static_cast<double>(rng() % 1000);
       })},
      {"all equal", filled([](auto&, auto, auto, Candidate& c) { c.bytes = 100, c.error = 0.1; })},
      {"equal layers", filled([](auto&, auto, std::size_t k, Candidate& c) {
         c.bytes = static_cast<double>(100 * (64 - k)), c.error = 0.1 * static_cast<double>(k);
       })},
      {"collinear", filled([](auto& rng, auto, auto, Candidate& c) {
         const double x = static_cast<double>(rng() % 4096);
         c.bytes = 4096 - x, c.error = x;
       })},
      {"nearly collinear", filled([=](auto& rng, auto, auto, Candidate& c) {
         const double x = whole(rng);
         c.bytes = 1e6 - x, c.error = x + 1e-3 * uniform(rng);
       })},
      {"duplicates", filled([](auto& rng, auto, auto, Candidate& c) {
         c.bytes = static_cast<double>(rng() % 4), c.error = static_cast<double>(rng() % 4) / 3;
       })},
      {"one dominating layer", filled([=](auto& rng, std::size_t l, auto, Candidate& c) {
         const double factor = l == 500 ? 1e9 : 1;
         c.bytes = whole(rng) * factor, c.error = uniform(rng) * factor;
       })},
      {"zero errors", filled([=](auto& rng, auto, auto, Candidate& c) { c.bytes = whole(rng); })},
      {"zero bytes", filled([=](auto& rng, auto, auto, Candidate& c) { c.error = uniform(rng); })},
      {"geometric layers", filled([=](auto& rng, std::size_t l, auto, Candidate& c) {
         const double factor = std::exp2(static_cast<double>(l % 40) - 20);
         c.bytes = std::floor(uniform(rng) * factor * 0x1p24), c.error = uniform(rng) * factor;
       })},
      {"even weights", filled([=](auto& rng, auto, auto, Candidate& c) {
         c.bytes = whole(rng), c.error = 2 * static_cast<double>(rng() % 1000);
       })},
  };
}

}  // namespace thinwire::lgreco
