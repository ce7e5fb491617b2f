#include "thinwire/compressors/topk.h"

#include <algorithm>
#include <cstring>

#include "thinwire/compressors/codec_checks.h"
#include "thinwire/compressors/float_view.h"
#include "thinwire/compressors/index_coder.h"
#include "thinwire/compressors/kernels/host_device.h"
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

void check_numel(std::int64_t numel) {
  check(numel >= 0 && numel <= kMaxSparseNumel, "topk takes tensors of at most ", kMaxSparseNumel,
        " elements, got ", numel);
}

class Topk final : public Codec {
 public:
  explicit Topk(const TopkOptions& options) : options_(options) {}

  std::string spec() const override {
    return concat("topk(density=", number_text(options_.density),
                  ", select=", options_.sampled ? "sampled" : "exact",
                  ", values=", name_of(options_.values), ")");
  }

  CodecTraits traits() const override { return {.needs_error_feedback = true}; }
  std::int64_t block_size() const override { return 0; }

  std::size_t max_compressed_bytes(std::int64_t numel, DType) const override {
    check_numel(numel);
    if (numel == 0) return 0;
    const auto most = static_cast<std::uint64_t>(counts(options_, numel).most);
    return sizeof(std::uint32_t) + max_index_bytes(static_cast<std::uint64_t>(numel), most) +
           most * size_of(options_.values);
  }

  std::size_t compress(ConstTensorView input, const RandomKey& key,
                       std::span<std::byte> output) const override {
    check_view("topk", input);
    check_on_cpu("topk", input);
    check_output("topk", output, max_compressed_bytes(input.numel, input.dtype));
    return encode(as_floats(input, sparse_scratch().input), key, output);
  }

  // Only the elements that were sent change.
  std::size_t compress_and_subtract(TensorView values, const RandomKey& key,
                                    std::span<std::byte> output) const override {
    check_view("topk", values);
    check_subtractable(values);
    check_output("topk", output, max_compressed_bytes(values.numel, values.dtype));
    const std::span rest(static_cast<float*>(values.data), static_cast<std::size_t>(values.numel));
    const std::size_t bytes = encode(rest, key, output);
    if (bytes == 0) return 0;
    SparseScratch& s = sparse_scratch();
    const auto& kept = s.selection.indices;
    s.values.resize(kept.size());
    read_values(output.data() + bytes - kept.size() * size_of(options_.values), options_.values,
                s.values);
    if (is_poison(s.values)) {
      poison(values);
    } else {
      for (std::size_t j = 0; j < kept.size(); ++j) rest[kept[j]] -= s.values[j];
    }
    return bytes;
  }

  void decompress(std::span<const std::byte> input, const RandomKey&, TensorView output,
                  WriteMode mode) const override {
    check_view("topk", output);
    check_on_cpu("topk", output);
    SparseScratch& s = sparse_scratch();
    read(input, output.numel, s.indices, s.values);
    if (is_poison(s.values)) return poison(output);
    if (output.numel > 0) scatter(s.indices, s.values, output, mode);
  }

  bool decompress_entries(std::span<const std::byte> input, std::int64_t numel,
                          SparseEntries& entries) const override {
    read(input, numel, entries.indices, entries.values);
    if (is_poison(entries.values)) poison(numel, entries);
    return true;
  }

 private:
  // Of a tensor with NaN or infinity those are kept, so that nothing else is sent where there are
  // as many; the decoder then spoils the whole tensor.
  static bool is_poison(std::span<const float> values) {
    return !values.empty() && std::ranges::none_of(values, kernels::is_finite);
  }

  std::size_t encode(std::span<const float> x, const RandomKey& key,
                     std::span<std::byte> output) const {
    if (x.empty()) return 0;
    SparseScratch& s = sparse_scratch();
    const auto k =
        static_cast<std::size_t>(kept_count(options_.density, static_cast<std::int64_t>(x.size())));
    if (options_.sampled) {
      kernels::select_topk_sampled(x, k, PhiloxStream::of(key), s.selection);
    } else {
      kernels::select_topk(x, k, s.selection);
    }
    const auto count = static_cast<std::uint32_t>(s.selection.indices.size());
    std::memcpy(output.data(), &count, sizeof count);
    std::size_t size = sizeof count;
    size += encode_indices(s.selection.indices, x.size(), output.subspan(size));
    write_values(s.selection.values, options_.values, output.data() + size);
    return size + count * size_of(options_.values);
  }

  // The entries of a payload, checked before anything is written.
  void read(std::span<const std::byte> input, std::int64_t numel,
            std::vector<std::uint32_t>& indices, std::vector<float>& values) const {
    check_numel(numel);
    indices.clear();
    values.clear();
    if (numel == 0) return check_payload_size("topk", input, 0, 0);
    std::uint32_t count = 0;
    if (input.size() < sizeof count) throw FrameError("topk payload is truncated");
    std::memcpy(&count, input.data(), sizeof count);
    input = input.subspan(sizeof count);
    const auto [least, most] = counts(options_, numel);
    if (count < least || count > most) {
      throw FrameError(
          concat("topk payload holds ", count, " entries instead of ", least, " to ", most));
    }
    const std::size_t value_bytes = count * size_of(options_.values);
    if (input.size() < value_bytes + min_index_bytes(count))
      throw FrameError("topk payload is truncated");
    indices.resize(count);
    values.resize(count);
    const std::size_t index_bytes =
        decode_indices(input, static_cast<std::uint64_t>(numel), indices);
    if (input.size() != index_bytes + value_bytes) {
      throw FrameError(concat("topk payload has ", input.size() - index_bytes,
                              " bytes of values instead of ", value_bytes));
    }
    read_values(input.data() + index_bytes, options_.values, values);
  }

  TopkOptions options_;
};

}  // namespace

CodecPtr make_topk(const TopkOptions& options) {
  check(options.density > 0 && options.density <= 1, "topk's density must be in (0, 1], got ",
        options.density);
  return std::make_shared<Topk>(options);
}

CodecPtr make_topk(const Spec& spec) {
  SpecReader read(spec);
  TopkOptions options;
  options.density = read.number("density", options.density, 0, 1, true);
  options.sampled = read.choice("select", {"exact", "sampled"}, 0) == 1;
  options.values = static_cast<ValueType>(read.choice("values", {"fp32", "fp16", "bf16"}, 0));
  read.finish();
  return make_topk(options);
}

}  // namespace thinwire
