"""thinwire.compress() for a DistributedDataParallel, and thinwire.OuterOptimizer, in GPU memory, over torch's own group of NCCL and
Gloo, on fake devices."""

import json
import os
import pathlib
import sys
import unittest

import jobs

BUILD = pathlib.Path(os.environ["THINWIRE_BINARY_DIR"])

RANK = """
import json, os
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import thinwire

torch.set_num_threads(1)
rank = int(os.environ["RANK"])
torch.cuda.set_device(rank)
device = torch.device("cuda", rank)

def error_of(action):
    try:
        action()
    except thinwire.Error as error:
        return str(error)

def wrapped(device):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 40), nn.ReLU(), nn.Linear(40, 4)).to(device)
    return DistributedDataParallel(net)

def trained(device):
    ddp = wrapped(device)
    handle = thinwire.compress(ddp, "quantize(bits=4)", min_numel=1, compress_1d=True)
    optimizer = torch.optim.SGD(ddp.parameters(), 0.1)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(3):
        x = torch.randn(16, 32, generator=generator).to(device)
        optimizer.zero_grad()
        (ddp(x) - x[:, :4]).pow(2).mean().backward()
        optimizer.step()
    values = [p.detach().cpu() for p in ddp.parameters()]
    return values, handle.state_dict(), handle.stats()["sent_bytes"] > 0

def met(device):
    torch.manual_seed(1)
    net = nn.Linear(40, 30).to(device)
    inner = torch.optim.SGD(net.parameters(), 0.1)
    outer = thinwire.OuterOptimizer(net, inner, inner_steps=2, min_numel=100)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(5):
        x = torch.randn(8, 40, generator=generator).to(device)
        inner.zero_grad()
        net(x).pow(2).mean().backward()
        outer.step()
    return [p.detach().cpu() for p in net.parameters()]

dist.init_process_group("cpu:gloo,cuda:nccl")
on_device, on_cpu = trained(device), trained(torch.device("cpu"))
told = {"parameters": all(map(torch.equal, on_device[0], on_cpu[0])),
        "state": on_device[1].keys() == on_cpu[1].keys(), "sent": on_device[2],
        "outer steps": all(map(torch.equal, met(device), met(torch.device("cpu")))),
        "no kernels": error_of(lambda: thinwire.compress(wrapped(device), "spectral(bits=2)"))}

# A group of thinwire's has tensors in host memory compressed, and leaves the others to NCCL.
group = dist.new_group(backend="cpu:thinwire,cuda:nccl")
values = torch.full((2000,), 0.1 + rank, device=device)
dist.all_reduce(values, group=group)
told["exact sum"] = torch.equal(values.cpu(), torch.full((2000,), 0.1) + (0.1 + 1))
told["coded"] = thinwire.stats(group)["coded"]

alone = dist.new_group(backend="nccl")
told["nccl alone"] = error_of(lambda: thinwire.compress(
    DistributedDataParallel(nn.Linear(40, 40).to(device), process_group=alone), "quantize(bits=4)"))
print(json.dumps(told))
dist.destroy_process_group()
"""


class Compress(unittest.TestCase):
    def test_training_has_the_bits_of_the_cpu(self):
        command = ["env", *jobs.fake_gpu(FAKE_GPU_SCHEDULE="lazy"),
                   f"PYTHONPATH={BUILD / 'python'}", sys.executable, "-c", RANK]
        job = jobs.start_by_hand([command] * 2, THINWIRE_COMPRESSION="quantize(bits=8)")
        self.assertEqual(job.code, 0, str(job))
        for rank in job.ranks:
            self.assertNotIn("fake GPU: ", rank.err)
            told = json.loads(rank.out)
            for name in ("parameters", "state", "sent", "outer steps", "exact sum"):
                self.assertTrue(told[name], told)
            self.assertIn("is in GPU memory, where", told["no kernels"])
            self.assertEqual(told["coded"], 0)
            self.assertIn("cpu:gloo,cuda:nccl", told["nccl alone"])


if __name__ == "__main__":
    unittest.main()
