// Size and speed of ComPEFT's ternary streams on one core, next to the read bandwidth of the same
// run, and cosines from bit planes against cosines from float32. Times are processor time of the
// thread, medians of turns. Usage: bench_peft [entries]
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <vector>

#include "thinwire/common/philox.h"
#include "thinwire/common/thread_time.h"
#include "thinwire/compressors/peft/container.h"
#include "thinwire/compressors/peft/select.h"

namespace {

using namespace thinwire;
using namespace thinwire::peft;

constexpr int kRepeats = 9;
volatile double sink;  // keeps results alive

// Median seconds of one call, after one that warms up.
template <typename Body>
double median_seconds(const Body& body) {
  body();
  std::array<double, kRepeats> seconds;
  for (double& s : seconds) {
    const double start = thread_seconds();
    body();
    s = thread_seconds() - start;
  }
  std::nth_element(seconds.begin(), seconds.begin() + kRepeats / 2, seconds.end());
  return seconds[kRepeats / 2];
}

TernaryPlanes random_planes(std::int64_t numel, double density, std::uint64_t seed) {
  TernaryPlanes planes(numel);
  const auto stream = PhiloxStream::of({.seed = seed});
  const auto limit = static_cast<std::uint32_t>(density * 0x1p31);
  for (std::int64_t i = 0; i < numel; ++i) {
    const std::uint32_t word = stream.word(static_cast<std::uint64_t>(i));
    if (word >> 1 < limit) planes.set(i, (word & 1) != 0 ? -1 : 1);
  }
  return planes;
}

using Lanes [[gnu::vector_size(64)]] = float;

Lanes lanes_at(const float* data) {
  Lanes lanes;
  std::memcpy(&lanes, data, sizeof(lanes));
  return lanes;
}

// As fast as one core takes data in: one addition for 64 bytes, four chains.
double read_all(const std::vector<float>& values) {
  Lanes sums[4] = {};
  for (std::size_t i = 0; i + 64 <= values.size(); i += 64)
    for (std::size_t j = 0; j < 4; ++j) sums[j] += lanes_at(values.data() + i + 16 * j);
  return sums[0][0] + sums[1][0] + sums[2][0] + sums[3][0];
}

// The dense cosine in one pass over both vectors, vectorised, in float32 sums.
double dense_cosine(const std::vector<float>& x, const std::vector<float>& y) {
  Lanes xy[2] = {}, xx[2] = {}, yy[2] = {};
  for (std::size_t i = 0; i + 32 <= x.size(); i += 32)
    for (std::size_t j = 0; j < 2; ++j) {
      const Lanes a = lanes_at(x.data() + i + 16 * j);
      const Lanes b = lanes_at(y.data() + i + 16 * j);
      xy[j] += a * b;
      xx[j] += a * a;
      yy[j] += b * b;
    }
  double sums[3] = {};
  for (std::size_t lane = 0; lane < 16; ++lane)
    for (std::size_t j = 0; j < 2; ++j) {
      sums[0] += xy[j][lane];
      sums[1] += xx[j][lane];
      sums[2] += yy[j][lane];
    }
  return sums[0] / std::sqrt(sums[1] * sums[2]);
}

// The usual dense cosine: a dot product and two norms, one pass over memory each.
double dense_cosine_in_passes(const std::vector<float>& x, const std::vector<float>& y) {
  const auto dot = [](const std::vector<float>& a, const std::vector<float>& b) {
    Lanes sums[4] = {};
    for (std::size_t i = 0; i + 64 <= a.size(); i += 64)
      for (std::size_t j = 0; j < 4; ++j)
        sums[j] += lanes_at(a.data() + i + 16 * j) * lanes_at(b.data() + i + 16 * j);
    double sum = 0;
    for (const Lanes& lanes : sums)
      for (std::size_t lane = 0; lane < 16; ++lane) sum += lanes[lane];
    return sum;
  };
  return dot(x, y) / std::sqrt(dot(x, x) * dot(y, y));
}

double bound_bits(double k) {
  return -k * std::log2(k) - (1 - k) * std::log2(1 - k) + k;
}

std::uint64_t file_bytes(const TernaryPlanes& planes) {
  Manifest manifest;
  manifest.numel = planes.numel();
  manifest.parts.push_back({"all", 1e-3f, planes.numel(), count_nonzero(planes.view())});
  manifest.tensors.push_back({{"weight", "F16", {planes.numel()}}});
  return packed_bytes(manifest, planes.view());
}

void measure_streams(std::int64_t numel, double read_rate) {
  std::printf("%6s %9s %8s %9s %9s %9s %10s %9s %10s\n", "k", "bits", "bound", "over", "x fp16",
              "encode", "of read", "decode", "of read");
  for (const double k : {0.01, 0.05, 0.10, 0.20, 0.30, 0.50}) {
    const TernaryPlanes planes = random_planes(numel, k, 1);
    std::vector<std::byte> bytes(max_stream_bytes(numel));
    std::size_t used = 0;
    const double encode = median_seconds([&] { used = encode_stream(planes.view(), bytes); });
    TernaryPlanes decoded(numel);
    const double decode = median_seconds([&] {
      decode_stream(std::span(bytes).first(used), numel, decoded.mask(), decoded.sign());
    });
    const auto n = static_cast<double>(numel);
    const auto size = static_cast<double>(file_bytes(planes));
    const double bits = 8 * size / n;
    // "of read": the float32 values that the entries stand for, over what a core reads.
    std::printf("%5.0f%% %9.4f %8.4f %8.2f%% %8.1fx %7.2fG/s %9.0f%% %7.2fG/s %9.0f%%\n", 100 * k,
                bits, bound_bits(k), 100 * (bits / bound_bits(k) - 1), 2 * n / size,
                1e-9 * n / encode, 100 * 4 * n / encode / read_rate, 1e-9 * n / decode,
                100 * 4 * n / decode / read_rate);
  }
}

// One block of 512 rows, half of them at 0.4 k and half at 1.6 k: by row and column, and as a
// stream.
void measure_contexts() {
  std::printf("%6s %12s %12s %9s %10s %10s\n", "k", "bytes", "as stream", "less", "encode",
              "decode");
  for (const double k : {0.01, 0.05, 0.20}) {
    const TernaryPlanes sparse = random_planes(kBlockEntries, 0.4 * k, 4);
    const TernaryPlanes dense = random_planes(kBlockEntries, 1.6 * k, 5);
    TernaryPlanes planes(kBlockEntries);
    for (std::int64_t i = 0; i < kBlockEntries; ++i)
      planes.set(i, (i % 2 != 0 ? dense : sparse).view().trit(i));
    const std::array<BlockRows, 1> rows = {{{kBlockEntries, 512, 0}}};
    std::vector<std::byte> bytes(max_block_bytes(kBlockEntries));
    const std::size_t plain = encode_block(planes.view(), bytes);
    std::size_t used = 0;
    const double encode = median_seconds(
        [&] { used = encode_block_as(BlockMode::kContexts, planes.view(), bytes, rows); });
    TernaryPlanes decoded(kBlockEntries);
    const double decode = median_seconds([&] {
      decode_block(std::span(bytes).first(used), kBlockEntries, decoded.mask(), decoded.sign(),
                   rows);
    });
    constexpr auto kEntries = static_cast<double>(kBlockEntries);
    std::printf("%5.0f%% %12zu %12zu %8.1f%% %7.1f ns %7.1f ns\n", 100 * k, used, plain,
                100 * (1 - static_cast<double>(used) / static_cast<double>(plain)),
                1e9 * encode / kEntries, 1e9 * decode / kEntries);
  }
}

void measure_cosine(std::int64_t numel) {
  const TernaryPlanes a = random_planes(numel, 0.2, 2), b = random_planes(numel, 0.2, 3);
  std::vector<float> x(static_cast<std::size_t>(numel)), y(x.size());
  expand(0.5f, 0, a.view(), 0, x);
  expand(0.5f, 0, b.view(), 0, y);
  const double dense = median_seconds([&] { sink = dense_cosine(x, y); });
  const double planes = median_seconds([&] { sink = cosine(a.view(), b.view()); });
  const double passes = median_seconds([&] { sink = dense_cosine_in_passes(x, y); });
  std::printf("%12lld %9.3f ms %9.3f ms %9.3f ms %8.1fx %8.1fx\n", static_cast<long long>(numel),
              1e3 * passes, 1e3 * dense, 1e3 * planes, passes / planes, dense / planes);
}

}  // namespace

int main(int argc, char** argv) {
  const std::int64_t numel = argc > 1 ? std::atoll(argv[1]) : std::int64_t{1} << 24;
  const std::vector<float> values(std::size_t{1} << 25, 1.0f);
  const double read_rate =
      4.0 * static_cast<double>(values.size()) / median_seconds([&] { sink = read_all(values); });
  std::printf(
      "%lld entries a vector; one core reads %.1f GB/s\n\nSize of a file, speed of its "
      "blocks (entries a second)\n",
      static_cast<long long>(numel), 1e-9 * read_rate);
  measure_streams(numel, read_rate);
  std::printf("\nA block coded by row and column, time of an entry\n");
  measure_contexts();
  std::printf(
      "\nCosine of two experts of 20 %%: float32 as a dot and two norms, in one fused pass, and "
      "bit planes\n%12s %12s %12s %12s %9s %9s\n",
      "entries", "3 passes", "fused", "planes", "x 3 pass", "x fused");
  for (const std::int64_t n : {numel / 16, numel / 4, numel}) measure_cosine(n);
  return 0;
}
