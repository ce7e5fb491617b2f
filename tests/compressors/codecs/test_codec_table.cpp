// The table, and what holds for each of the codecs that serve any tensor without a parameter.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "payloads.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

TEST(CodecTable, NamesAndIdsAreUnique) {
  std::set<std::string_view> seen;
  std::set<CodecId> ids;
  for (const auto& entry : codec_table()) {
    EXPECT_TRUE(seen.insert(entry.name).second) << entry.name;
    EXPECT_TRUE(ids.insert(entry.id).second) << entry.name;
    EXPECT_EQ(make_codec(entry.name)->facts().id, entry.id) << entry.name;
    EXPECT_FALSE(entry.summary.empty());
  }
  // Part of the frame format.
  const std::vector<std::string_view> names = {"identity", "cast",   "quantize", "topk",
                                               "randomk",  "onebit", "terngrad", "ternary",
                                               "powersgd", "ecsq",   "spectral"};
  for (std::size_t id = 0; id < names.size(); ++id) {
    EXPECT_EQ(static_cast<std::size_t>(codec_entry(names[id]).id), id) << names[id];
  }
}

// What a codec says of itself is what its spec says.
TEST(CodecTable, FactsAreTheParameters) {
  using Form = CodecFacts::Form;
  const auto facts = [](const char* spec) { return make_codec(spec)->facts(); };
  EXPECT_EQ(facts("quantize(bits=3)").bits, 3);
  EXPECT_EQ(facts("quantize").form, Form::kBlocks);
  EXPECT_EQ(facts("cast(bf16)").bits, std::nullopt);
  EXPECT_EQ(facts("topk(density=0.03)").density, 0.03);
  EXPECT_EQ(facts("topk(density=0.03)").form, Form::kSparse);
  EXPECT_EQ(facts("randomk(0.2)").density, 0.2);
  EXPECT_EQ(facts("randomk(0.2)").form, Form::kBlocks) << "its payload holds no indices";
  EXPECT_EQ(facts("ternary(density=0.1)").density, 0.1);
  EXPECT_EQ(facts("ternary(density=0.1)").form, Form::kSparse);
  EXPECT_EQ(facts("ternary(density=0.1)").alpha, std::nullopt);
  EXPECT_EQ(facts("ternary(density=0.1, scale=std, alpha=2.5)").alpha, 2.5);
  EXPECT_EQ(facts("onebit").density, std::nullopt);
  EXPECT_EQ(facts("powersgd(rank=7, iterations=3)").rank, 7);
  EXPECT_EQ(facts("powersgd(rank=7, iterations=3)").iterations, 3);
  EXPECT_EQ(facts("powersgd").form, Form::kLowRank);
  EXPECT_EQ(facts("powersgd").factors->spec(), "identity");
  EXPECT_EQ(facts("powersgd(factors=ecsq(bits=3))").factors->spec(), "ecsq(bits=3)");
  EXPECT_EQ(facts("ecsq").factors, nullptr);
  EXPECT_EQ(facts("spectral(directions=8, every=50)").directions, 8);
  EXPECT_EQ(facts("spectral(directions=8, every=50)").every, 50);
  EXPECT_EQ(facts("spectral").form, Form::kSlots);
  EXPECT_EQ(facts("ecsq").directions, 0);
}

TEST(CodecTable, AnotherDensityChangesNothingElse) {
  const auto at = [](const char* spec, double density) {
    return make_codec(spec)->with_density(density)->spec();
  };
  EXPECT_EQ(at("topk(density=0.01, select=sampled, values=bf16)", 0.25),
            "topk(density=0.25, select=sampled, values=bf16)");
  EXPECT_EQ(at("randomk(density=0.01, unbiased=on)", 0.5), "randomk(density=0.5, unbiased=on)");
  EXPECT_EQ(at("ternary(scale=std, alpha=2)", 0.5), "ternary(density=0.5, scale=std, alpha=2)");
  EXPECT_EQ(make_codec("onebit")->with_density(0.5), nullptr);
}

// Which codecs claim what: a claim that is dropped would take its tests along.
TEST(CodecTable, Claims) {
  const auto claiming = [](bool CodecTraits::*claim) {
    std::vector<std::string_view> names;
    for (const auto& entry : codec_table()) {
      if (make_codec(entry.name)->traits().*claim) names.push_back(entry.name);
    }
    return names;
  };
  using ::testing::ElementsAre;
  EXPECT_THAT(claiming(&CodecTraits::lossless), ElementsAre("identity"));
  EXPECT_THAT(claiming(&CodecTraits::summable), ElementsAre("identity", "randomk"));
  EXPECT_THAT(claiming(&CodecTraits::unbiased), ElementsAre("identity", "terngrad"));
  EXPECT_THAT(claiming(&CodecTraits::exact_on_constants),
              ElementsAre("identity", "quantize", "terngrad"));
  EXPECT_THAT(claiming(&CodecTraits::needs_error_feedback),
              ElementsAre("quantize", "topk", "randomk", "onebit", "ternary", "powersgd", "ecsq",
                          "spectral"));
}

