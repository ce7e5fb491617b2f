#include "thinwire/compressors/codecs/powersgd.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <vector>

#include "thinwire/common/error.h"
#include "thinwire/common/shape.h"
#include "thinwire/compressors/codecs/codec_checks.h"
#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/compressors/codecs/ecsq.h"
#include "thinwire/compressors/codecs/float_view.h"
#include "thinwire/compressors/kernels/low_rank.h"
#include "thinwire/compressors/kernels/low_rank_math.h"

namespace thinwire {
namespace {

struct FactorName {
  std::string_view name, codec;
};
constexpr std::array kFactorNames = {FactorName{"fp32", "identity"},
                                     FactorName{"bf16", "cast(bf16)"},
                                     FactorName{"int8", "quantize(bits=8, bucket=256, norm=linf)"},
                                     FactorName{"int4", "quantize(bits=4, bucket=256, norm=linf)"}};

struct Scratch {
  std::vector<float> matrix, p, q;
};
Scratch& scratch() {
  thread_local Scratch instance;
  return instance;
}

// Payload: the factors P and Q as their codec encodes them, or the tensor's own bytes where low
// rank does not pay.
class PowerSgd final : public Codec {
 public:
  explicit PowerSgd(PowerSgdOptions options)
      : options_(std::move(options)), factors_(factor_codec(options_.factors)) {}

  std::string spec() const override {
    return concat("powersgd(rank=", options_.rank, ", iterations=", options_.iterations,
                  ", factors=", options_.factors, ")");
  }

  CodecTraits traits() const override {
    // Not summable: every rank ends with another Q. The factors one by one are, see low_rank in
    // comm/average.
    return {.needs_error_feedback = true};
  }

  CodecFacts facts() const override {
    return {.id = CodecId::kPowerSgd,
            .form = CodecFacts::Form::kLowRank,
            .rank = options_.rank,
            .iterations = options_.iterations,
            .factors = factors_};
  }

  std::int64_t block_size() const override { return 0; }

  // Without the shape only this is known: factors are sent where they are smaller than the tensor
  // in float32; coded, no element of them takes more, but a payload of few can.
  std::size_t max_compressed_bytes(std::int64_t numel, DType dtype) const override {
    const std::size_t few =
        have_one_step(*factors_) ? 2 * factors_->max_compressed_bytes(1, DType::kFloat32) : 0;
    return static_cast<std::size_t>(numel) * size_of(dtype) + (numel > 0 ? few : 0);
  }

  std::size_t compress(ConstTensorView input, const RandomKey& key,
                       std::span<std::byte> output) const override {
    check_view("powersgd", input);
    check_on_cpu("powersgd", input);
    const LowRankShape shape = checked_shape(input.shape, input.numel, input.dtype);
    const std::size_t bytes = payload_bytes(shape, input.numel, input.dtype);
    check_output("powersgd", output, bytes);
    if (shape.rank == 0) {
      if (bytes > 0) std::memcpy(output.data(), input.data, bytes);
      return bytes;
    }
    Scratch& s = scratch();
    const auto m = as_floats(input, s.matrix);
    const auto rows = static_cast<std::size_t>(shape.rows);
    const auto cols = static_cast<std::size_t>(shape.cols);
    const auto r = static_cast<std::size_t>(shape.rank);
    s.p.resize(rows * r);
    s.q.resize(cols * r);
    init_factor(key, shape.cols, 0, shape.rank, s.q);
    for (int round = 0; round < options_.iterations; ++round) {
      // Orthonormal columns keep further rounds from drowning the smaller singular values.
      if (round > 0) kernels::orthogonalize(s.q.data(), cols, r);
      kernels::low_rank_multiply(m.data(), rows, cols, s.q.data(), r, s.p.data());
      // What the receiver will know of P.
      if (coded() && round + 1 == options_.iterations) decode(encode(s.p, key, output), s.p);
      kernels::orthogonalize(s.p.data(), rows, r);
      kernels::low_rank_multiply_transposed(m.data(), rows, cols, s.p.data(), r, s.q.data());
    }
    const std::size_t p_bytes = bytes_of(s.p.size());
    if (!coded()) encode(s.p, key, output);
    encode(s.q, key, output.subspan(p_bytes));
    return bytes;
  }

  void decompress(std::span<const std::byte> input, const RandomKey&, TensorView output,
                  WriteMode mode) const override {
    check_view("powersgd", output);
    check_on_cpu("powersgd", output);
    const LowRankShape shape = checked_shape(output.shape, output.numel, output.dtype);
    check_payload_size("powersgd", input, payload_bytes(shape, output.numel, output.dtype),
                       output.numel);
    if (shape.rank == 0) {
      if (mode == WriteMode::kAccumulate) {
        kernels::add_elements(output.dtype, output.data, input.data(),
                              static_cast<std::size_t>(output.numel));
      } else if (!input.empty()) {
        std::memcpy(output.data, input.data(), input.size());
      }
      return;
    }
    Scratch& s = scratch();
    const auto rows = static_cast<std::size_t>(shape.rows);
    const auto cols = static_cast<std::size_t>(shape.cols);
    const auto r = static_cast<std::size_t>(shape.rank);
    s.p.resize(rows * r);
    s.q.resize(cols * r);
    const std::size_t p_bytes = bytes_of(s.p.size());
    decode(input.first(p_bytes), s.p);
    decode(input.subspan(p_bytes), s.q);
    if (coded()) kernels::orthogonalize(s.p.data(), rows, r);
    const bool aligned = std::bit_cast<std::uintptr_t>(output.data) % alignof(float) == 0;
    if (output.dtype == DType::kFloat32 && aligned && mode == WriteMode::kAssign) {
      return kernels::low_rank_reconstruct(s.p.data(), s.q.data(), rows, cols, r,
                                           static_cast<float*>(output.data));
    }
    s.matrix.resize(rows * cols);
    kernels::low_rank_reconstruct(s.p.data(), s.q.data(), rows, cols, r, s.matrix.data());
    kernels::store_floats(output.dtype, output.data, 0, s.matrix.size(), s.matrix.data(), mode);
  }

