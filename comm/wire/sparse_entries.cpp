#include "thinwire/comm/wire/sparse_entries.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/index_coder.h"
#include "thinwire/compressors/codecs/sparse_values.h"
#include "thinwire/compressors/codecs/value_levels.h"

namespace thinwire::comm {
namespace {

enum class Form : std::uint8_t { kFloat32, kFloat16, kBFloat16, kSigns, kAll, kLevels };
constexpr std::size_t kHeaderBytes = sizeof(std::uint32_t) + sizeof(Form);

std::uint32_t bits_of(float value) {
  return std::bit_cast<std::uint32_t>(value);
}

// Whether all values survive the way through a 16-bit type. Most vectors that do not are found out
// by the first few values.
bool fits(std::span<const float> values, ValueType type) {
  std::byte narrow[2];
  for (const float value : values) {
    float wide = 0;
    write_values({&value, 1}, type, narrow);
    read_values(narrow, type, {&wide, 1});
    if (bits_of(wide) != bits_of(value)) return false;
  }
  return true;
}

Form smallest_form(std::span<const float> values) {
  constexpr std::uint32_t kMagnitude = 0x7FFFFFFF;
  const auto same = [&](float value) {
    return (bits_of(value) & kMagnitude) == (bits_of(values[0]) & kMagnitude);
  };
  if (values.empty()) return Form::kFloat32;
  if (values.size() > 1 && std::ranges::all_of(values, same)) return Form::kSigns;
  if (fits(values, ValueType::kFloat16)) return Form::kFloat16;
  if (fits(values, ValueType::kBFloat16)) return Form::kBFloat16;
  return Form::kFloat32;
}

std::size_t value_bytes(Form form, std::size_t count) {
  switch (form) {
    case Form::kFloat16:
    case Form::kBFloat16:
      return 2 * count;
    case Form::kSigns:
      return sizeof(float) + (count + 7) / 8;
    case Form::kFloat32:
    case Form::kAll:
    case Form::kLevels:
      break;
  }
  return sizeof(float) * count;
}

void write_form(Form form, std::span<const float> values, std::byte* out) {
  if (form == Form::kSigns) {
    const float magnitude = std::fabs(values[0]);
    std::memcpy(out, &magnitude, sizeof magnitude);
    out += sizeof magnitude;
    std::fill_n(out, (values.size() + 7) / 8, std::byte{0});
    for (std::size_t i = 0; i < values.size(); ++i) {
      out[i / 8] |= static_cast<std::byte>((bits_of(values[i]) >> 31) << (i % 8));
    }
    return;
  }
  write_values(values,
               form == Form::kFloat16    ? ValueType::kFloat16
               : form == Form::kBFloat16 ? ValueType::kBFloat16
                                         : ValueType::kFloat32,
               out);
}

void read_form(Form form, const std::byte* in, std::span<float> values) {
  if (form == Form::kSigns) {
    float magnitude = 0;
    std::memcpy(&magnitude, in, sizeof magnitude);
    in += sizeof magnitude;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const bool negative = ((static_cast<unsigned>(in[i / 8]) >> (i % 8)) & 1u) != 0;
      values[i] = negative ? -magnitude : magnitude;
    }
    return;
  }
  read_values(in,
              form == Form::kFloat16    ? ValueType::kFloat16
              : form == Form::kBFloat16 ? ValueType::kBFloat16
                                        : ValueType::kFloat32,
              values);
}

}  // namespace

void LayeredEntries::clear() {
  SparseEntries::clear();
  ends.clear();
}

void LayeredEntries::end_layer() {
  const auto end = static_cast<std::uint32_t>(size());
  if (end > (ends.empty() ? 0 : ends.back())) ends.push_back(end);
}

std::size_t max_entries_bytes(std::uint64_t numel) {
  return max_entries_bytes(numel, numel);
}

std::size_t max_entries_bytes(std::uint64_t numel, std::size_t count, std::size_t layers) {
  // All elements are sent only where that is less.
  return kHeaderBytes + max_index_bytes(numel, count) +
         std::max(sizeof(float) * count + sizeof(float),
                  max_levels_bytes(count, std::max<std::size_t>(layers, 1)));
}

std::size_t encode_entries(const LayeredEntries& entries, std::uint64_t numel,
                           std::span<std::byte> out) {
  Form form = smallest_form(entries.values);
  auto count = static_cast<std::uint32_t>(entries.size());
  std::size_t bytes = value_bytes(form, count);
  std::size_t at = kHeaderBytes;
  if (count > 0) at += encode_indices(entries.indices, numel, out.subspan(at));
  const std::size_t levels =
      form == Form::kSigns ? 0 : encode_levels(entries.values, entries.ends, out.subspan(at));
  if (levels > 0 && levels < bytes) {
    form = Form::kLevels;
    bytes = levels;
  }
  if (at + bytes > kHeaderBytes + value_bytes(Form::kAll, numel)) {
    form = Form::kAll;
    count = static_cast<std::uint32_t>(numel);
    bytes = value_bytes(form, count);
    at = kHeaderBytes;
    std::memset(out.data() + at, 0, bytes);
    for (std::size_t i = 0; i < entries.size(); ++i) {
      std::memcpy(out.data() + at + sizeof(float) * entries.indices[i], &entries.values[i],
                  sizeof(float));
    }
  } else if (count > 0 && form != Form::kLevels) {
    write_form(form, entries.values, out.data() + at);
  }
  std::memcpy(out.data(), &count, sizeof count);
  out[sizeof count] = static_cast<std::byte>(form);
  return at + (count > 0 ? bytes : 0);
}

void decode_entries(std::span<const std::byte> in, std::uint64_t numel, SparseEntries& entries) {
  entries.clear();
  if (in.size() < kHeaderBytes) throw FrameError("sparse entries are truncated");
  std::uint32_t count = 0;
  std::memcpy(&count, in.data(), sizeof count);
  const auto form = static_cast<Form>(in[sizeof count]);
  in = in.subspan(kHeaderBytes);
  if (form > Form::kLevels || count > numel || (form == Form::kAll && count != numel)) {
    throw FrameError(concat("sparse entries claim ", count, " of ", numel, " elements in form ",
                            static_cast<int>(form)));
  }
  const bool indexed = form != Form::kAll && count > 0;
  const bool leveled = form == Form::kLevels;
  const std::size_t values = count == 0 ? 0
                             : leveled  ? min_value_bytes(ValueType::kCoded, count)
                                        : value_bytes(form, count);
  if (in.size() < values + (indexed ? min_index_bytes(count) : 0)) {
    throw FrameError(
        concat("sparse entries are truncated: ", count, " entries in ", in.size(), " bytes"));
  }
  std::size_t at = 0;
  entries.resize(count);
  if (indexed) at = decode_indices(in, numel, entries.indices);
  if (leveled && count > 0) return decode_levels(in.subspan(at), entries.values);
  if (in.size() != at + values) {
    throw FrameError(
        concat("sparse entries have ", in.size() - at, " bytes of values instead of ", values));
  }
  if (count > 0) read_form(form, in.data() + at, entries.values);
  if (form != Form::kAll) return;
  std::size_t kept = 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    if (entries.values[i] == 0) continue;
    entries.indices[kept] = i;
    entries.values[kept++] = entries.values[i];
  }
  entries.indices.resize(kept);
  entries.values.resize(kept);
}

}  // namespace thinwire::comm
