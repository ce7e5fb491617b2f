// The table of codecs: the one place that knows them all.
#pragma once

#include <span>
#include <string_view>

#include "thinwire/common/spec.h"
#include "thinwire/compressors/codecs/codec.h"

namespace thinwire {

// One row of the table.
struct CodecEntry {
  std::string_view name;
  // CodecFacts::id of what `make` makes.
  CodecId id;
  // Parameters with their defaults and ranges, as the documentation prints them.
  std::string_view parameters;
  // One line: what it does and its source.
  std::string_view summary;
  CodecPtr (*make)(const Spec& spec);
};

// All codecs, in the order in which the documentation lists them.
std::span<const CodecEntry> codec_table();

// Makes a codec from its spec. Throws InvalidArgument for an unknown name (listing the known ones
// and the nearest) or a bad parameter. Thread-safe.
CodecPtr make_codec(const Spec& spec);
CodecPtr make_codec(std::string_view spec);

// The table row of a codec by name; throws InvalidArgument like make_codec().
const CodecEntry& codec_entry(std::string_view name);

}  // namespace thinwire
