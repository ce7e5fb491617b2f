#include "thinwire/compressors/allocation/automatic.h"

#include "thinwire/common/error.h"

namespace thinwire {

std::vector<std::string> automatic_ladder(const Spec& spec) {
  check(spec.name == "auto", "expected auto or auto(max_error=SPEC), got '", spec.str(), "'");
  SpecReader read(spec);
  const std::string text = read.text("max_error", "quantize(bits=4)");
  read.finish();
  std::vector<std::string> ladder = {"none", "cast(bf16)"};
  const Spec most = Spec::parse(text);
  if (most.str() == "cast(bf16)") return ladder;
  check(most.name == "quantize",
        "auto: max_error is the setting whose error is the largest that is allowed, cast(bf16) or "
        "quantize(bits=B), got '",
        text, "'");
  SpecReader quantize(most);
  const auto bits = quantize.integer("bits", 4, 2, 8);
  quantize.finish();
  for (const std::int64_t each : {8, 4}) {
    if (each > bits) ladder.push_back(concat("quantize(bits=", each, ")"));
  }
  const std::string last = concat("quantize(bits=", bits, ")");
  ladder.push_back(last);
  ladder.push_back(concat("ecsq(as=", last, ")"));
  return ladder;
}

}  // namespace thinwire
