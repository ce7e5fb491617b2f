#include "thinwire/compressors/allocation/policy.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <vector>

#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/compressors/codecs/powersgd.h"
#include "thinwire/compressors/codecs/sparse_values.h"

namespace thinwire::lgreco {
namespace {

const std::vector<std::string_view> kFamilies = {"quantize", "topk", "powersgd", "mixed"};
const std::vector<std::string_view> kConstraints = {"error", "bytes"};
const std::vector<std::string_view> kMeasures = {"l2", "l2_squared"};
const std::vector<std::string_view> kObjectives = {"bytes", "time"};

// The defaults are the paper's references for convolutional networks. Transformers take 10 % and
// rank 32 there.
constexpr std::array kParameters = {Parameter{"quantize", "bits", 4, 1, 8, true},
                                    Parameter{"topk", "density", 0.01, 0, 1, false},
                                    Parameter{"powersgd", "rank", 4, 1, kMaxPowerSgdRank, true},
                                    Parameter{"ternary", "density", 0.01, 0, 1, false}};

const Spec::Argument* parameter_argument(const Spec& spec) {
  const Parameter& parameter = parameter_of(spec);
  for (const auto& argument : spec.arguments) {
    if (argument.key == parameter.key) return &argument;
  }
  // It is the first parameter of its codec, so the first value without a key is its.
  for (const auto& argument : spec.arguments) {
    if (argument.key.empty()) return &argument;
  }
  return nullptr;
}

Spec parse_reference(Family family, const std::string& text) {
  const bool starts_like_number =
      !text.empty() && std::string_view("0123456789.-+").find(text[0]) != std::string_view::npos;
  if (text.empty() || starts_like_number) {
    const std::size_t which = family == Family::kMixed ? 0 : static_cast<std::size_t>(family);
    const Parameter& parameter = kParameters[which];
    check(family != Family::kMixed || text.empty(),
          "lgreco: with family=mixed the reference must be a codec spec, such as "
          "quantize(bits=4), got '",
          text, "'");
    const std::string value = text.empty() ? number_text(parameter.fallback) : text;
    return Spec::parse(concat(parameter.codec, "(", parameter.key, "=", value, ")"));
  }
  return Spec::parse(text);
}

}  // namespace

bool is_policy(std::string_view name) {
  return std::ranges::find(kPolicies, name) != kPolicies.end();
}

void check_compression_name(std::string_view name) {
  std::vector<std::string> known = {"none"};
  std::string codecs, policies;
  for (const CodecEntry& entry : codec_table()) {
    known.emplace_back(entry.name);
    codecs += concat(codecs.empty() ? "" : ", ", entry.name);
  }
  for (const std::string_view policy : kPolicies) {
    known.emplace_back(policy);
    policies += concat(policies.empty() ? "" : ", ", policy);
  }
  if (std::ranges::find(known, name) != known.end()) return;
  const std::string near = nearest_name(name, known);
  throw InvalidArgument(concat("unknown compression '", name, "': it is none of the codecs (",
                               codecs, "), of the policies (", policies, ") or 'none'",
                               near.empty() ? "" : concat("; did you mean '", near, "'?")));
}

std::string_view name_of(Family family) {
  return kFamilies[static_cast<std::size_t>(family)];
}

const Parameter& parameter_of(const Spec& spec) {
  std::vector<std::string> known;
  for (const Parameter& parameter : kParameters) {
    if (parameter.codec == spec.name) return parameter;
    known.emplace_back(parameter.codec);
  }
  const std::string near = nearest_name(spec.name, known);
  throw InvalidArgument(
      concat("lgreco: candidates are made of quantize, topk, ternary and powersgd, got '",
             spec.str(), "'", near.empty() ? "" : concat(" (did you mean ", near, "?)")));
}

bool has_parameter(const Spec& spec) {
  return std::ranges::any_of(kParameters,
                             [&](const Parameter& known) { return known.codec == spec.name; });
}

double parameter_value(const Spec& spec) {
  const Parameter& parameter = parameter_of(spec);
  const Spec::Argument* argument = parameter_argument(spec);
  if (!argument) return parameter.fallback;
  double value = 0;
  const char* end = argument->text.data() + argument->text.size();
  const auto [stop, error] = std::from_chars(argument->text.data(), end, value);
  const bool above = parameter.whole ? value >= parameter.least : value > parameter.least;
  check(error == std::errc() && stop == end && above && value <= parameter.most &&
            (!parameter.whole || value == std::floor(value)),
        "lgreco: ", parameter.key, " of the reference must be ",
        parameter.whole ? concat("an integer from ", parameter.least, " to ", parameter.most)
                        : concat("a number in (", parameter.least, ", ", parameter.most, "]"),
        ", got '", argument->text, "'");
  return value;
}

Spec with_parameter(const Spec& spec, double value) {
  const Parameter& parameter = parameter_of(spec);
  Spec result = spec;
  Spec::Argument changed;
  changed.key = parameter.key;
  changed.text = number_text(value);
  if (const auto* argument = parameter_argument(spec)) {
    result.arguments[static_cast<std::size_t>(argument - spec.arguments.data())] = changed;
  } else {
    result.arguments.insert(result.arguments.begin(), changed);
  }
  return Spec::parse(result.str());
}

AllocationOptions Policy::allocation() const {
  AllocationOptions options;
  options.constraint = constraint;
  options.objective = objective;
  options.budget = budget;
  options.max_relative_error = measure == ErrorMeasure::kL2 ? cap : cap * cap;
  return options;
}

std::string Policy::str() const {
  return concat("lgreco(family=", name_of(family), ", reference=", reference.str(),
                ", budget=", number_text(budget),
                ", constraint=", kConstraints[static_cast<std::size_t>(constraint)],
                ", error=", kMeasures[static_cast<std::size_t>(measure)],
                ", objective=", kObjectives[static_cast<std::size_t>(objective)],
                ", period=", period, ", warmup=", warmup, ", first=", first, ", window=", window,
                ", cap=", number_text(cap), ")");
}

Policy parse_policy(const Spec& spec) {
  check(spec.name == "lgreco", "expected an lgreco(...) policy, got '", spec.str(), "'");
  constexpr std::int64_t kMostSteps = 1'000'000'000;
  Policy policy;
  SpecReader read(spec);
  policy.family = static_cast<Family>(read.choice("family", kFamilies, 0));
  policy.reference = parse_reference(policy.family, read.text("reference", ""));
  policy.budget = read.number("budget", policy.budget, 0, 1000, true);
  policy.constraint = static_cast<Constraint>(read.choice("constraint", kConstraints, 0));
  policy.measure = static_cast<ErrorMeasure>(read.choice("error", kMeasures, 0));
  policy.objective = static_cast<Objective>(read.choice("objective", kObjectives, 0));
  policy.period = read.integer("period", policy.period, 1, kMostSteps);
  policy.warmup = read.integer("warmup", policy.warmup, 0, kMostSteps);
  policy.first = read.integer("first", std::min(policy.first, policy.period), 0, kMostSteps);
  policy.window = read.integer("window", std::min(policy.window, policy.period), 1, kMostSteps);
  policy.cap = read.number("cap", policy.cap, 0, 1);
  read.finish();
  check(policy.window <= policy.period,
        "lgreco: window must not exceed period, got window=", policy.window,
        ", period=", policy.period);
  const Parameter& parameter = parameter_of(policy.reference);
  check(policy.family == Family::kMixed || parameter.codec == name_of(policy.family),
        "lgreco: with family=", name_of(policy.family), " the reference must be ",
        name_of(policy.family), "(...), got '", policy.reference.str(),
        "'; candidates of other codecs need family=mixed");
  policy.reference = with_parameter(policy.reference, parameter_value(policy.reference));
  try {
    make_codec(policy.reference);
  } catch (const InvalidArgument& error) {
    throw InvalidArgument(concat("lgreco: the reference is no codec: ", error.what(),
                                 "; what is not the codec's own, such as error_feedback, is given "
                                 "to lgreco(...) itself, for all layers"));
  }
  return policy;
}

}  // namespace thinwire::lgreco
