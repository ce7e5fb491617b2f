#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>

#include "thinwire/common/error.h"
#include "thinwire/compressors/codecs/codec_table.h"
#include "thinwire/compressors/codecs/index_coder.h"
#include "thinwire/compressors/codecs/sparse_values.h"
#include "thinwire/compressors/kernels/simd.h"
#include "thinwire/compressors/kernels/topk.h"
#include "thinwire/compressors/kernels/topk_ref.h"
#include "thinwire/tests/support/standard_normal.h"

namespace thinwire {
namespace {

void expect_reference(const std::vector<float>& x, std::size_t k, const char* what) {
  kernels::TopkSelection selection;
  const auto expected = kernels::ref::select_topk(x, k);
  for (const auto& target : kernels::simd_targets()) {
    kernels::set_simd_target(target);
    kernels::select_topk(x, k, selection);
    ASSERT_EQ(selection.indices, expected) << what << " " << x.size() << " " << k << " " << target;
    for (std::size_t j = 0; j < k; ++j) {
      const float kept = x[expected[j]];
      ASSERT_TRUE(selection.values[j] == kept || std::isnan(kept));
    }
  }
  kernels::set_simd_target("");
}

TEST(SelectTopk, EqualsTheSortOnEveryTarget) {
  for (const std::size_t n : {1, 2, 15, 16, 17, 1000, 4099}) {
    auto x = thinwire::testing::standard_normal(n, 1);
    for (const std::size_t k : {std::size_t{1}, (n + 9) / 10, (n + 1) / 2, n}) {
      expect_reference(x, k, "gaussian");
      expect_reference(std::vector<float>(n, -2.5f), k, "constant");
      auto ties = x;
      for (auto& value : ties) value = std::round(value);
      expect_reference(ties, k, "ties");
    }
    x[n / 2] = std::numeric_limits<float>::quiet_NaN();
    x[n - 1] = -std::numeric_limits<float>::infinity();
    expect_reference(x, (n + 1) / 2, "non-finite");
  }
}

// Large enough for the sampled threshold; the misleading tensors take the way back.
TEST(SelectTopk, SampleNeverChangesTheResult) {
  constexpr std::size_t kNumel = 8 * kernels::kTopkSample + 13;
  const auto x = thinwire::testing::standard_normal(kNumel, 2);
  for (const std::size_t k : {std::size_t{1}, kNumel / 100, kNumel / 2}) {
    expect_reference(x, k, "large");
  }
  std::vector<float> lumped(kNumel, 1e-3f);
  std::copy_n(x.begin(), kNumel / 300, lumped.begin() + 1000);
  expect_reference(lumped, kNumel / 50, "lumped");
  std::vector<float> zeros(kNumel, 0.0f);
  zeros[kNumel - 1] = 1;
  expect_reference(zeros, 100, "zeros");
}

TEST(SelectTopk, SampledStaysWithinItsBoundsAndKeepsTheLargest) {
  constexpr std::size_t kNumel = 300000;
  const auto x = thinwire::testing::standard_normal(kNumel, 3);
  kernels::TopkSelection selection;
  for (const std::size_t k : {std::size_t{1}, std::size_t{3000}, kNumel / 2}) {
    kernels::select_topk_sampled(x, k, PhiloxStream::of({.seed = 5}), selection);
    const std::size_t count = selection.indices.size();
    EXPECT_GE(count, (k + 1) / 2);
    EXPECT_LE(count, 2 * k);
    EXPECT_EQ(selection.indices, kernels::ref::select_topk(x, count));
  }
}

TEST(KeptCount, IsIntOfTheProductInDoublePrecision) {
  EXPECT_EQ(kept_count(0.01, 100), 1);
  EXPECT_EQ(kept_count(0.7, 10), 7);
  EXPECT_EQ(kept_count(0.29, 100), 28);  // as int(0.29 * 100)
  EXPECT_EQ(kept_count(1e-9, 100), 1);
  EXPECT_EQ(kept_count(1.0, 16777217), 16777217);
  EXPECT_EQ(kept_count(0.5, 0), 0);
}

void expect_index_round_trip(std::uint64_t n, const std::vector<std::uint32_t>& indices) {
  std::vector<std::byte> bytes(max_index_bytes(n, indices.size()));
  const std::size_t size = encode_indices(indices, n, bytes);
  ASSERT_LE(size, bytes.size());
  ASSERT_GE(size, min_index_bytes(indices.size()));
  bytes.resize(size);
  std::vector<std::uint32_t> decoded(indices.size());
  ASSERT_EQ(decode_indices(bytes, n, decoded), size);
  ASSERT_EQ(decoded, indices);
  for (std::size_t cut = 0; cut < size; cut += 1 + size / 50) {
    const std::vector<std::byte> part(bytes.begin(),
                                      bytes.begin() + static_cast<std::ptrdiff_t>(cut));
    EXPECT_THROW(decode_indices(part, n, decoded), FrameError) << cut << " of " << size;
  }
}

TEST(IndexCoder, RoundTripsWithinItsBoundAtEveryDensity) {
  std::mt19937 generator(1);
  for (const std::uint64_t n : {1u, 2u, 8u, 9u, 1000u, 65537u}) {
    for (const double density : {0.0, 0.001, 0.01, 0.1, 0.4, 0.9, 1.0}) {
      std::vector<std::uint32_t> indices;
      for (std::uint32_t i = 0; i < n; ++i) {
        if (std::bernoulli_distribution(density)(generator)) indices.push_back(i);
      }
      expect_index_round_trip(n, indices);
    }
    expect_index_round_trip(n, {static_cast<std::uint32_t>(n - 1)});
  }
  // One at either end of the largest index space, and a run.
  expect_index_round_trip(std::uint64_t{1} << 32, {0, 0xFFFFFFFFu});
  std::vector<std::uint32_t> run(500);
  std::iota(run.begin(), run.end(), 70000u);
  expect_index_round_trip(1 << 20, run);
}

TEST(IndexCoder, CostsNearTheEntropyAtOnePercent) {
  std::vector<std::uint32_t> indices;
  std::mt19937 generator(4);
  for (std::uint32_t i = 0; i < 1000000; ++i) {
    if (generator() % 100 == 0) indices.push_back(i);
  }
  std::vector<std::byte> bytes(max_index_bytes(1000000, indices.size()));
  const double bits = 8.0 * static_cast<double>(encode_indices(indices, 1000000, bytes));
  EXPECT_LT(bits / static_cast<double>(indices.size()), 8.2);  // H(0.01) / 0.01 = 8.08
}

TEST(IndexCoder, EliasFanoHasOneSizeAndIsReadBack) {
  std::mt19937 generator(5);
  for (const std::uint64_t n : {1, 2, 33, 1000, 40000}) {
    for (const std::uint64_t k : {std::uint64_t{1}, n / 100, n / 3, n - 1, n}) {
      if (k == 0) continue;
      std::vector<std::uint32_t> all(n), indices, read(k);
      std::iota(all.begin(), all.end(), 0u);
      std::sample(all.begin(), all.end(), std::back_inserter(indices), k, generator);
      std::vector<std::byte> bytes(elias_fano_bytes(n, k) + 1, std::byte{9});
      encode_elias_fano(indices, n, bytes);
      EXPECT_EQ(bytes.back(), std::byte{9});
      EXPECT_EQ(decode_indices(bytes, n, read), bytes.size() - 1) << n << " " << k;
      EXPECT_EQ(read, indices) << n << " " << k;
    }
  }
  // 8.56 bits an index and 1/16 for the directory.
  EXPECT_NEAR(8.0 * static_cast<double>(elias_fano_bytes(1 << 22, 41943)) / 41943, 8.72, 0.02);
}

TEST(IndexCoder, EveryBitOfEliasFanoCounts) {
  constexpr std::uint64_t kNumel = 700;
  const std::vector<std::uint32_t> indices = {0, 3, 4, 5, 90, 91, 300, 301, 302, 303, 640, 699};
  std::vector<std::byte> bytes(elias_fano_bytes(kNumel, indices.size()));
  encode_elias_fano(indices, kNumel, bytes);
  std::vector<std::uint32_t> read(indices.size());
  for (std::size_t bit = 8; bit < 8 * bytes.size(); ++bit) {
    auto damaged = bytes;
    damaged[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    bool refused = false;
    try {
      decode_indices(damaged, kNumel, read);
    } catch (const FrameError&) {
      refused = true;
    }
    EXPECT_TRUE(refused || read != indices) << "bit " << bit;
  }
  bytes.pop_back();
  EXPECT_THROW(decode_indices(bytes, kNumel, read), FrameError);
}

TEST(IndexCoder, RefusesWhatNoEncoderWrites) {
  const auto decode = [](std::vector<unsigned> raw, std::uint64_t n, std::size_t k) {
    std::vector<std::byte> bytes;
    for (const unsigned byte : raw) bytes.push_back(static_cast<std::byte>(byte));
    std::vector<std::uint32_t> indices(k);
    decode_indices(bytes, n, indices);
  };
  EXPECT_THROW(decode({}, 8, 1), FrameError);
  EXPECT_THROW(decode({100, 0xFF}, 8, 1), FrameError);       // unknown form
  EXPECT_THROW(decode({0, 0x01 | 0x80}, 8, 1), FrameError);  // padding
  EXPECT_THROW(decode({0, 0x00, 0x02}, 8, 1), FrameError);   // index 9 of 8
  EXPECT_THROW(decode({255, 0x0A}, 8, 2), FrameError);       // 2 then 1
  EXPECT_THROW(decode({255, 0x0F}, 5, 1), FrameError);       // 7 of 5
  EXPECT_THROW(decode({254, 0x03}, 8, 1), FrameError);       // two bits for one index
  EXPECT_THROW(decode({254, 0x00}, 8, 1), FrameError);       // none
  EXPECT_THROW(decode({254, 0x80}, 5, 1), FrameError);       // bit 7 of 5
  EXPECT_NO_THROW(decode({254, 0x10}, 5, 1));
}

TEST(Topk, KeepsExactlyTheCountAndNarrowValuesSaturate) {
  const auto codec = make_codec("topk(density=0.5, values=fp16)");
  const std::vector<float> x = {1e6f, -1e6f, 3, 0.5f};
  std::vector<float> y(4);
  std::vector<std::byte> payload(codec->max_compressed_bytes(4, DType::kFloat32));
  payload.resize(codec->compress(view_of(std::span(x)), {}, payload));
  codec->decompress(payload, {}, view_of(std::span(y)), WriteMode::kAssign);
  EXPECT_EQ(y, (std::vector<float>{65504, -65504, 0, 0}));
  EXPECT_THROW(make_codec("topk(density=0)"), InvalidArgument);
  EXPECT_THROW(make_codec("topk(density=1.5)"), InvalidArgument);
}

}  // namespace
}  // namespace thinwire
