// Speed of the codecs on one core, next to the read bandwidth of the same run.
//
// Built by the target bench_sparse_codecs. Times are the thread's processor time, so that a busy
// machine does not spoil them; it still shares its memory bandwidth, which is why every row has the
// read bandwidth of its own run.
//
// Every row reports `GB/s`, bytes of the uncompressed tensor a second, and codec rows `of_read`,
// that figure over the read bandwidth. Both are measured in turns, the codec's call right after a
// read of the same memory, and medians are compared: what else the machine does at that time meets
// both alike. powersgd's `over_products` is its time over that of its matrix products alone, and
// topk's `times_torch` the time of torch::topk over ours.
#include <ATen/ops/from_blob.h>
#include <ATen/ops/topk.h>
#include <benchmark/benchmark.h>

#include <algorithm>
#include <random>

#include "thinwire/common/error.h"
#include "thinwire/common/median.h"
#include "thinwire/common/thread_time.h"
#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/compressors/kernels/low_rank.h"

namespace thinwire {
namespace {

constexpr std::size_t kNumel = std::size_t{1} << 24;  // 64 MiB, more than the caches hold

// Gradients of deep networks are closer to a Laplace than to a normal distribution; neither speed
// nor ratio of any codec here depends on which.
const std::vector<float>& gradient() {
  static const std::vector<float> values = [] {
    std::mt19937 generator(1);
    std::normal_distribution<float> normal(0.0f, 1e-3f);
    std::vector<float> x(kNumel);
    for (auto& value : x) value = normal(generator);
    return x;
  }();
  return values;
}

double seconds_of(const auto& call) {
  const double start = thread_seconds();
  call();
  return thread_seconds() - start;
}

// Reads every cache line and folds it: as fast as one core takes data in.
void read_all(const float* data, std::size_t count) {
  constexpr std::size_t kWords = 64;
  using Line [[gnu::vector_size(64), gnu::aligned(4), gnu::may_alias]] = std::int32_t;
  Line a{}, b{}, c{}, d{};
  for (std::size_t i = 0; i + kWords <= count; i += kWords) {
    a |= *reinterpret_cast<const Line*>(data + i);
    b |= *reinterpret_cast<const Line*>(data + i + 16);
    c |= *reinterpret_cast<const Line*>(data + i + 32);
    d |= *reinterpret_cast<const Line*>(data + i + 48);
  }
  a |= b | c | d;
  benchmark::DoNotOptimize(a);
}

// Runs `call` in turns with a read of the tensor.
template <typename Call>
void against_reading(benchmark::State& state, const Call& call) {
  const auto& x = gradient();
  call();
  std::vector<double> calls, reads;
  for (auto _ : state) {
    reads.push_back(seconds_of([&] { read_all(x.data(), x.size()); }));
    calls.push_back(seconds_of(call));
    state.SetIterationTime(calls.back());
  }
  const double bytes = 4.0 * static_cast<double>(kNumel) * 1e-9;
  state.counters["GB/s"] = bytes / median(calls);
  state.counters["read_GB/s"] = bytes / median(reads);
  state.counters["of_read"] = median(reads) / median(calls);
}

void compress(benchmark::State& state, const char* spec) {
  const auto codec = make_codec(spec);
  const auto input = view_of(std::span(gradient()));
  std::vector<std::byte> payload(codec->max_compressed_bytes(input.numel, input.dtype));
  std::size_t bytes = 0;
  against_reading(state, [&] { bytes = codec->compress(input, {}, payload); });
  state.counters["ratio"] = 4.0 * static_cast<double>(kNumel) / static_cast<double>(bytes);
}

void decompress(benchmark::State& state, const char* spec) {
  const auto codec = make_codec(spec);
  const auto input = view_of(std::span(gradient()));
  std::vector<std::byte> payload(codec->max_compressed_bytes(input.numel, input.dtype));
  payload.resize(codec->compress(input, {}, payload));
  std::vector<float> output(kNumel);
  against_reading(state, [&] {
    codec->decompress(payload, {}, view_of(std::span(output)), WriteMode::kAssign);
  });
}

void topk_against_torch(benchmark::State& state) {
  const auto codec = make_codec("topk(density=0.01)");
  auto values = gradient();
  const auto input = view_of(std::span(std::as_const(values)));
  const auto tensor = at::from_blob(values.data(), {static_cast<std::int64_t>(kNumel)});
  std::vector<std::byte> payload(codec->max_compressed_bytes(input.numel, input.dtype));
  std::vector<double> ours, theirs;
  for (auto _ : state) {
    ours.push_back(seconds_of([&] { codec->compress(input, {}, payload); }));
    theirs.push_back(seconds_of([&] {
      benchmark::DoNotOptimize(at::topk(tensor.abs(), static_cast<std::int64_t>(kNumel / 100)));
    }));
    state.SetIterationTime(ours.back());
  }
  state.counters["times_torch"] = median(theirs) / median(ours);
}

// The three products of one round trip, and the codec that contains them.
void powersgd(benchmark::State& state) {
  constexpr std::int64_t kRows = 2896, kCols = 2896;
  constexpr std::size_t kRank = 4;
  const auto codec = make_codec("powersgd(rank=4)");
  const std::int64_t shape[] = {kRows, kCols};
  const ConstTensorView input{gradient().data(), kRows * kCols, DType::kFloat32, shape};
  std::vector<std::byte> payload(codec->max_compressed_bytes(input.numel, input.dtype));
  std::vector<float> output(static_cast<std::size_t>(input.numel));
  const TensorView view{output.data(), input.numel, DType::kFloat32, shape};
  std::vector<float> p(kRows * kRank, 0.01f), q(kCols * kRank, 0.01f);
  std::vector<double> whole, products;
  for (auto _ : state) {
    products.push_back(seconds_of([&] {
      const float* m = gradient().data();
      kernels::low_rank_multiply(m, kRows, kCols, q.data(), kRank, p.data());
      kernels::low_rank_multiply_transposed(m, kRows, kCols, p.data(), kRank, q.data());
      kernels::low_rank_reconstruct(p.data(), q.data(), kRows, kCols, kRank, output.data());
      std::fill(q.begin(), q.end(), 0.01f);
    }));
    whole.push_back(seconds_of([&] {
      const std::size_t bytes = codec->compress(input, {}, payload);
      codec->decompress(std::span(payload).first(bytes), {}, view, WriteMode::kAssign);
    }));
    state.SetIterationTime(whole.back());
  }
  state.counters["over_products"] = median(whole) / median(products);
  state.counters["GB/s"] = 4e-9 * static_cast<double>(input.numel) / median(whole);
}

constexpr const char* kSpecs[] = {
    "cast(bf16)",
    "cast(fp16)",
    "cast(fp8_e4m3)",
    "onebit",
    "terngrad",
    "topk(density=0.01)",
    "topk(density=0.01, select=sampled)",
    "randomk(density=0.01)",
    "ternary(density=0.01)",
};

void register_all() {
  const auto add = [](const std::string& name, auto&& run) {
    benchmark::RegisterBenchmark(name.c_str(), run)->UseManualTime()->Unit(benchmark::kMillisecond);
  };
  for (const char* spec : kSpecs) {
    add(concat("compress/", spec), [=](benchmark::State& state) { compress(state, spec); });
    add(concat("decompress/", spec), [=](benchmark::State& state) { decompress(state, spec); });
  }
  add("topk_against_torch", topk_against_torch);
  add("powersgd", powersgd);
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  thinwire::register_all();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
