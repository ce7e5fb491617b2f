#include "thinwire/compressors/codecs/randomk.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "thinwire/compressors/codecs/codec_checks.h"
#include "thinwire/compressors/codecs/float_view.h"
#include "thinwire/compressors/codecs/sparse_values.h"
#include "thinwire/compressors/kernels/elementwise_ref.h"
#include "thinwire/compressors/kernels/float_arrays.h"

namespace thinwire {
namespace {

// The stream of the choice: the parts of the key that all ranks share.
PhiloxStream shared_stream(const RandomKey& key) {
  return PhiloxStream::of({.seed = key.seed, .step = key.step, .layer = key.layer});
}

// Calls use(j, chosen index, size of the cell) for the k cells of n elements.
template <typename Use>
void for_each_choice(std::uint64_t n, std::uint64_t k, const RandomKey& key, const Use& use) {
  const PhiloxStream stream = shared_stream(key);
  std::array<std::uint32_t, 4> words{};
  std::uint64_t begin = 0;
  for (std::uint64_t j = 0; j < k; ++j) {
    if (j % 4 == 0) words = stream.block(j / 4);
    const std::uint64_t end = (j + 1) * n / k;
    // The multiplication favours no element by more than size · 2^-32.
    use(j, begin + (words[j % 4] * (end - begin) >> 32), end - begin);
    begin = end;
  }
}

class Randomk final : public Codec {
 public:
  Randomk(double density, bool unbiased) : density_(density), unbiased_(unbiased) {}

  std::string spec() const override {
    return concat("randomk(density=", number_text(density_),
                  ", unbiased=", unbiased_ ? "on" : "off", ")");
  }

  CodecTraits traits() const override {
    return {.summable = true,
            .unbiased = unbiased_,
            .fixed_size = true,
            .needs_error_feedback = !unbiased_};
  }

  CodecFacts facts() const override { return {.id = CodecId::kRandomk, .density = density_}; }

  CodecPtr with_density(double density) const override {
    return std::make_shared<Randomk>(density, unbiased_);
  }

  std::int64_t block_size() const override { return 0; }

  std::size_t max_compressed_bytes(std::int64_t numel, DType) const override {
    check(numel >= 0 && numel <= kMaxSparseNumel, "randomk takes tensors of at most ",
          kMaxSparseNumel, " elements, got ", numel);
    return static_cast<std::size_t>(kept_count(density_, numel)) * sizeof(float);
  }

  std::size_t compress(ConstTensorView input, const RandomKey& key,
                       std::span<std::byte> output) const override {
    check_view("randomk", input);
    check_on_cpu("randomk", input);
    const std::size_t bytes = max_compressed_bytes(input.numel, input.dtype);
    check_output("randomk", output, bytes);
    thread_local std::vector<float> scratch;
    const auto x = as_floats(input, scratch);
    const bool poisoned = !kernels::all_finite(x);
    for_each_choice(x.size(), bytes / sizeof(float), key,
                    [&](std::uint64_t j, std::uint64_t chosen, std::uint64_t) {
                      const float value =
                          poisoned ? kernels::float_of(kernels::kFloatNanBits) : x[chosen];
                      std::memcpy(output.data() + j * sizeof value, &value, sizeof value);
                    });
    return bytes;
  }

  void decompress(std::span<const std::byte> input, const RandomKey& key, TensorView output,
                  WriteMode mode) const override {
    check_view("randomk", output);
    check_on_cpu("randomk", output);
    const std::size_t bytes = max_compressed_bytes(output.numel, output.dtype);
    check_payload_size("randomk", input, bytes, output.numel);
    const std::size_t kept = bytes / sizeof(float);
    const auto value_at = [&](std::uint64_t j) {
      float value;
      std::memcpy(&value, input.data() + j * sizeof value, sizeof value);
      return value;
    };
    for (std::uint64_t j = 0; j < kept; ++j) {
      if (std::isnan(value_at(j))) return poison(output);
    }
    if (mode == WriteMode::kAssign && kept > 0) std::memset(output.data, 0, output.bytes());
    for_each_choice(static_cast<std::uint64_t>(output.numel), kept, key,
                    [&](std::uint64_t j, std::uint64_t chosen, std::uint64_t cell) {
                      const float scale = unbiased_ ? static_cast<float>(cell) : 1.0f;
                      const float value = value_at(j) * scale;
                      if (mode == WriteMode::kAssign) {
                        kernels::ref::store(output.dtype, output.data, chosen, value);
                      } else {
                        kernels::ref::accumulate(output.dtype, output.data, chosen, value);
                      }
                    });
  }

 private:
  double density_;
  bool unbiased_;
};

}  // namespace

CodecPtr make_randomk(const Spec& spec) {
  SpecReader read(spec);
  const double density = read.number("density", 0.01, 0, 1, true);
  const bool unbiased = read.flag("unbiased", false);
  read.finish();
  return std::make_shared<Randomk>(density, unbiased);
}

}  // namespace thinwire
