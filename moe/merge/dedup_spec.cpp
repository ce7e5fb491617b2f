// The text form of DedupOptions.

#include <algorithm>
#include <limits>

#include "thinwire/common/error.h"
#include "thinwire/common/spec.h"
#include "thinwire/compressors/codecs/sparse_values.h"
#include "thinwire/moe/merge/dedup.h"

namespace thinwire::moe {
namespace {

using Rule = lsh::PrefixChoice::Rule;

// A radius of this size bounds nothing; texts have no word for infinity.
constexpr double kNoRadius = 1e30;

DedupOptions read_lsh(const Spec& spec) {
  DedupOptions options;
  options.method = DedupOptions::Method::kLsh;
  SpecReader read(spec);
  options.hashes =
      static_cast<int>(read.integer("hashes", 6, 1, lsh::CrossPolytopeHash::kMaxHashes));
  options.hash_dim = read.integer("hash_dim", 16, 0, 1 << 14);
  options.rotation =
      static_cast<lsh::RotationKind>(read.choice("rotation", {"hadamard", "gaussian"}, 0));
  check(read.has("prefix") + read.has("error") + read.has("rows") + read.has("fewest") <= 1,
        "bad spec '", spec.source, "': only one of prefix, error, rows and fewest can be given");
  lsh::PrefixChoice& choice = options.clusters.choice;
  choice.prefix = static_cast<int>(read.integer("prefix", options.hashes, 0, options.hashes));
  const double error = read.number("error", -1, 0, 10);
  const double rows = read.number("rows", -1, 0, 1);
  if (error >= 0) choice = {.rule = Rule::kError, .prefix = options.hashes, .target = error};
  if (rows >= 0) choice = {.rule = Rule::kRows, .prefix = options.hashes, .target = rows};
  if (read.flag("fewest", false)) choice.rule = Rule::kFewestRows;
  double& radius = options.clusters.radius;
  radius = read.number("radius", radius, 0, kNoRadius);
  if (radius >= kNoRadius) radius = std::numeric_limits<double>::infinity();
  const std::string compensation = read.text("compensation", "1");
  options.calibrate = compensation == "calibrated";
  if (!options.calibrate) options.compensation = read.number("compensation", 1, 0, 1);
  options.probes = static_cast<int>(read.integer("probes", 16, 1, 1 << 20));
  options.start_after = read.integer("start_after", 0, 0, std::numeric_limits<std::int64_t>::max());
  options.in_evaluation = read.flag("evaluation", false);
  options.bandwidth = read.number("bandwidth", 0, 0, 1e18);
  options.hash_rate = read.number("hash_rate", options.hash_rate, 0, 1e18, true);
  options.least_saving = read.number("least_saving", options.least_saving, 0, 1);
  read.finish();
  return options;
}

}  // namespace

DedupOptions parse_dedup(const std::string& text) {
  const Spec spec = Spec::parse(text);
  DedupOptions options;
  if (spec.name == "lsh") return read_lsh(spec);
  SpecReader read(spec);
  if (spec.name == "duplicates") {
    options.method = DedupOptions::Method::kDuplicates;
    options.in_evaluation = read.flag("evaluation", true);
    read.finish();
    return options;
  }
  const std::string near = nearest_name(spec.name, {"off", "duplicates", "lsh"});
  check(spec.name == "off", "unknown way to merge rows '", spec.name,
        "', known are off, duplicates and lsh",
        near.empty() ? std::string() : concat(" (did you mean ", near, "?)"));
  read.finish();
  return options;
}

std::string spec_of(const DedupOptions& options) {
  if (options.method == DedupOptions::Method::kOff) return "off";
  const char* evaluation = options.in_evaluation ? "on" : "off";
  if (options.method == DedupOptions::Method::kDuplicates) {
    return concat("duplicates(evaluation=", evaluation, ")");
  }
  const lsh::PrefixChoice& choice = options.clusters.choice;
  std::string rule;
  switch (choice.rule) {
    case Rule::kFixed:
      rule = concat("prefix=", choice.prefix);
      break;
    case Rule::kError:
      rule = concat("error=", number_text(choice.target));
      break;
    case Rule::kRows:
      rule = concat("rows=", number_text(choice.target));
      break;
    case Rule::kFewestRows:
      rule = "fewest=on";
      break;
  }
  return concat("lsh(hashes=", options.hashes, ", hash_dim=", options.hash_dim, ", rotation=",
                options.rotation == lsh::RotationKind::kHadamard ? "hadamard" : "gaussian", ", ",
                rule, ", radius=", number_text(std::min(options.clusters.radius, kNoRadius)),
                ", compensation=",
                options.calibrate ? std::string("calibrated") : number_text(options.compensation),
                ", probes=", options.probes, ", start_after=", options.start_after,
                ", evaluation=", evaluation, ", bandwidth=", number_text(options.bandwidth),
                ", hash_rate=", number_text(options.hash_rate),
                ", least_saving=", number_text(options.least_saving), ")");
}

}  // namespace thinwire::moe
