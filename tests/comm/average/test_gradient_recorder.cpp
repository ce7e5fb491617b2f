#include "thinwire/comm/average/gradient_recorder.h"

#include <gtest/gtest.h>

#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "thinwire/common/error.h"
#include "thinwire/compressors/peft/safetensors.h"
#include "thinwire/tests/comm/average/averager_fixture.h"
#include "thinwire/tests/common/remove_tree.h"
#include "thinwire/tests/support/rank_threads.h"

namespace thinwire::comm {
namespace {

using testing::LayerShapes;
using testing::random_bucket;
using testing::RankContext;
using testing::run_ranks;
using testing::uniform_plan;

namespace fs = std::filesystem;

const LayerShapes kLayers = {{"a.weight", {8, 5}}, {"b", {3}}};

class GradientRecorderTest : public ::testing::Test {
 protected:
  GradientRecorderTest()
      : folder_(fs::temp_directory_path() / concat("gradient_recorder_", ::getpid())) {
    fs::create_directories(folder_);
  }
  ~GradientRecorderTest() override { remove_tree(folder_); }

  std::string path() const { return (folder_ / "gradients").string(); }

  const fs::path folder_;
};

TEST_F(GradientRecorderTest, WritesWhatEachRankBrings) {
  run_ranks(2, [&](RankContext& ctx) {
    BucketAverager averager(ctx.group,
                            {.record_gradients = path(), .record_from = 1, .record_steps = 2});
    for (int step = 0; step < 5; ++step) {
      Bucket bucket = random_bucket(kLayers, static_cast<std::uint64_t>(step), ctx.rank);
      averager.average(bucket, uniform_plan(kLayers, "topk(density=0.1)"), step);
    }
  });
  for (const int rank : {0, 1}) {
    const peft::SafetensorsFile file(concat(path(), ".", rank));
    EXPECT_EQ(file.metadata().at("ranks"), "2");
    EXPECT_EQ(file.tensors().size(), 4u) << "two steps of two layers";
    for (const int step : {1, 2}) {
      const Bucket brought = random_bucket(kLayers, static_cast<std::uint64_t>(step), rank);
      for (std::size_t l = 0; l < kLayers.size(); ++l) {
        const std::string name = concat(step, "/", rank, "/", kLayers[l].first);
        ASSERT_TRUE(file.find(name)) << name;
        EXPECT_EQ(file.find(name)->shape, kLayers[l].second);
        const at::Tensor layer = testing::layer_of(brought, l).contiguous();
        ASSERT_EQ(file.bytes(name).size(), layer.nbytes());
        EXPECT_EQ(std::memcmp(file.bytes(name).data(), layer.const_data_ptr(), layer.nbytes()), 0)
            << name << ": not what came before residuals and means";
      }
    }
  }
}

TEST_F(GradientRecorderTest, WritesWhatThereIsWhereTrainingEndsBefore) {
  run_ranks(1, [&](RankContext& ctx) {
    BucketAverager averager(ctx.group, {.record_gradients = path(), .record_steps = 10});
    Bucket bucket = random_bucket(kLayers, 0, 0);
    averager.average(bucket, uniform_plan(kLayers, "none"), 0);
    EXPECT_FALSE(fs::exists(path() + ".0"));
  });
  EXPECT_EQ(peft::SafetensorsFile(path() + ".0").tensors().size(), 2u);
  EXPECT_THROW(GradientRecorder(path(), 0, 1, 0, 0), InvalidArgument);
  EXPECT_THROW(GradientRecorder(path(), 0, 1, -1, 5), InvalidArgument);
}

}  // namespace
}  // namespace thinwire::comm
