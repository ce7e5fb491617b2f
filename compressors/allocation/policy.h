// The policy `lgreco(...)`: what is allocated, against which reference, and when.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "thinwire/common/spec.h"
#include "thinwire/compressors/allocation/allocator.h"

namespace thinwire::lgreco {

// What gives every layer a codec, by the names that a spec for a whole model may begin with.
inline constexpr std::array<std::string_view, 2> kPolicies = {"lgreco", "auto"};
bool is_policy(std::string_view name);

// For the spec of a whole model. Throws InvalidArgument for a name that is none of a codec, none of
// a policy and not "none": one sentence with all of them and the nearest.
void check_compression_name(std::string_view name);

// Codecs that the candidates are taken from; mixed: all three, and ternary.
enum class Family { kQuantize, kTopk, kPowersgd, kMixed };
std::string_view name_of(Family family);

struct Policy {
  Family family = Family::kQuantize;
  // The uniform setting that is compared with.
  Spec reference = Spec::parse("quantize(bits=4)");
  double budget = 1;
  Constraint constraint = Constraint::kError;
  ErrorMeasure measure = ErrorMeasure::kL2;
  Objective objective = Objective::kBytes;
  // A plan is made every so many steps; about an epoch is right, the curves change slowly.
  std::int64_t period = 500;
  // Steps sent uncompressed at the start, while the learning rate warms up.
  std::int64_t warmup = 100;
  // No plan is made before so many steps: gradients turn quickly in the first ones, and a plan made
  // from them holds a training back (docs/lgreco.md).
  std::int64_t first = 100;
  // Steps whose gradients are averaged for the curves, just before a plan is made.
  std::int64_t window = 10;
  // No candidate may lose more than this part of a layer's norm, unless the reference does; 0: no
  // cap.
  double cap = 0.95;

  // Options for allocate(), with the cap in the measure.
  AllocationOptions allocation() const;
  // Canonical text with every parameter.
  std::string str() const;
};

// `lgreco(family=quantize, reference=4, budget=1, constraint=error, error=l2, objective=bytes,
// period=500, warmup=100, first=100, window=10, cap=0.95)`
//
//   family      quantize | topk | powersgd | mixed
//   reference   a number (bits, density, rank) or a spec of the family. Defaults: quantize 4,
//               topk 0.01, powersgd 4; mixed takes a spec of any of these or of ternary, default
//               quantize(bits=4)
//   budget      factor on the reference's total, in (0, 1000]
//   constraint  error: least bytes at that error | bytes: least error at those bytes
//   error       l2 | l2_squared
//   objective   bytes | time
//   period      1 … 10^9 steps
//   warmup      0 … 10^9 steps
//   first       0 … 10^9 steps; default 100, at most the period
//   window      1 … period steps
//   cap         in [0, 1], 0 for none
//
// Throws InvalidArgument with the value and what would be right.
Policy parse_policy(const Spec& spec);

// The number of a reference, and of every candidate, that a family varies: bits, density, rank.
// `spec` must be quantize, topk, ternary or powersgd. Throws InvalidArgument if it is out of range.
struct Parameter {
  std::string_view codec;
  std::string_view key;
  double fallback, least, most;
  bool whole;
};
const Parameter& parameter_of(const Spec& spec);
// Whether the codec is one of them.
bool has_parameter(const Spec& spec);
double parameter_value(const Spec& spec);
// The same spec with the parameter replaced.
Spec with_parameter(const Spec& spec, double value);

}  // namespace thinwire::lgreco
