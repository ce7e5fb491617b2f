// What coding a message of rows costs, on one core: bench_rows [SPEC...]
//
// Rows with columns of unlike scales and means; nanoseconds an element of encoding and decoding,
// processor time, least of 20 turns. Spectral codecs have a basis.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>

#include <cstdio>
#include <string>
#include <vector>

#include "thinwire/moe/rows/row_codec.h"
#include "thinwire/moe/rows/row_moments.h"
#include "thinwire/tests/bench/least_seconds.h"

namespace {

using namespace thinwire;

constexpr int kTurns = 20;

at::Tensor rows_like_tokens(std::int64_t rows, std::int64_t dim) {
  auto generator = at::detail::createCPUGenerator(1);
  const at::Tensor scales = at::randn({dim}, generator).exp();
  const at::Tensor means = at::randn({dim}, generator).mul(scales).mul(0.5);
  return at::randn({rows, dim}, generator).mul(scales).add(means).contiguous();
}

void measure(const std::string& spec, const at::Tensor& rows) {
  moe::RowCodec codec(spec);
  if (const moe::SpectralOptions* options = codec.spectral()) {
    moe::RowMoments moments(rows.size(1));
    moments.add(rows);
    codec = codec.with_basis(
        moe::basis_of(moments.basis_message(*options, true), *options, rows.size(1)));
  }
  const std::vector<moe::RowSegment> segments = {{rows.size(0), {.seed = 1}}};
  at::Tensor message, decoded;
  const double encode = least_seconds(kTurns, [&] { message = codec.encode(rows, segments); });
  const double decode = least_seconds(
      kTurns, [&] { decoded = codec.decode(message, rows.size(1), at::kFloat, segments); });
  const auto numel = static_cast<double>(rows.numel());
  std::printf("%-38s %5lld x %-5lld %6.2f bits %7.2f ns %7.2f ns   error %.3f\n", spec.c_str(),
              static_cast<long long>(rows.size(0)), static_cast<long long>(rows.size(1)),
              8 * static_cast<double>(message.numel()) / numel, 1e9 * encode / numel,
              1e9 * decode / numel, (decoded.sub(rows).norm() / rows.norm()).item<double>());
}

}  // namespace

int main(int argc, char** argv) {
  at::set_num_threads(1);
  std::vector<std::string> specs(argv + 1, argv + argc);
  if (specs.empty()) {
    specs = {"quantize(bits=4)",
             "quantize(bits=3, rounding=stochastic)",
             "ecsq(bits=1.75)",
             "ecsq(bits=2.5)",
             "ecsq(bits=2.5, rounding=stochastic)",
             "spectral(bits=1.5, coding=entropy)"};
  }
  std::printf("%-38s %-13s %11s %10s %10s\n", "rows", "message", "", "encode", "decode");
  for (const auto& [rows, dim] : {std::pair{512, 128}, {512, 512}, {512, 1024}, {64, 512}}) {
    const at::Tensor values = rows_like_tokens(rows, dim);
    for (const std::string& spec : specs) measure(spec, values);
  }
  return 0;
}
