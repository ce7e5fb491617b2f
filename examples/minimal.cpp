// The least that a data-parallel program needs. Start it with
//   mpirun -np 2 minimal      or      torchrun --no-python --nproc-per-node 2 minimal
#include <torch/torch.h>

#include <iostream>

#include "thinwire/thinwire.h"

int main() {
  const auto world = thinwire::launch::init();  // mpirun, torchrun, srun, or alone
  torch::nn::Sequential net(torch::nn::Linear(64, 512), torch::nn::ReLU(),
                            torch::nn::Linear(512, 1));
  thinwire::DistributedDataParallel ddp(net, world.group(), {.compression = "quantize(bits=4)"});
  torch::optim::SGD optimizer(net->parameters(), 0.05);

  torch::manual_seed(world.rank());  // every rank draws its own data
  for (int step = 0; step < 200; ++step) {
    const auto x = torch::randn({32, 64});
    const auto y = x.slice(1, 0, 8).sum(1, /*keepdim=*/true);
    ddp.zero_grad();
    torch::mse_loss(ddp.forward(x), y).backward();  // gradients are averaged on the way
    optimizer.step();
  }
  const bool equal = ddp.replicas_equal();  // collective: every rank asks
  if (world.rank() == 0) {
    std::cout << "sent " << ddp.summary().ratio() << "x less; replicas "
              << (equal ? "bit-equal\n" : "DIFFER\n");
  }
  return equal ? 0 : 1;
}
