// Speed and size of the entropy coder on one core, next to Debian's htscodecs (rANS x32, order 0)
// and zstd's literals where they are installed, and the memory bandwidth of the same run. Codes are
// of values whose size varies from layer to layer, as those of gradients do. Times are processor
// time of the thread, the least of the turns; every decoded byte is compared. Usage:
// bench_entropy [elements]
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#ifdef THINWIRE_BENCH_HTSCODECS
#include <htscodecs/rANS_static4x16.h>
#endif
#ifdef THINWIRE_BENCH_ZSTD
#include <zstd.h>
#endif

#include "thinwire/common/philox.h"
#include "thinwire/compressors/entropy/rans.h"
#include "thinwire/compressors/entropy/rate_model.h"
#include "thinwire/compressors/entropy/step_coder.h"
#include "thinwire/compressors/kernels/simd.h"
#include "thinwire/tests/bench/least_seconds.h"

namespace {

using namespace thinwire;
using namespace thinwire::entropy;

constexpr int kTurns = 40;
constexpr std::size_t kLayers = 8;

// Two-sided exponential values, each layer half as large as the one before.
std::vector<float> gradient(std::size_t count) {
  const PhiloxStream stream = PhiloxStream::of({.seed = 5});
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    const float u = stream.uniform(i);
    const float size = -std::log1p(-std::abs(2 * u - 1));
    values[i] = std::ldexp(u < 0.5f ? -size : size, -static_cast<int>(i * kLayers / count));
  }
  return values;
}

using Counts = std::array<std::uint32_t, kMaxSymbols>;

double entropy_of(const Counts& counts) {
  double total = 0, bits = 0;
  for (const auto count : counts) total += count;
  for (const auto count : counts) {
    if (count > 0) bits -= count * std::log2(count / total);
  }
  return bits;
}

void line(const char* what, double bits, double encode, double decode) {
  std::printf("  %-26s %8.4f %10.2f %10.2f\n", what, bits, encode, decode);
}

[[noreturn]] void wrong(const char* what) {
  std::printf("%s does not decode to what was encoded\n", what);
  std::exit(1);
}

// Codes of one layer after another, each with a table of its own; counting included.
void run_coder(const std::vector<std::uint8_t>& codes, bool pairs) {
  const std::size_t count = codes.size();
  const std::size_t each = count / kLayers;
  std::vector<std::uint8_t> joined(count / 2), back(count);
  std::vector<std::byte> out(2 * count);
  std::vector<SymbolTable> tables;
  std::size_t bytes = 0;
  const auto layer = [&](std::size_t l) {
    return pairs ? std::span<std::uint8_t>(joined).subspan(l * each / 2, each / 2)
                 : std::span<std::uint8_t>(const_cast<std::uint8_t*>(codes.data()), count)
                       .subspan(l * each, each);
  };
  const int lanes = lanes_for(pairs ? count / 2 : count);
  const double encode = least_seconds(kTurns, [&] {
    if (pairs) join_pairs(codes, joined.data());
    tables.clear();
    for (std::size_t l = 0; l < kLayers; ++l) {
      tables.emplace_back(std::span<const std::uint8_t>(weights_of(count_symbols(layer(l)))));
    }
    RansEncoder encoder(out, lanes);
    for (std::size_t l = kLayers; l-- > 0;) encoder.encode(tables[l], layer(l));
    bytes = encoder.finish();
  });
  std::vector<std::uint8_t> symbols(each);
  const double decode = least_seconds(kTurns, [&] {
    RansDecoder decoder(std::span<const std::byte>(out).first(bytes), lanes);
    for (std::size_t l = 0; l < kLayers; ++l) {
      const auto target = std::span(back).subspan(l * each, each);
      if (pairs) {
        decoder.decode(tables[l], std::span(symbols).first(each / 2));
        split_pairs(symbols.data(), target);
      } else {
        decoder.decode(tables[l], target);
      }
    }
  });
  if (back != codes) wrong("the coder");
  const auto n = static_cast<double>(count);
  line(pairs ? "rans, pairs" : "rans", 8 * static_cast<double>(bytes) / n, n / encode / 1e9,
       n / decode / 1e9);
}

void run_values(std::span<const float> values, float step) {
  const std::size_t each = values.size() / kLayers;
  std::vector<std::span<const float>> parts;
  std::vector<std::size_t> sizes(kLayers, each);
  for (std::size_t l = 0; l < kLayers; ++l) parts.push_back(values.subspan(l * each, each));
  StepEncoder encoder;
  StepDecoder decoder;
  StepCodes codes;
  std::vector<std::byte> out(4 * values.size());
  std::vector<float> back(each);
  std::size_t bytes = 0;
  const double encode = least_seconds(kTurns, [&] {
    bytes = encoder.encode(parts, {.step = step, .rounding = 0.4f}, out, codes).bytes;
  });
  const double decode = least_seconds(kTurns, [&] {
    decoder.decode(std::span(out).first(bytes), sizes, codes);
    for (std::size_t l = 0; l < kLayers; ++l) codes.apply(l, Apply::kAssign, back);
  });
  const auto n = static_cast<double>(values.size());
  line("float32 to payload, back", 8 * static_cast<double>(bytes) / n, n / encode / 1e9,
       n / decode / 1e9);
}

