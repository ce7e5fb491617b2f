// What goes over the wire: bytes against telemetry, row codecs, errors that reach every rank, and
// checkpoints.

#include <gtest/gtest.h>

#include <mutex>
#include <set>

#include "thinwire/common/error.h"
#include "thinwire/moe/layer/moe_layer.h"
#include "thinwire/tests/moe/observed_group.h"
#include "thinwire/tests/support/error_of.h"
#include "thinwire/tests/support/rank_threads.h"

namespace thinwire::moe {
namespace {

using thinwire::testing::RankContext;
using thinwire::testing::run_ranks;

constexpr std::int64_t kDim = 8;

MoEOptions small_options() {
  MoEOptions options;
  options.router = {.dim = kDim, .experts = 5, .top_k = 2};
  options.hidden = 4;
  return options;
}

at::Tensor tokens_of(int rank, std::int64_t count) {
  auto generator = at::detail::createCPUGenerator(static_cast<std::uint64_t>(40 + rank));
  return at::randn({count, kDim}, generator);
}

// What passes through a group of its own.
struct Traffic {
  std::int64_t bytes = 0;           // payload that leaves this rank
  std::vector<std::int64_t> calls;  // of every collective
};

// The ranks of `context`, their traffic counted.
c10::intrusive_ptr<c10d::ProcessGroup> counted_group(const RankContext& context, Traffic* traffic) {
  return testing::observed_group(context.group, [=](const std::string&, std::int64_t bytes) {
    traffic->bytes += bytes;
    traffic->calls.push_back(bytes);
  });
}

TEST(Wire, TelemetryIsWhatTheBackendSends) {
  for (const char* codec :
       {"", "cast(bf16)", "quantize(bits=4)", "ecsq(bits=4)",
        "spectral(bits=4, refresh=2, drift=1e30)",
        "spectral(bits=4, refresh=2, drift=1e30, start=ecsq(bits=6), coding=entropy)"}) {
    for (const char* dedup : {"off", "lsh(hashes=2, radius=1)"}) {
      MoEOptions options = small_options();
      options.share_rows = std::string(dedup) != "off";
      options.rows = {codec, codec, codec, codec};
      options.dedup = parse_dedup(dedup);
      run_ranks(3, [&](RankContext& context) {
        Traffic traffic;
        const std::int64_t& bytes = traffic.bytes;
        MoELayer layer(options, counted_group(context, &traffic));
        for (int step = 0; step < 6; ++step) {  // in a basis from the fifth on
          const std::int64_t before = bytes;
          const MoEOutput result =
              layer.forward(tokens_of(context.rank, 10 + context.rank).requires_grad_());
          EXPECT_EQ(result.counters.wire.total(), bytes - before);
          result.output.sum().backward();
          EXPECT_EQ(layer.wire_bytes().total(), bytes);
        }
        const LegBytes wire = layer.wire_bytes();
        EXPECT_EQ(layer.summary().wire.total(), bytes);
        EXPECT_GT(wire.rows[static_cast<int>(Leg::kDispatch)], 0);
        // One codec on all legs: what is sent for a row on the way out comes back for its gradient.
        // Shared rows go out once, but come back for every expert.
        if (options.share_rows) {
          EXPECT_LE(wire.rows[static_cast<int>(Leg::kDispatch)],
                    wire.rows[static_cast<int>(Leg::kCombineBackward)]);
        } else {
          EXPECT_EQ(wire.rows[static_cast<int>(Leg::kDispatch)],
                    wire.rows[static_cast<int>(Leg::kCombineBackward)]);
        }
        EXPECT_EQ(wire.bases > 0, options.rows.dispatch.starts_with("spectral"));
      });
    }
  }
}

// One control collective before the rows, of the same few bytes to each rank however many experts
// there are and however rows are shared; then dispatch and combine, and their gradients.
TEST(Wire, OneSmallCollectiveBeforeTheRows) {
  for (const int ranks : {2, 4}) {
    for (const std::int64_t experts : {4, 200}) {
      for (const bool share : {true, false}) {
        run_ranks(ranks, [&](RankContext& context) {
          MoEOptions options = small_options();
          options.router.experts = experts;
          options.share_rows = share;
          options.chunks = 1;
          Traffic traffic;
          MoELayer layer(options, counted_group(context, &traffic));
          const at::Tensor output =
              layer.forward(tokens_of(context.rank, 10).requires_grad_()).output;
          ASSERT_EQ(traffic.calls.size(), 3u);
          EXPECT_EQ(traffic.calls[0], 80 * (ranks - 1));
          output.sum().backward();
          EXPECT_EQ(traffic.calls.size(), 5u);
        });
      }
    }
  }
}

// What tells of a failure is sent, too.
TEST(Wire, ReasonsOfFailuresAreCounted) {
  run_ranks(3, [](RankContext& context) {
    Traffic traffic;
    MoELayer layer(small_options(), counted_group(context, &traffic));
    const at::Tensor good = tokens_of(context.rank, 4);
    EXPECT_THROW(layer.forward(context.rank == 1 ? good.narrow(1, 0, 5) : good), InvalidArgument);
    ASSERT_EQ(traffic.calls.size(), 2u);
    EXPECT_EQ(layer.wire_bytes().total(), traffic.bytes);
  });
}

TEST(RowCodec, RowsAreCodedOneByOne) {
  const RowCodec codec("quantize(bits=8)");
  const at::Tensor rows = tokens_of(0, 7);
  const at::Tensor bytes = codec.encode(rows, RandomKey{});
  EXPECT_EQ(bytes.sizes(), at::IntArrayRef({7, codec.row_bytes(kDim, at::kFloat)}));
  const at::Tensor decoded = codec.decode(bytes, kDim, at::kFloat, {{7, {}}});
  for (std::int64_t i = 0; i < 7; ++i) {
    const at::Tensor one =
        codec.decode(codec.encode(rows.narrow(0, i, 1), RandomKey{}), kDim, at::kFloat, {{1, {}}});
    EXPECT_TRUE(at::equal(one[0], decoded[i]));
    const double step = (rows[i].max() - rows[i].min()).item<double>() / 255;
    EXPECT_LE((rows[i] - decoded[i]).abs().max().item<double>(), 0.51 * step);
  }
  const at::Tensor constant = at::full({2, kDim}, 3.25f);
  EXPECT_TRUE(at::equal(
      codec.decode(codec.encode(constant, RandomKey{}), kDim, at::kFloat, {{2, {}}}), constant));
  EXPECT_THROW(RowCodec("quantise(bits=8)"), InvalidArgument);
}

TEST(RowCodec, EveryLegHasItsOwnSpec) {
  // A coarse codec on one leg changes the outputs (forward legs) or only the gradients.
  const auto run = [](const LegSpecs& rows) {
    MoEOptions options = small_options();
    options.rows = rows;
    MoELayer layer(options, {});
    const at::Tensor x = tokens_of(0, 12).requires_grad_();
    const at::Tensor output = layer.forward(x).output;
    output.square().sum().backward();
    return std::tuple(output.detach(), x.grad(), layer.expert_parameters()[0].grad());
  };
  const auto [output, gradient, weights] = run({});
  const auto [output_1, gradient_1, weights_1] = run({.dispatch = "quantize(bits=3)"});
  EXPECT_FALSE(at::equal(output, output_1));
  const auto [output_2, gradient_2, weights_2] = run({.combine = "quantize(bits=3)"});
  EXPECT_FALSE(at::equal(output, output_2));
  const auto [output_3, gradient_3, weights_3] = run({.combine_backward = "quantize(bits=3)"});
  EXPECT_TRUE(at::equal(output, output_3));
  EXPECT_FALSE(at::equal(gradient, gradient_3));
  EXPECT_FALSE(at::equal(weights, weights_3));
  const auto [output_4, gradient_4, weights_4] = run({.dispatch_backward = "quantize(bits=3)"});
  EXPECT_TRUE(at::equal(output, output_4));
  EXPECT_FALSE(at::equal(gradient, gradient_4));
  EXPECT_TRUE(at::equal(weights, weights_4));
}

// Runs `body` on two ranks and returns the messages of the InvalidArgument that each must throw.
std::set<std::string> messages(const std::function<void(RankContext&)>& body) {
  std::mutex mutex;
  std::set<std::string> texts;
  int thrown = 0;
  run_ranks(2, [&](RankContext& context) {
    try {
      body(context);
    } catch (const InvalidArgument& error) {
      const std::lock_guard lock(mutex);
      texts.insert(error.what());
      ++thrown;
    }
  });
  EXPECT_EQ(thrown, 2);
  return texts;
}

void expect_one_message(const std::set<std::string>& texts, const std::string& part) {
  ASSERT_EQ(texts.size(), 1u);
  EXPECT_NE(texts.begin()->find(part), std::string::npos) << *texts.begin();
}

TEST(Errors, AWrongShapeOnOneRankReachesAllAndTheGroupLivesOn) {
  expect_one_message(messages([](RankContext& context) {
                       MoELayer layer(small_options(), context.group);
                       const at::Tensor good = tokens_of(context.rank, 4);
                       try {
                         layer.forward(context.rank == 1 ? good.narrow(1, 0, 5) : good);
                       } catch (const InvalidArgument&) {
                         EXPECT_EQ(layer.forward(good).output.size(0), 4);
                         throw;
                       }
                     }),
                     "rank 1 of the expert exchange: tokens of shape [..., 8] expected");
}

TEST(Errors, DifferentOptionsAreNamed) {
  expect_one_message(messages([](RankContext& context) {
                       MoEOptions options = small_options();
                       if (context.rank == 1) options.router.experts = 60;
                       MoELayer layer(options, context.group);
                       layer.forward(tokens_of(context.rank, 4));
                     }),
                     "experts 60");
  expect_one_message(messages([](RankContext& context) {
                       MoEOptions options = small_options();
                       if (context.rank == 1) options.rows.combine = "cast(bf16)";
                       MoELayer layer(options, context.group);
                       layer.forward(tokens_of(context.rank, 4));
                     }),
                     "combine");
  expect_one_message(messages([](RankContext& context) {
                       MoEOptions options = small_options();
                       if (context.rank == 1) options.dedup = parse_dedup("lsh");
                       MoELayer layer(options, context.group);
                       layer.forward(tokens_of(context.rank, 4));
                     }),
                     "dedup");
  expect_one_message(messages([](RankContext& context) {
                       MoEOptions options = small_options();
                       if (context.rank == 1) options.activation = Activation::kRelu;
                       MoELayer layer(options, context.group);
                       layer.forward(tokens_of(context.rank, 4));
                     }),
                     "activation relu");
}

TEST(Errors, DifferentTypesModesAndOrdersAreNamed) {
  expect_one_message(messages([](RankContext& context) {
                       MoELayer layer(small_options(), context.group);
                       const auto type = context.rank == 0 ? at::kFloat : at::kBFloat16;
                       layer.to(type);
                       layer.forward(tokens_of(context.rank, 4).to(type));
                     }),
                     "BFloat16 on rank 1");
  expect_one_message(messages([](RankContext& context) {
                       MoELayer layer(small_options(), context.group);
                       const at::AutoGradMode mode(context.rank == 0);
                       layer.forward(tokens_of(context.rank, 4));
                     }),
                     "whether gradients are recorded");
  expect_one_message(messages([](RankContext& context) {
                       MoEOptions options = small_options();
                       MoELayer first(options, context.group);
                       options.layer = 1;
                       MoELayer second(options, context.group);
                       (context.rank == 0 ? first : second).forward(tokens_of(context.rank, 4));
                     }),
                     "layer 1");
}

class FailingExpert : public Expert {
 public:
  FailingExpert() : Expert("FailingExpert") {}
  at::Tensor forward(const at::Tensor&) override { throw InvalidArgument("no expertise here"); }
};

TEST(Errors, AnExpertThatThrowsReachesAllRanks) {
  expect_one_message(messages([](RankContext& context) {
                       MoEOptions options = small_options();
                       options.factory = [](std::int64_t) -> std::shared_ptr<Expert> {
                         return std::make_shared<FailingExpert>();
                       };
                       options.router.experts = 1;  // on rank 0
                       options.router.top_k = 1;
                       MoELayer layer(options, context.group);
                       layer.forward(tokens_of(context.rank, 4));
                     }),
                     "no expertise here");
}

TEST(Errors, OptionsThatCannotWork) {
  const auto make = [](auto change) {
    MoEOptions options = small_options();
    change(options);
    MoELayer layer(options, {});
  };
  EXPECT_THROW(make([](MoEOptions& o) { o.router.top_k = 6; }), InvalidArgument);
  EXPECT_THROW(make([](MoEOptions& o) { o.router.top_k = 0; }), InvalidArgument);
  EXPECT_THROW(make([](MoEOptions& o) { o.router.experts = 0; }), InvalidArgument);
  EXPECT_THROW(make([](MoEOptions& o) { o.hidden = 0; }), InvalidArgument);
  EXPECT_THROW(make([](MoEOptions& o) { o.rows.dispatch = "nothing(bits=3)"; }), InvalidArgument);
  EXPECT_THROW(make([](MoEOptions& o) { o.router.gate = Gate::kGShard, o.router.top_k = 1; }),
               InvalidArgument);
  MoELayer layer(small_options(), {});
  EXPECT_THROW(layer.forward(at::zeros({3, kDim + 1})), InvalidArgument);
  EXPECT_THROW(layer.forward(at::zeros({3, kDim}, at::kLong)), InvalidArgument);
  EXPECT_THROW(layer.forward(at::zeros({3, kDim}), at::zeros({2}, at::kBool)), InvalidArgument);
}

TEST(Checkpoint, FitsAnyNumberOfRanks) {
  MoEOptions options = small_options();
  options.shared_hidden = 3;
  options.router.gate = Gate::kSigmoidBias;
  options.seed = 77;  // other weights than the layers that load it
  const at::Tensor tokens = tokens_of(0, 9);
  MoELayer original(options, {});
  original.forward(tokens);
  original.update_expert_bias();
  const NamedTensors state = original.full_state();
  // Router, shared expert, experts, counters of the dispatcher, options and state of merging.
  EXPECT_EQ(state.size(), 2u + 4u + 5u * 4u + 3u);
  original.eval();
  const at::Tensor expected = original.forward(tokens).output;
  options.seed = 1;
  for (const int ranks : {1, 2, 3, 4}) {
    run_ranks(ranks, [&](RankContext& context) {
      MoELayer layer(options, context.group);
      layer.eval();
      layer.load_state(state);
      const NamedTensors again = layer.full_state();
      EXPECT_TRUE(at::allclose(layer.forward(tokens).output, expected, 1e-6, 1e-6));
      ASSERT_EQ(again.size(), state.size());
      for (const auto& [name, tensor] : state) EXPECT_TRUE(at::equal(again.at(name), tensor));
    });
  }
  NamedTensors broken = state;
  broken.erase("experts.3.w1");
  MoELayer target(options, {});
  EXPECT_THROW(target.load_state(broken), InvalidArgument);
  broken = state;
  broken["experts.0.w1"] = at::zeros({1});
  EXPECT_THROW(target.load_state(broken), InvalidArgument);
  EXPECT_TRUE(at::equal(target.local_state().at("experts.4.w2"),
                        MoELayer(options, {}).local_state().at("experts.4.w2")));
}

TEST(Checkpoint, AnotherTypeIsRefusedByName) {
  MoEOptions options = small_options();
  options.rows = parse_rows("spectral(bits=4)");
  options.dedup = parse_dedup("lsh(hashes=2, bandwidth=1e12)");
  MoELayer layer(options, {});
  layer.forward(tokens_of(0, 9).requires_grad_()).output.sum().backward();
  const NamedTensors state = layer.full_state();
  for (const char* name :
       {"router.weight", "experts.3.w1", "rows.counters", "rows.dispatch.moments"}) {
    NamedTensors other = state;
    ASSERT_TRUE(other.contains(name)) << name;
    other[name] = other[name].to(at::kHalf);
    const std::string error = thinwire::testing::error_of([&] { layer.load_state(other); });
    EXPECT_NE(error.find(name), std::string::npos) << error;
    EXPECT_NE(error.find("Half"), std::string::npos) << error;
  }
  for (const char* name : {"dedup.state", "dedup.guard.0"}) {
    NamedTensors other = state;
    ASSERT_TRUE(other.contains(name)) << name;
    other[name] = other[name].to(at::kHalf);
    const std::string error = thinwire::testing::error_of([&] { layer.load_state(other); });
    EXPECT_NE(error.find("of Half"), std::string::npos) << error;
  }
}

TEST(Checkpoint, ShardsTogetherAreTheFullState) {
  MoEOptions options = small_options();
  options.rows = parse_rows("spectral(bits=4, refresh=2, drift=1e30)");
  options.dedup = parse_dedup("lsh(hashes=2, radius=1, bandwidth=1e12)");
  std::mutex mutex;
  std::map<int, NamedTensors> shards;
  run_ranks(3, [&](RankContext& context) {
    MoELayer layer(options, context.group);
    for (int step = 0; step < 5; ++step) {
      layer.forward(tokens_of(context.rank, 10).requires_grad_()).output.sum().backward();
    }
    const NamedTensors full = layer.full_state();
    NamedTensors mine = layer.shard();
    // The experts of other ranks, and what is equal on all, are in other shards.
    EXPECT_EQ(mine.contains("router.weight"), context.rank == 0);
    EXPECT_EQ(mine.contains("experts.0.w1"), context.rank == 0);
    {
      const std::lock_guard lock(mutex);
      shards[context.rank] = mine;
    }
    context.group->barrier()->wait();
    NamedTensors all;
    for (const auto& [rank, shard] : shards) {
      for (const auto& [name, tensor] : shard)
        EXPECT_TRUE(all.emplace(name, tensor).second) << name;
    }
    ASSERT_EQ(all.size(), full.size());
    for (const auto& [name, tensor] : full) EXPECT_TRUE(at::equal(all.at(name), tensor)) << name;
    // A rank begins again with its own shard and rank 0's.
    NamedTensors enough = mine;
    enough.merge(NamedTensors(shards.at(0)));
    MoEOptions other = options;
    other.seed = 1;
    MoELayer again(other, context.group);
    again.load_state(enough);
    const NamedTensors before = layer.local_state(), after = again.local_state();
    ASSERT_EQ(before.size(), after.size());
    for (const auto& [name, tensor] : before)
      EXPECT_TRUE(at::equal(after.at(name), tensor)) << name;
  });
}

TEST(Checkpoint, ALayerMergesAsTheSavedOneDid) {
  MoEOptions options = small_options();
  options.dedup = parse_dedup(
      "lsh(hashes=2, radius=1, compensation=calibrated, probes=4, start_after=1, evaluation=on)");
  const at::Tensor tokens = tokens_of(0, 60) * 0.02 + 1.0;
  MoELayer trained(options, {});
  trained.forward(tokens_of(1, 60));
  trained.refresh_rotations();
  for (int step = 0; step < 3; ++step) trained.forward(tokens + 0.01 * step);
  ASSERT_NE(trained.dedup().compensation(), 1.0);
  const NamedTensors state = trained.full_state();  // with probes that no step has used yet
  trained.eval();
  const MoEOutput expected = trained.forward(tokens);
  ASSERT_TRUE(expected.counters.dedup.merged);

  options.dedup = {};
  MoELayer loaded(options, {});
  loaded.eval();
  loaded.load_state(state);
  EXPECT_EQ(spec_of(loaded.dedup().options()), spec_of(trained.dedup().options()));
  const MoEOutput actual = loaded.forward(tokens);
  EXPECT_TRUE(actual.counters.dedup.merged);
  EXPECT_EQ(actual.counters.dedup.compensation, trained.dedup().compensation());
  EXPECT_TRUE(at::equal(actual.output, expected.output));

  MoELayer exact(options, {});
  exact.eval();
  exact.load_state(state, MoELayer::Merging::kKeepOptions);
  EXPECT_FALSE(exact.forward(tokens).counters.dedup.merged);
}

TEST(Checkpoint, EveryRankKeepsWhatItsGuardExpects) {
  MoEOptions options = small_options();
  options.dedup = parse_dedup("lsh(hashes=2, radius=0.1, bandwidth=1e6)");
  std::mutex mutex;
  NamedTensors state;
  run_ranks(2, [&](RankContext& context) {
    MoELayer layer(options, context.group);
    // Of rank 0 all tokens are alike, of rank 1 none.
    const at::Tensor tokens = tokens_of(context.rank, 30);
    layer.forward(context.rank == 0 ? tokens.narrow(0, 0, 1).expand({30, kDim}).contiguous()
                                    : tokens);
    const NamedTensors all = layer.full_state();
    const std::lock_guard lock(mutex);
    state = all;
  });
  ASSERT_FALSE(at::equal(state.at("dedup.guard.0"), state.at("dedup.guard.1")));
  run_ranks(3, [&](RankContext& context) {
    MoELayer layer(options, context.group);
    const at::Tensor fresh = layer.dedup().guard_state();
    layer.load_state(state);
    // Nobody had the number of the third rank.
    const at::Tensor expected =
        context.rank < 2 ? state.at(concat("dedup.guard.", context.rank)) : fresh;
    EXPECT_TRUE(at::equal(layer.dedup().guard_state(), expected));
  });
}

}  // namespace
}  // namespace thinwire::moe