 private:
  bool coded() const { return !factors_->traits().lossless; }

  std::size_t bytes_of(std::size_t numel) const {
    return factors_->max_compressed_bytes(static_cast<std::int64_t>(numel), DType::kFloat32);
  }

  std::span<const std::byte> encode(std::span<const float> factor, const RandomKey& key,
                                    std::span<std::byte> out) const {
    const auto room = out.first(bytes_of(factor.size()));
    factors_->compress(view_of(factor), key, room);
    return room;
  }

  void decode(std::span<const std::byte> in, std::span<float> factor) const {
    factors_->decompress(in, {}, view_of(factor), WriteMode::kAssign);
  }

  LowRankShape checked_shape(std::span<const std::int64_t> shape, std::int64_t numel,
                             DType dtype) const {
    check(shape.empty() || numel_of(shape) == numel, "powersgd: the tensor has ", numel,
          " elements, its shape ", numel_of(shape));
    return low_rank_shape(shape, dtype, options_.rank);
  }

  std::size_t payload_bytes(const LowRankShape& shape, std::int64_t numel, DType dtype) const {
    return shape.rank > 0 ? factor_bytes(shape, *factors_)
                          : static_cast<std::size_t>(numel) * size_of(dtype);
  }

  PowerSgdOptions options_;
  CodecPtr factors_;
};

}  // namespace

LowRankShape low_rank_shape(std::span<const std::int64_t> shape, DType dtype, int rank) {
  LowRankShape result;
  if (shape.size() < 2) return result;
  result.rows = shape[0];
  result.cols = numel_of(shape.subspan(1));
  result.rank = std::min({static_cast<std::int64_t>(rank), result.rows, result.cols});
  const auto dense = static_cast<std::uint64_t>(result.rows * result.cols) * size_of(dtype);
  if (static_cast<std::uint64_t>(result.factor_numel()) * sizeof(float) >= dense) result.rank = 0;
  return result;
}

CodecPtr factor_codec(std::string_view factors) {
  for (const FactorName& known : kFactorNames) {
    if (factors == known.name) return make_codec(known.codec);
  }
  const Spec spec = Spec::parse(factors);
  check(spec.name == "ecsq", "powersgd: factors are fp32, bf16, int8, int4 or ecsq(bits=F), got '",
        factors, "'");
  CodecPtr codec = make_ecsq(spec);
  check(codec->traits().fixed_size,
        "powersgd: factors follow a number of bits, as in ecsq(bits=3), got '", factors, "'");
  return codec;
}

const Codec& exact_factors() {
  static const CodecPtr kExact = factor_codec(PowerSgdOptions().factors);
  return *kExact;
}

std::size_t factor_bytes(const LowRankShape& shape, const Codec& factors) {
  return factors.max_compressed_bytes(shape.rows * shape.rank, DType::kFloat32) +
         factors.max_compressed_bytes(shape.cols * shape.rank, DType::kFloat32);
}

bool have_one_step(const Codec& factors) {
  return factors.facts().form == CodecFacts::Form::kSlots;
}

void init_factor(const RandomKey& key, std::int64_t cols, std::int64_t first, std::int64_t count,
                 std::span<float> q) {
  const PhiloxStream stream =
      PhiloxStream::of({.seed = key.seed, .step = key.step, .layer = key.layer});
  THINWIRE_ASSERT(q.size() == static_cast<std::size_t>(cols * count));
  const auto begin = static_cast<std::uint64_t>(first * cols);
  for (std::size_t i = 0; i < q.size(); ++i) q[i] = kernels::start_number(stream.block(begin + i));
}

void resize_factor(const RandomKey& key, std::int64_t cols, std::int64_t old_rank,
                   std::int64_t rank, std::vector<float>& q) {
  THINWIRE_ASSERT(q.size() == static_cast<std::size_t>(cols * old_rank));
  q.resize(static_cast<std::size_t>(cols * rank));
  for (std::int64_t c = 0; c < rank; ++c) {
    const auto column =
        std::span(q).subspan(static_cast<std::size_t>(c * cols), static_cast<std::size_t>(cols));
    const bool empty = std::all_of(column.begin(), column.end(), [](float x) { return x == 0; });
    if (c >= old_rank || empty) init_factor(key, cols, c, 1, column);
  }
}

PowerSgdOptions powersgd_options(const Spec& spec) {
  SpecReader read(spec);
  PowerSgdOptions options;
  options.rank = static_cast<int>(read.integer("rank", options.rank, 1, kMaxPowerSgdRank));
  options.iterations = static_cast<int>(read.integer("iterations", options.iterations, 1, 16));
  options.factors = read.text("factors", options.factors);
  read.finish();
  const CodecPtr codec = factor_codec(options.factors);
  if (have_one_step(*codec)) options.factors = codec->spec();
  return options;
}

CodecPtr make_powersgd(const Spec& spec) {
  return std::make_shared<PowerSgd>(powersgd_options(spec));
}

}  // namespace thinwire