// What other coders make of bytes that hold `per_byte` codes each, 1 MiB at a time.
template <typename Encode, typename Decode>
void run_other(const char* name, std::span<const std::uint8_t> in, double per_byte, Encode encode,
               Decode decode) {
  constexpr std::size_t kBlock = std::size_t{1} << 20;
  std::vector<std::uint8_t> out(2 * in.size() + 65536), back(in.size() + 64);
  std::vector<std::size_t> sizes;
  const double encode_seconds = least_seconds(kTurns, [&] {
    sizes.clear();
    std::size_t at = 0;
    for (std::size_t i = 0; i < in.size(); i += kBlock) {
      sizes.push_back(encode(in.subspan(i, std::min(kBlock, in.size() - i)), out.data() + at));
      at += sizes.back();
    }
  });
  const double decode_seconds = least_seconds(kTurns, [&] {
    std::size_t at = 0, i = 0;
    for (const std::size_t size : sizes) {
      const std::size_t count = std::min(kBlock, in.size() - i);
      decode(out.data() + at, size, back.data() + i, count);
      at += size;
      i += count;
    }
  });
  if (!std::ranges::equal(in, std::span(back).first(in.size()))) wrong(name);
  std::size_t bytes = 0;
  for (const std::size_t size : sizes) bytes += size;
  const double n = per_byte * static_cast<double>(in.size());
  line(name, 8 * static_cast<double>(bytes) / n, n / encode_seconds / 1e9,
       n / decode_seconds / 1e9);
}

void run_others([[maybe_unused]] std::span<const std::uint8_t> packed,
                [[maybe_unused]] double per_byte) {
#ifdef THINWIRE_BENCH_HTSCODECS
  run_other(
      "htscodecs rANS x32", packed, per_byte,
      [](std::span<const std::uint8_t> in, std::uint8_t* out) {
        auto size = rans_compress_bound_4x16(static_cast<unsigned>(in.size()), RANS_ORDER_X32);
        rans_compress_to_4x16(const_cast<std::uint8_t*>(in.data()),
                              static_cast<unsigned>(in.size()), out, &size, RANS_ORDER_X32);
        return static_cast<std::size_t>(size);
      },
      [](std::uint8_t* in, std::size_t size, std::uint8_t* out, std::size_t count) {
        auto found = static_cast<unsigned>(count);
        rans_uncompress_to_4x16(in, static_cast<unsigned>(size), out, &found);
      });
#endif
#ifdef THINWIRE_BENCH_ZSTD
  static ZSTD_CCtx* const context = ZSTD_createCCtx();
  // Matches of seven bytes in a table of 64: none, so that all of it is literals.
  ZSTD_CCtx_setParameter(context, ZSTD_c_strategy, ZSTD_fast);
  ZSTD_CCtx_setParameter(context, ZSTD_c_hashLog, 6);
  ZSTD_CCtx_setParameter(context, ZSTD_c_minMatch, 7);
  run_other(
      "zstd literals", packed, per_byte,
      [](std::span<const std::uint8_t> in, std::uint8_t* out) {
        return ZSTD_compress2(context, out, ZSTD_compressBound(in.size()), in.data(), in.size());
      },
      [](std::uint8_t* in, std::size_t size, std::uint8_t* out, std::size_t count) {
        ZSTD_decompress(out, count, in, size);
      });
#endif
}

void run(std::span<const float> values, double bits) {
  // One step for all layers; the layers' tables follow their sizes.
  const std::size_t each = values.size() / kLayers;
  std::vector<MagnitudeCounts> classes;
  for (std::size_t l = 0; l < kLayers; ++l) classes.emplace_back(values.subspan(l * each, each));
  const float step = step_for_bits(classes, bits * static_cast<double>(values.size()), 0.4);
  std::vector<std::uint8_t> codes(values.size());
  std::vector<std::uint32_t> excess(values.size() + 16);
  const bool pairs = bits < 1;
  QuantisedSums sums;
  for (std::size_t l = 0; l < kLayers; ++l) {
    quantise(values.subspan(l * each, each),
             {.inverse_step = 1 / step, .rounding = 0.4f, .bound = pairs ? 2 : 15},
             codes.data() + l * each, excess.data(), sums);
  }
  double entropy = 0;
  for (std::size_t l = 0; l < kLayers; ++l) {
    entropy += entropy_of(count_symbols(std::span(codes).subspan(l * each, each)));
  }
  std::printf("order-0 entropy of the layers' codes %.4f bits an element\n",
              entropy / static_cast<double>(values.size()));
  run_coder(codes, false);
  if (pairs) run_coder(codes, true);
  run_values(values, step);
  // Pairs of four-bit codes, or four two-bit codes, a byte.
  const std::size_t per_byte = pairs ? 4 : 2;
  std::vector<std::uint8_t> packed(values.size() / per_byte);
  for (std::size_t i = 0; i < packed.size(); ++i) {
    for (std::size_t k = 0; k < per_byte; ++k) {
      const int most = pairs ? 3 : 15;
      const int code = std::min<int>(codes[i * per_byte + k], most);
      packed[i] = static_cast<std::uint8_t>(packed[i] | code << (8 / per_byte * k));
    }
  }
  run_others(packed, static_cast<double>(per_byte));
}

}  // namespace

int main(int argc, char** argv) {
  const std::size_t count =
      (argc > 1 ? std::strtoull(argv[1], nullptr, 10) : std::size_t{1} << 22) / 1024 * 1024;
  const std::vector<float> values = gradient(count);
  std::vector<float> copy(count);
  const double seconds =
      least_seconds(kTurns, [&] { std::memcpy(copy.data(), values.data(), 4 * count); });
  std::printf("%zu elements on %s; copying float32: %.2f G elements/s, %.1f GB/s both ways\n",
              count, kernels::simd_target().c_str(), static_cast<double>(count) / seconds / 1e9,
              8 * static_cast<double>(count) / seconds / 1e9);
  std::printf("  %-26s %8s %10s %10s\n", "", "bits", "encode", "decode");
  std::printf("  %-26s %8s %21s\n", "", "/element", "G elements/s");
  for (const double bits : {0.1, 0.5, 1.0, 2.0, 2.5, 3.0}) run(values, bits);
  return 0;
}
