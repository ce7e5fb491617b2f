#include <cmath>
#include <nlohmann/json.hpp>

#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/launch/cli/bench/check.h"
#include "thinwire/launch/cli/bench/commands.h"
#include "thinwire/launch/cli/bench/data.h"

namespace thinwire::launch {
namespace {

// Payload, reconstruction and decoded values of one codec and size.
class CodecRun {
 public:
  CodecRun(const Codec& codec, std::vector<std::int64_t> shape, int rank)
      : codec_(codec),
        shape_(std::move(shape)),
        values_(static_cast<std::size_t>(c10::multiply_integers(shape_))),
        decoded_(values_.size()),
        payload_(codec.max_compressed_bytes(numel(), DType::kFloat32)),
        key_{.seed = 1, .layer = 1, .rank = static_cast<std::uint32_t>(rank)} {
    fill_bench_values(rank, std::max<std::int64_t>(square_side(numel()), 1), 0, values_);
  }

  std::int64_t numel() const { return static_cast<std::int64_t>(values_.size()); }
  std::int64_t payload_bytes() const { return static_cast<std::int64_t>(size_); }
  void compress() { size_ = codec_.compress(input(), key_, payload_); }
  void decompress(WriteMode mode = WriteMode::kAssign) {
    codec_.decompress(std::span(payload_).first(size_), key_, view(decoded_), mode);
  }

  // Decoding gives what encoding says it will, and adding to zeros gives the same.
  CheckedResult check() {
    std::vector<float> promised(values_.size());
    std::vector<std::byte> other(payload_.size());
    compress();
    const std::size_t bytes = codec_.compress_and_reconstruct(input(), key_, other, view(promised));
    decompress();
    Reference reference{.exact = {values_.begin(), values_.end()},
                        .expected = codec_.traits().lossless ? values_ : promised,
                        .random = false,
                        .limit = 0,
                        .payload_bytes = size_};
    CheckedResult result = compare(decoded_, reference);
    if (!std::ranges::equal(std::span(payload_).first(size_), std::span(other).first(bytes))) {
      result.problem = "encoding with a reconstruction gives other bytes";
    }
    std::ranges::fill(decoded_, 0.0f);
    decompress(WriteMode::kAccumulate);
    const CheckedResult added = compare(decoded_, reference);
    if (result.problem.empty()) result.problem = added.problem;
    return result;
  }

 private:
  ConstTensorView input() const {
    ConstTensorView view = view_of(std::span<const float>(values_));
    view.shape = shape_;
    return view;
  }
  TensorView view(std::vector<float>& values) const {
    TensorView view = view_of(std::span<float>(values));
    view.shape = shape_;
    return view;
  }

  const Codec& codec_;
  std::vector<std::int64_t> shape_;
  std::vector<float> values_, decoded_;
  std::vector<std::byte> payload_;
  std::size_t size_ = 0;
  RandomKey key_;
};

void measure(const BenchGroup& group, const BenchOptions& options, const Spec& spec,
             std::int64_t bytes, BenchTable& table, std::vector<BenchRow>& rows) {
  const CodecPtr codec = make_codec(spec);
  const std::int64_t side = square_side(bytes / 4);
  CodecRun run(*codec,
               spec.name == "powersgd" ? std::vector<std::int64_t>{side, side}
                                       : std::vector<std::int64_t>{bytes / 4},
               group.world().rank());
  CheckedResult checked;
  for (int i = 0; i < options.check; ++i) checked = run.check();
  run.compress();
  for (const char* direction : {"compress", "decompress"}) {
    const bool encodes = std::string_view(direction) == "compress";
    BenchRow row{.collective = direction,
                 .size = run.numel() * 4,
                 .count = run.numel(),
                 .dtype = "float32",
                 .codec = spec.name == "identity" ? "none" : spec.str(),
                 .strategy = direction,
                 .wire_bytes = run.payload_bytes(),
                 .dense_bytes = run.numel() * 4,
                 .times = RunTimes(group.time_runs(
                     options, [] {},
                     [&] {
                       if (encodes) {
                         run.compress();
                       } else {
                         run.decompress();
                       }
                     })),
                 .rel_err = {},
                 .problem = group.tell_all(checked.problem)};
    if (options.check > 0) row.rel_err = checked.rel_err;
    if (group.first()) table.add(row);
    rows.push_back(std::move(row));
  }
}

}  // namespace

std::vector<BenchRow> bench_codec(const BenchGroup& group, const BenchOptions& options,
                                  BenchTable& table) {
  const auto sizes = options.sizes();
  if (group.first()) table.header();
  std::vector<BenchRow> rows;
  for (const std::int64_t bytes : sizes) {
    measure(group, options, Spec::parse("identity"), bytes, table, rows);
    for (const Spec& spec : options.codecs) measure(group, options, spec, bytes, table, rows);
  }
  return rows;
}

}  // namespace thinwire::launch
