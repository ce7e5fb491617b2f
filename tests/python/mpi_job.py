"""A rank of tests/python/test_mpi.py, under mpirun: prints what it found as one line of JSON."""

import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(os.environ["THINWIRE_BINARY_DIR"]) / "python"))

import torch
import torch.distributed as dist
from torch import nn

import test_collectives
import thinwire

torch.set_num_threads(1)
rank = int(os.environ["OMPI_COMM_WORLD_RANK"])
world = int(os.environ["OMPI_COMM_WORLD_SIZE"])
dist.init_process_group("thinwire_mpi", init_method=sys.argv[1], rank=rank, world_size=world,
                        pg_options=test_collectives.options("quantize(bits=8)"))
found = {}
exact = torch.ones(5, dtype=torch.int64) * (rank + 1)
dist.all_reduce(exact)
found["exact"] = exact.tolist()
coded = torch.ones(5000) * (rank + 1)
dist.all_reduce(coded)
found["coded"] = [coded.min().item(), coded.max().item()]
found["calls"] = thinwire.stats()["operations"]["all_reduce"]["coded"]
pair = dist.new_group([0, world - 1])
if rank in (0, world - 1):
    part = torch.ones(3) * (rank + 1)
    dist.all_reduce(part, group=pair)
    found["pair"] = part.tolist()
torch.manual_seed(0)
ddp = nn.parallel.DistributedDataParallel(nn.Linear(64, 64))
handle = thinwire.compress(ddp, "quantize(bits=4)")
optimizer = torch.optim.SGD(ddp.parameters(), 0.1)
for step in range(5):
    torch.manual_seed(10 * step + rank)
    optimizer.zero_grad()
    ddp(torch.randn(8, 64)).pow(2).mean().backward()
    optimizer.step()
weights = ddp.module.weight.detach().flatten()
all_weights = [None] * world
dist.all_gather_object(all_weights, weights)  # no codec touches it
found["equal"] = all(torch.equal(w, weights) for w in all_weights)
found["ratio"] = handle.stats()["ratio"]
found["ways"] = test_collectives.all_calls(rank, world, without=("sparse",))[0]
dist.barrier()
pathlib.Path(sys.argv[2], f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
del handle, ddp, optimizer
dist.destroy_process_group()
