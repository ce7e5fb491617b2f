// Codecs against the memory of the processor they run on: every row's `ratio` is its speed divided
// by that of a baseline measured just before, in the same process and with as much data.
//
//   compress    bytes of float32 read a second, against a plain read
//   decompress  bytes of float32 written a second, against a plain store
//
//   bench_codec_kernels [--benchmark_filter=quantize ...] [SPEC ...]
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <random>
#include <span>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "thinwire/compressors/codecs/codec_table.h"

namespace thinwire {
namespace {

constexpr std::size_t kElements = std::size_t{16} << 20;
constexpr std::size_t kBytes = kElements * sizeof(float);

// 64 MiB of float32 at the start of a page.
class Buffer {
 public:
  Buffer() : data_(new (kPage) std::byte[kBytes]) { std::memset(data_.get(), 1, kBytes); }
  std::span<float> floats() { return {reinterpret_cast<float*>(data_.get()), kElements}; }

 private:
  static constexpr std::align_val_t kPage{4096};
  struct Free {
    void operator()(std::byte* data) const { ::operator delete[](data, kPage); }
  };
  std::unique_ptr<std::byte[], Free> data_;
};

Buffer& source() {
  static Buffer buffer = [] {
    Buffer normal;
    std::mt19937 generator(1);
    std::normal_distribution<float> draw;
    std::vector<float> pool(1 << 16);
    for (float& value : pool) value = draw(generator);
    const auto out = normal.floats();
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = pool[(i * 7 + (i >> 16)) % pool.size()];
    return normal;
  }();
  return buffer;
}
Buffer& target() {
  static Buffer buffer;
  return buffer;
}

// The loops of the baselines are in GNU vectors, which the compiler splits to what it targets.
using Line = std::uint64_t __attribute__((vector_size(64), may_alias));
#if defined(__x86_64__)
#define THINWIRE_EVERY_TARGET __attribute__((noinline, target_clones("avx512f", "avx2", "default")))
#else
#define THINWIRE_EVERY_TARGET __attribute__((noinline))
#endif

THINWIRE_EVERY_TARGET void read_lines(const Line* in, std::size_t lines, Line* sum) {
  Line a{}, b{}, c{}, d{};
  for (std::size_t i = 0; i < lines; i += 4) {
    a ^= in[i];
    b ^= in[i + 1];
    c ^= in[i + 2];
    d ^= in[i + 3];
  }
  *sum = a ^ b ^ c ^ d;
}

THINWIRE_EVERY_TARGET void store_lines(Line* out, std::size_t lines) {
  const Line value = Line{} + 3;
  for (std::size_t i = 0; i < lines; ++i) out[i] = value;
}

void read_all() {
  Line sum;
  read_lines(reinterpret_cast<const Line*>(source().floats().data()), kBytes / sizeof(Line), &sum);
  benchmark::DoNotOptimize(sum);
}

void store_all() {
  store_lines(reinterpret_cast<Line*>(target().floats().data()), kBytes / sizeof(Line));
  benchmark::ClobberMemory();
}

void store_all_past_the_cache() {
#if defined(__x86_64__)
  auto* out = reinterpret_cast<__m128i*>(target().floats().data());
  const __m128i value = _mm_set1_epi32(3);
  for (std::size_t i = 0; i < kBytes / sizeof value; ++i) _mm_stream_si128(out + i, value);
  _mm_sfence();
#else
  store_all();
#endif
}

void copy_all() {
  std::memcpy(target().floats().data(), source().floats().data(), kBytes);
  benchmark::ClobberMemory();
}

double seconds(void (*run)()) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Runs `work` and, before each run, the baseline; `ratio` is the median of pairs, so that whatever
// else the machine does slows down both.
template <typename Work>
void measure(benchmark::State& state, void (*baseline)(), const Work& work) {
  std::vector<double> ratios;
  for (auto _ : state) {
    const double reference = seconds(baseline);
    const auto start = std::chrono::steady_clock::now();
    work();
    const double time =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    state.SetIterationTime(time);
    ratios.push_back(reference / time);
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * kBytes));
  if (!ratios.empty()) state.counters["ratio"] = median(ratios);
}

void compress(benchmark::State& state, const std::string& spec) {
  const CodecPtr codec = make_codec(spec);
  const ConstTensorView input = view_of(std::span<const float>(source().floats()));
  std::vector<std::byte> payload(codec->max_compressed_bytes(input.numel, input.dtype));
  std::size_t bytes = 0;
  measure(state, read_all, [&] { bytes = codec->compress(input, {.seed = 1}, payload); });
  state.counters["wire"] = static_cast<double>(bytes) / kBytes;
}

void decompress(benchmark::State& state, const std::string& spec) {
  const CodecPtr codec = make_codec(spec);
  const ConstTensorView input = view_of(std::span<const float>(source().floats()));
  std::vector<std::byte> payload(codec->max_compressed_bytes(input.numel, input.dtype));
  payload.resize(codec->compress(input, {.seed = 1}, payload));
  measure(state, store_all, [&] {
    codec->decompress(payload, {.seed = 1}, view_of(target().floats()), WriteMode::kAssign);
  });
}

void register_all(std::vector<std::string> specs) {
  if (specs.empty()) {
    specs = {"quantize(bits=4)", "quantize(bits=8)", "quantize(bits=4, bucket=128)",
             "quantize(bits=4, norm=l2)", "quantize(bits=4, rounding=stochastic)"};
    for (const CodecEntry& entry : codec_table()) {
      // A matrix codec: a flat view of this length is one row.
      if (entry.name != "quantize" && entry.name != "powersgd") specs.emplace_back(entry.name);
    }
  }
  std::vector<benchmark::internal::Benchmark*> rows;
  const auto add = [&](const std::string& name, void (*baseline)(), void (*work)()) {
    rows.push_back(benchmark::RegisterBenchmark(
        name.c_str(), [=](benchmark::State& state) { measure(state, baseline, work); }));
  };
  add("read", read_all, read_all);
  add("store", store_all, store_all);
  add("store past the cache", store_all, store_all_past_the_cache);
  add("copy", read_all, copy_all);
  for (const std::string& spec : specs) {
    make_codec(spec);  // an unknown name ends the program before anything is measured
    rows.push_back(benchmark::RegisterBenchmark(("compress " + spec).c_str(), compress, spec));
    rows.push_back(benchmark::RegisterBenchmark(("decompress " + spec).c_str(), decompress, spec));
  }
  for (auto* row : rows) row->UseManualTime()->Unit(benchmark::kMillisecond);
}

}  // namespace
}  // namespace thinwire

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  try {
    thinwire::register_all({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_codec_kernels: %s\n", error.what());
    return 2;
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
