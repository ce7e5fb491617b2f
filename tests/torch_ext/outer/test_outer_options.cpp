// What the options of outer steps that no other test looks at do.
#include <gmock/gmock.h>

#include <filesystem>

#include "thinwire/common/timeline.h"
#include "thinwire/compressors/peft/safetensors.h"
#include "thinwire/tests/common/temporary_file.h"
#include "thinwire/tests/torch_ext/outer/outer_toy.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;
using testing::RankContext;
using testing::run_ranks;
using testing::Toy;

OuterOptimizerOptions every_step(std::string compression) {
  return {.inner_steps = 1, .compression = std::move(compression)};
}

TEST(OuterOptions, OverridesGoToTheirParts) {
  run_ranks(2, [](RankContext& ctx) {
    Toy toy;
    torch::optim::SGD inner(toy.parameters(), torch::optim::SGDOptions(testing::kRate));
    OuterOptimizerOptions options = every_step("quantize(bits=8)");
    options.overrides = {{"*_B", "topk(density=0.25)"}, {"bias", "none"}};
    const OuterOptimizer optimizer(toy, inner, ctx.group, options);
    EXPECT_THAT(optimizer.plan().of("lora_A").text(), HasSubstr("quantize(bits=8"));
    EXPECT_THAT(optimizer.plan().of("lora_B").text(), HasSubstr("topk(density=0.25"));
    EXPECT_EQ(optimizer.plan().of("bias").codec, nullptr);
  });
}

TEST(OuterOptions, TheSeedIsThatOfTheCodecs) {
  const auto trained = [](std::uint64_t seed) {
    at::Tensor weights;
    run_ranks(2, [&](RankContext& ctx) {
      Toy toy;
      OuterOptimizerOptions options = every_step("quantize(bits=2, rounding=stochastic)");
      options.seed = seed;
      testing::train(ctx, toy, options, 2);
      if (ctx.rank == 0) weights = toy.flat();
    });
    return weights;
  };
  const at::Tensor first = trained(1);
  EXPECT_TRUE(at::equal(first, trained(1)));
  EXPECT_FALSE(at::equal(first, trained(2)));
}

TEST(OuterOptions, TheTimelineHasTheOuterSteps) {
  const TemporaryFile file("outer_timeline.json");
  run_ranks(2, [&](RankContext& ctx) {
    std::unique_ptr<Timeline> timeline;
    if (ctx.rank == 0) timeline = std::make_unique<Timeline>(file.path(), 0);
    Toy toy;
    OuterOptimizerOptions options = every_step("quantize(bits=8)");
    options.timeline = timeline.get();
    testing::train(ctx, toy, options, 2);
  });
  for (const char* phase : {"COMPRESS", "EXCHANGE", "DECOMPRESS"})
    EXPECT_THAT(file.text(), HasSubstr(phase));
}

TEST(OuterOptions, DeltasAreRecordedFromTheStepOnThatIsNamed) {
  const TemporaryFile file("outer_deltas");
  run_ranks(2, [&](RankContext& ctx) {
    Toy toy;
    OuterOptimizerOptions options = every_step("none");
    options.record_gradients = file.path().string();
    options.record_from = 1;
    options.record_steps = 2;
    testing::train(ctx, toy, options, 5);
  });
  for (const int rank : {0, 1}) {
    const std::filesystem::path path = concat(file.path().string(), ".", rank);
    {
      const peft::SafetensorsFile recorded(path);
      EXPECT_EQ(recorded.tensors().size(), 2u * 3) << "two steps of three parts";
      EXPECT_TRUE(recorded.find(concat("1/", rank, "/lora_A")));
      EXPECT_TRUE(recorded.find(concat("2/", rank, "/bias")));
    }
    std::filesystem::remove(path);
  }
}

}  // namespace
}  // namespace thinwire
