// What can be part of a training whose ranks come and go.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include <torch/nn/modules/linear.h>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "thinwire/common/error.h"
#include "thinwire/launch/elastic/elastic_training.h"
#include "thinwire/moe/layer/moe_layer.h"
#include "thinwire/tests/support/error_of.h"

namespace thinwire::launch {
namespace {

using ::testing::HasSubstr;

// `group`: that the experts are spread over.
struct Net : torch::nn::Module {
  Net(bool has_experts, const c10::intrusive_ptr<c10d::ProcessGroup>& group) {
    register_module("plain", std::make_shared<torch::nn::LinearImpl>(4, 4));
    if (!has_experts) return;
    moe::MoEOptions options;
    options.router = {.dim = 4, .experts = 2, .top_k = 1};
    options.hidden = 8;
    auto block = register_module("block", std::make_shared<torch::nn::Module>());
    block->register_module("experts", std::make_shared<moe::MoELayer>(options, group));
  }
};

TEST(ElasticTraining, RefusesExpertsByName) {
  c10d::TCPStoreOptions options;
  options.isServer = true;
  options.waitWorkers = false;
  const auto store = c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options);
  ::setenv("THINWIRE_STORE", concat("127.0.0.1:", store->getPort()).c_str(), /*replace=*/1);
  ElasticWorld world({.min_ranks = 1});
  ElasticTraining training(world);
  // Made before the training begins, as everything is: over a group of this process alone.
  Net spread(true, world.group()), whole(true, nullptr), plain(false, nullptr);
  EXPECT_THAT(testing::error_of<InvalidArgument>([&] { training.replicated("model", spread); }),
              HasSubstr("'model.block.experts' is a MoELayer over a process group"));
  training.replicated("whole", whole);
  training.replicated("plain", plain);
}

}  // namespace
}  // namespace thinwire::launch
