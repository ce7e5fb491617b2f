#include "thinwire/compressors/codec_table.h"

#include <array>

#include "thinwire/common/error.h"
#include "thinwire/compressors/cast.h"
#include "thinwire/compressors/identity.h"
#include "thinwire/compressors/quantize.h"

namespace thinwire {
namespace {

// Ids are part of the frame format: append, never renumber.
constexpr std::array kTable = {
    CodecEntry{"identity", 0, "", "the tensor's own bytes", make_identity},
    CodecEntry{"cast", 1, "format=bf16|fp16", "narrower floating point, rounded to nearest even",
               make_cast},
    CodecEntry{"quantize", 2,
               "bits=4 (1..8), bucket=1024, norm=minmax|linf|l2, rounding=nearest|stochastic",
               "bucketed uniform quantisation; QSGD, Alistarh et al., NeurIPS 2017", make_quantize},
};

}  // namespace

std::span<const CodecEntry> codec_table() {
  return kTable;
}

const CodecEntry& codec_entry(std::string_view name) {
  std::vector<std::string> known;
  for (const auto& entry : kTable) {
    if (entry.name == name) return entry;
    known.emplace_back(entry.name);
  }
  std::string list;
  for (const auto& word : known) list += (list.empty() ? "" : ", ") + word;
  const std::string nearest = nearest_name(name, known);
  throw InvalidArgument(concat("unknown codec '", name, "'; the codecs are: ", list,
                               nearest.empty() ? "" : concat(" (did you mean '", nearest, "'?)")));
}

CodecPtr make_codec(const Spec& spec) {
  return codec_entry(spec.name).make(spec);
}

CodecPtr make_codec(std::string_view spec) {
  return make_codec(Spec::parse(spec));
}

}  // namespace thinwire