TEST(CodecTable, OnlyFixedBlocksCanBeCut) {
  for (const char* spec : {"identity", "cast(bf16)", "quantize", "onebit", "terngrad"}) {
    EXPECT_TRUE(make_codec(spec)->can_be_cut()) << spec;
  }
  for (const char* spec : {"topk", "randomk", "ternary", "powersgd"}) {
    EXPECT_FALSE(make_codec(spec)->can_be_cut()) << spec;
  }
}

TEST(CodecTable, UnknownNameListsTheKnownAndTheNearest) {
  EXPECT_THAT([] { make_codec("quantise(bits=4)"); },
              ThrowsMessage<InvalidArgument>(AllOf(HasSubstr("quantise"), HasSubstr("identity"),
                                                   HasSubstr("did you mean 'quantize'"))));
  EXPECT_THROW(make_codec(""), InvalidArgument);
  EXPECT_THROW(make_codec("identity(bits=4)"), InvalidArgument);
}

class EveryCodec : public ::testing::TestWithParam<std::string> {};

TEST_P(EveryCodec, CanonicalSpecGivesTheSameCodec) {
  const auto codec = make_codec(GetParam());
  EXPECT_EQ(make_codec(codec->spec())->spec(), codec->spec());
}

TEST_P(EveryCodec, FillsExactlyWhatItReports) {
  const auto codec = make_codec(GetParam());
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const std::size_t size : {0, 1, 7, 8, 9, 1023, 1025}) {
      const testing::Tensor input(dtype, testing::normal_values(size, 41), 1);
      const std::size_t most = codec->max_compressed_bytes(static_cast<std::int64_t>(size), dtype);
      std::vector<std::byte> out(most + 16, std::byte{0x5A});
      const std::size_t written =
          codec->compress(input.view(), {.seed = 1}, std::span(out).first(most));
      if (codec->traits().fixed_size) {
        EXPECT_EQ(written, most);
      }
      ASSERT_LE(written, most);
      for (std::size_t i = most; i < out.size(); ++i) ASSERT_EQ(out[i], std::byte{0x5A});
      testing::Tensor decoded(dtype, size, 1);
      codec->decompress(std::span(out).first(written), {.seed = 1}, decoded.view(),
                        WriteMode::kAssign);
      if (codec->traits().lossless) {
        EXPECT_EQ(decoded.bytes(), input.bytes());
      }
    }
  }
}

TEST_P(EveryCodec, AccumulateAddsWhatAssignWrites) {
  const auto codec = make_codec(GetParam());
  const auto values = testing::normal_values(1100, 43);
  const auto before = testing::normal_values(1100, 44);
  const RandomKey key{.seed = 2};
  const auto payload = testing::compressed(*codec, view_of(std::span(values)), key);
  const auto assigned = testing::round_trip(*codec, values, key);
  auto sum = before;
  codec->decompress(payload, key, view_of(std::span(sum)), WriteMode::kAccumulate);
  for (std::size_t i = 0; i < sum.size(); ++i) ASSERT_EQ(sum[i], before[i] + assigned[i]) << i;
}

TEST_P(EveryCodec, NonFiniteElementsStayNonFinite) {
  const auto codec = make_codec(GetParam());
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    auto values = testing::normal_values(1500, 45);
    values[1234] = bad;
    EXPECT_FALSE(std::isfinite(testing::round_trip(*codec, values)[1234])) << bad;
  }
}

TEST_P(EveryCodec, AnyBytesEitherDecodeOrAreRefused) {
  const auto codec = make_codec(GetParam());
  std::mt19937 generator(47);
  for (int trial = 0; trial < 500; ++trial) {
    const std::size_t size = generator() % 700;
    std::vector<float> out(size);
    const std::size_t most =
        codec->max_compressed_bytes(static_cast<std::int64_t>(size), DType::kFloat32);
    std::vector<std::byte> payload(trial % 2 == 0 ? most : generator() % (most + 9));
    for (auto& byte : payload) byte = static_cast<std::byte>(generator());
    try {
      codec->decompress(payload, {}, view_of(std::span(out)), WriteMode::kAssign);
    } catch (const FrameError&) {
    }
  }
}

TEST_P(EveryCodec, RefusesBadViews) {
  const auto codec = make_codec(GetParam());
  std::vector<float> values(10);
  std::vector<std::byte> out(codec->max_compressed_bytes(10, DType::kFloat32));
  ASSERT_FALSE(out.empty());
  ConstTensorView view = view_of(std::span<const float>(values));
  EXPECT_THROW(codec->compress(view, {}, std::span(out).first(out.size() - 1)), InvalidArgument);
  view.data = nullptr;
  EXPECT_THROW(codec->compress(view, {}, out), InvalidArgument);
  view = view_of(std::span<const float>(values));
  view.numel = -1;
  EXPECT_THROW(codec->compress(view, {}, out), InvalidArgument);
}

INSTANTIATE_TEST_SUITE_P(All, EveryCodec, ::testing::Values("identity", "cast", "quantize"),
                         [](const auto& codec) { return codec.param; });

}  // namespace
}  // namespace thinwire
