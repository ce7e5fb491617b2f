// The rank that gives the buffers dies between two steps: the devices of the others wait for it in
// the broadcast, and their hosts where the forward pass asks for a number. Rank 0 dies, so there is
// one test a program.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>

#include <torch/optim/sgd.h>

#include "thinwire/common/error.h"
#include "thinwire/tests/support/error_of.h"
#include "thinwire/tests/support/fake_gpu/ranks/ranks.h"
#include "thinwire/tests/torch_ext/ddp/ddp_net.h"

namespace thinwire {
namespace {

using testing::GpuRanks;

TEST(DeviceBuffers, ARankThatIsMissingInTheirBroadcastIsNoticed) {
  const GpuRanks& ranks = GpuRanks::get();
  const auto group = ranks.nccl_group("buffers");
  const auto net = std::make_shared<testing::Net>(1);
  net->to(ranks.device());
  DistributedDataParallelOptions options;
  options.compression = CompressionOptions("quantize(bits=4)");
  testing::Ddp ddp(net, group, options);
  torch::optim::SGD optimizer(net->parameters(), 0.05);
  const auto forward = [&](int step) {
    const at::Tensor x = testing::inputs(ranks.rank, step).to(ranks.device());
    return testing::loss_of(ddp.forward(x, true).first, x);
  };
  for (int step = 0; step < 3; ++step) {
    ddp.zero_grad();
    forward(step).backward();
    optimizer.step();
  }
  net->seen.sum().item<float>();  // all that is queued is done
  if (ranks.rank == 0) std::_Exit(EXIT_SUCCESS);

  const auto begin = std::chrono::steady_clock::now();
  const std::string error = testing::error_of<CommError>([&] {
    forward(3).item<float>();  // waits for a device that would wait for ever
    forward(4);
  });
  EXPECT_THAT(error, ::testing::HasSubstr("rank(s) 0 of 2"));
  EXPECT_THAT(error, ::testing::HasSubstr("broadcast of the buffers"));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
}

}  // namespace
}  // namespace thinwire
