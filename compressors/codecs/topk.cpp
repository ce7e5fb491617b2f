#include "thinwire/compressors/codecs/topk.h"

#include <algorithm>
#include <cstring>

#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/index_coder.h"
#include "thinwire/compressors/codecs/sparse_codec.h"
#include "thinwire/compressors/codecs/value_levels.h"
#include "thinwire/compressors/kernels/sparse_task.h"
#include "thinwire/compressors/kernels/topk.h"

namespace thinwire {
namespace {

// Fewest and most entries that a payload may hold.
struct CountRange {
  std::int64_t least, most;
};
CountRange counts(const TopkOptions& options, std::int64_t numel) {
  const std::int64_t k = kept_count(options.density, numel);
  if (!options.sampled) return {k, k};
  return {(k + 1) / 2, std::min(numel, 2 * k)};
}

class Topk final : public SparseCodec {
 public:
  explicit Topk(const TopkOptions& options) : SparseCodec("topk"), options_(options) {}

  std::string spec() const override {
    return concat("topk(density=", number_text(options_.density),
                  ", select=", options_.sampled ? "sampled" : "exact",
                  ", values=", name_of(options_.values), ")");
  }

  CodecFacts facts() const override {
    return {.id = CodecId::kTopk,
            .form = CodecFacts::Form::kSparse,
            .density = options_.density,
            .values = options_.values};
  }

  std::optional<kernels::EntryForm> entry_form() const override {
    if (options_.sampled) return std::nullopt;
    switch (options_.values) {
      case ValueType::kFloat32:
        return kernels::EntryForm::kFloat32;
      case ValueType::kFloat16:
        return kernels::EntryForm::kFloat16;
      case ValueType::kBFloat16:
        return kernels::EntryForm::kBFloat16;
      case ValueType::kCoded:
        break;
    }
    return std::nullopt;
  }

  CodecPtr with_density(double density) const override {
    TopkOptions changed = options_;
    changed.density = density;
    return make_topk(changed);
  }

  std::size_t max_compressed_bytes(std::int64_t numel, DType) const override {
    check_numel(numel);
    if (numel == 0) return 0;
    const auto most = static_cast<std::uint64_t>(counts(options_, numel).most);
    return sizeof(std::uint32_t) + max_index_bytes(static_cast<std::uint64_t>(numel), most) +
           max_value_bytes(options_.values, most);
  }

 protected:
  std::size_t encode(std::span<const float> x, const RandomKey& key, kernels::TopkSelection& sent,
                     std::span<std::byte> output) const override {
    const auto k =
        static_cast<std::size_t>(kept_count(options_.density, static_cast<std::int64_t>(x.size())));
    if (options_.sampled) {
      kernels::select_topk_sampled(x, k, PhiloxStream::of(key), sent);
    } else {
      kernels::select_topk(x, k, sent);
    }
    const auto count = static_cast<std::uint32_t>(sent.indices.size());
    std::memcpy(output.data(), &count, sizeof count);
    std::size_t size = sizeof count;
    size += encode_indices(sent.indices, x.size(), output.subspan(size));
    if (options_.values == ValueType::kCoded) {
      round_to_levels(sent.values);
      return size + encode_levels(sent.values, {}, output.subspan(size));
    }
    write_values(sent.values, options_.values, output.data() + size);
    if (options_.values != ValueType::kFloat32) {
      read_values(output.data() + size, options_.values, sent.values);
    }
    return size + count * size_of(options_.values);
  }

  void decode(std::span<const std::byte> input, std::int64_t numel,
              SparseEntries& entries) const override {
    std::uint32_t count = 0;
    check_not_truncated(input.size(), sizeof count);
    std::memcpy(&count, input.data(), sizeof count);
    input = input.subspan(sizeof count);
    const auto [least, most] = counts(options_, numel);
    if (count < least || count > most) {
      throw FrameError(
          concat("topk payload holds ", count, " entries instead of ", least, " to ", most));
    }
    check_not_truncated(sizeof count + input.size(), sizeof count + min_index_bytes(count) +
                                                         min_value_bytes(options_.values, count));
    entries.resize(count);
    const std::size_t index_bytes =
        decode_indices(input, static_cast<std::uint64_t>(numel), entries.indices);
    if (options_.values == ValueType::kCoded) {
      return decode_levels(input.subspan(index_bytes), entries.values);
    }
    const std::size_t value_bytes = count * size_of(options_.values);
    if (input.size() != index_bytes + value_bytes) {
      throw FrameError(concat("topk payload has ", input.size() - index_bytes,
                              " bytes of values instead of ", value_bytes));
    }
    read_values(input.data() + index_bytes, options_.values, entries.values);
  }

 private:
  static void check_not_truncated(std::size_t bytes, std::size_t least) {
    if (bytes >= least) return;
    throw FrameError(
        concat("topk payload is truncated: ", bytes, " bytes, at least ", least, " are needed"));
  }

  TopkOptions options_;
};

}  // namespace

CodecPtr make_topk(const TopkOptions& options) {
  check(options.density > 0 && options.density <= 1, "topk's density must be in (0, 1], got ",
        options.density);
  return std::make_shared<Topk>(options);
}

TopkOptions topk_options(const Spec& spec) {
  SpecReader read(spec);
  TopkOptions options;
  options.density = read.number("density", options.density, 0, 1, true);
  options.sampled = read.choice("select", {"exact", "sampled"}, 0) == 1;
  options.values =
      static_cast<ValueType>(read.choice("values", {"fp32", "fp16", "bf16", "coded"}, 0));
  read.finish();
  return options;
}

CodecPtr make_topk(const Spec& spec) {
  return make_topk(topk_options(spec));
}

}  // namespace thinwire
