// Trains a small model on two ranks, threads of this program, and writes rank 0's parameters to a
// file: ddp_program SPEC STEPS FILE. Inputs and weights are integers over powers of two, so that
// Python makes the same ones.
#include <torch/torch.h>

#include <fstream>

#include "thinwire/tests/support/rank_threads.h"
#include "thinwire/torch_ext/ddp/distributed_data_parallel.h"

namespace {

at::Tensor numbers(std::int64_t numel, std::int64_t factor, std::int64_t modulus) {
  return ((at::arange(numel) * factor) % modulus - modulus / 2).to(at::kFloat);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  at::set_num_threads(1);
  const std::string spec = argv[1], path = argv[3];
  const int steps = std::stoi(argv[2]);
  thinwire::testing::run_ranks(2, [&](thinwire::testing::RankContext& ctx) {
    torch::nn::Sequential net(torch::nn::Linear(40, 96), torch::nn::ReLU(),
                              torch::nn::Linear(96, 10));
    {
      const at::NoGradGuard no_grad;
      std::int64_t i = 0;
      for (at::Tensor& p : net->parameters())
        p.copy_(numbers(p.numel(), 3 + i++, 17).view(p.sizes()) / 64);
    }
    thinwire::DistributedDataParallel ddp(net, ctx.group, {.compression = spec});
    torch::optim::SGD optimizer(net->parameters(), torch::optim::SGDOptions(0.1));
    for (int step = 0; step < steps; ++step) {
      const at::Tensor x = numbers(16 * 40, 2 * step + ctx.rank + 3, 23).view({16, 40}) / 8;
      optimizer.zero_grad();
      ddp(x).pow(2).mean().backward();
      optimizer.step();
    }
    if (ctx.rank != 0) return;
    std::ofstream out(path, std::ios::binary);
    for (const at::Tensor& p : net->parameters())
      out.write(static_cast<const char*>(p.const_data_ptr()),
                static_cast<std::streamsize>(p.nbytes()));
  });
}
