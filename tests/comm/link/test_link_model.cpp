// The link model: the fit of its costs, its bytes, and its file.
#include "thinwire/comm/link/link_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "thinwire/common/error.h"

namespace thinwire::comm {
namespace {

using ::testing::HasSubstr;

std::vector<TimedCall> calls_of(const AlphaBeta& truth, int repeats) {
  std::vector<TimedCall> calls;
  for (double bytes = 1024; bytes <= 0x1p24; bytes *= 4) {
    for (int i = 0; i < repeats; ++i) calls.push_back({bytes, truth.predict(bytes)});
  }
  return calls;
}

class Fit : public ::testing::TestWithParam<AlphaBeta> {};

TEST_P(Fit, FindsWhatTheTimesWereMadeOf) {
  const AlphaBeta truth = GetParam();
  const AlphaBeta found = fit_alpha_beta(calls_of(truth, 5));
  EXPECT_NEAR(found.alpha, truth.alpha, 1e-6 * truth.alpha + 1e-12);
  EXPECT_NEAR(found.beta, truth.beta, 1e-6 * truth.beta + 1e-18);
}

TEST_P(Fit, DoesNotSeeCallsThatWereDisturbed) {
  const AlphaBeta truth = GetParam();
  auto calls = calls_of(truth, 5);
  // Two of five calls of every size take up to a hundred times as long, the others vary by 2 %.
  std::mt19937 engine(7);
  std::uniform_real_distribution<double> disturbed(2, 100), noise(0.98, 1.02);
  for (std::size_t i = 0; i < calls.size(); ++i) {
    calls[i].seconds *= i % 5 < 2 ? disturbed(engine) : noise(engine);
  }
  const AlphaBeta found = fit_alpha_beta(calls);
  EXPECT_NEAR(found.alpha, truth.alpha, 0.06 * truth.alpha);
  EXPECT_NEAR(found.beta, truth.beta, 0.06 * truth.beta);
}

// Loopback, 1 Gbit/s, 100 Mbit/s.
INSTANTIATE_TEST_SUITE_P(Networks, Fit,
                         ::testing::Values(AlphaBeta{2e-5, 3e-10}, AlphaBeta{1e-4, 8e-9},
                                           AlphaBeta{5e-4, 8e-8}));

TEST(FitAlphaBeta, IsNeverNegative) {
  // A line through these times has a negative alpha, and a negative beta.
  const AlphaBeta steep = fit_alpha_beta(std::vector<TimedCall>{{1, 1e-6}, {2, 3e-6}, {3, 5e-6}});
  EXPECT_EQ(steep.alpha, 0);
  EXPECT_GT(steep.beta, 0);
  const AlphaBeta falling = fit_alpha_beta(std::vector<TimedCall>{{1, 3e-6}, {1000, 2e-6}});
  EXPECT_GT(falling.alpha, 0);
  EXPECT_EQ(falling.beta, 0);
}

TEST(FitAlphaBeta, OfOneSizeIsAllBandwidthOrAllLatency) {
  EXPECT_EQ(fit_alpha_beta(std::vector<TimedCall>{{1000, 1e-3}}), (AlphaBeta{0, 1e-6}));
  EXPECT_EQ(fit_alpha_beta(std::vector<TimedCall>{{0, 1e-3}}), (AlphaBeta{1e-3, 0}));
}

TEST(FitAlphaBeta, RefusesWhatWasNotMeasured) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  EXPECT_THROW(fit_alpha_beta({}), InvalidArgument);
  for (const TimedCall call : {TimedCall{-1, 1}, TimedCall{1, 0}, TimedCall{1, -1},
                               TimedCall{kInfinity, 1}, TimedCall{1, std::nan("")}}) {
    EXPECT_THROW(fit_alpha_beta(std::span(&call, 1)), InvalidArgument) << call.bytes;
  }
}

TEST(SentBytes, AreThoseOfOneRank) {
  EXPECT_DOUBLE_EQ(sent_bytes(Collective::kAllReduce, 1000, 4), 1500);
  EXPECT_DOUBLE_EQ(sent_bytes(Collective::kAllToAll, 1000, 4), 750);
  EXPECT_DOUBLE_EQ(sent_bytes(Collective::kAllGather, 1000, 4), 3000);
  EXPECT_DOUBLE_EQ(sent_bytes(Collective::kBroadcast, 1000, 4), 1000);
  for (const Collective collective : kCollectives) EXPECT_EQ(sent_bytes(collective, 1000, 1), 0);
}

LinkModel sample() {
  LinkModel model;
  model.world = 2;
  model.hosts = {"n0", "n1"};
  BackendLink link;
  // Numbers that only the shortest exact decimals bring back.
  link.collectives = {AlphaBeta{0.1, 1.0 / 3}, AlphaBeta{1e-4, 8.1e-9}, AlphaBeta{0, 5e-324},
                      AlphaBeta{std::nextafter(1.0, 2.0), 0}};
  link.pairs = {{{0, 0}, {1.5e-5, 3e-10}}, {{2.5e-5, 4e-10}, {0, 0}}};
  model.backends = {{"gloo", link}, {"mpi", {}}};
  model.codecs = {{"topk(density=0.01)", {1e-10, 2e-10, 3e-10}}};
  return model;
}

TEST(LinkFile, IsReadAsItWasWritten) {
  const LinkModel model = sample();
  EXPECT_EQ(parse_link_model(to_json(model), "file"), model);
  EXPECT_EQ(model.host_count(), 2);
  EXPECT_EQ(model.codec("onebit"), nullptr);
}

TEST(LinkFile, BackendThatWasNotMeasured) {
  try {
    sample().backend("nccl");
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_THAT(error.what(), HasSubstr("'nccl', it has gloo, mpi"));
  }
}

struct Damage {
  std::string_view from, to, says;
};

class DamagedLinkFile : public ::testing::TestWithParam<Damage> {};

TEST_P(DamagedLinkFile, IsRefusedWithThePlace) {
  std::string text = to_json(sample());
  const auto at = text.find(GetParam().from);
  ASSERT_NE(at, std::string::npos);
  text.replace(at, GetParam().from.size(), GetParam().to);
  try {
    parse_link_model(text, "link.json");
    FAIL() << "accepted";
  } catch (const FileError& error) {
    EXPECT_THAT(error.what(), HasSubstr("link.json"));
    EXPECT_THAT(error.what(), HasSubstr(GetParam().says));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Damages, DamagedLinkFile,
    ::testing::Values(
        Damage{"thinwire.link", "thinwire.plan", "format: expected 'thinwire.link'"},
        Damage{"\"version\": 1", "\"version\": 2", "version: expected 1, found 2"},
        Damage{"\"world\": 2", "\"world\": 3", "hosts: expected the hosts of 3 ranks, found 2"},
        Damage{"\"world\": 2", "\"world\": 0", "world: expected 1 to 65536"},
        Damage{"\"world\": 2", "\"world\": 2.5", "world: expected a whole number"},
        Damage{"\"world\": 2", "\"word\": 2", "did you mean 'world'"},
        Damage{"\"gloo\"", "\"gluu\"", "backends: unknown field 'gluu'"},
        Damage{"\"all_to_all\"", "\"alltoall\"", "unknown field 'alltoall'"},
        Damage{"0.1", "-0.1", "backends.gloo.collectives.all_reduce.alpha"},
        Damage{"0.1", "\"fast\"", "expected a number, found string"},
        Damage{"0.1", "1e999", "link.json"},
        Damage{"\"alpha\": 0.1,", "", "field 'alpha' is missing"},
        Damage{"\"spec\": \"topk(density=0.01)\"", "\"spec\": \"topk(\"", "codecs[0].spec"},
        Damage{"\"codecs\": [", "\"codecs\": [7, ", "codecs[0]: expected an object"},
        Damage{"{", "", "not valid JSON"}));

TEST(LinkFile, MatrixOfAnotherSize) {
  LinkModel model = sample();
  model.backends["gloo"].pairs[1].pop_back();
  EXPECT_THROW(parse_link_model(to_json(model), "file"), FileError);
  model.backends["gloo"].pairs.pop_back();
  EXPECT_THROW(parse_link_model(to_json(model), "file"), FileError);
}

TEST(LinkFile, CutAnywhere) {
  const std::string text = to_json(sample());
  for (std::size_t size = 0; size + 2 < text.size(); ++size) {
    EXPECT_THROW(parse_link_model(std::string_view(text).substr(0, size), "file"), FileError);
  }
}

}  // namespace
}  // namespace thinwire::comm
