"""Python's torch on the fake device, by LD_PRELOAD: it trains with the CPU's bits, and what is
wrong with its streams is told."""

import os
import pathlib
import subprocess
import sys
import unittest

LIBRARIES = pathlib.Path(os.environ["THINWIRE_BINARY_DIR"]) / "lib" / "fake_gpu"

TRAINING_AND_RACE = """
import torch
from torch import nn

def losses(device):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.LayerNorm(64), nn.Linear(64, 10)).to(device)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(1)
    told = []
    for _ in range(4):
        x = torch.randn(16, 32, generator=generator).to(device)
        y = torch.randint(0, 10, (16,), generator=generator).to(device)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        told.append(loss.item())
    return told

assert torch.cuda.is_available()
print(losses("cpu") == losses("cuda"))

# A stream that does not wait for its input.
x = torch.ones(256, device="cuda") * 2
with torch.cuda.stream(torch.cuda.Stream()):
    y = x.sum()
torch.cuda.synchronize()
"""


class Torch(unittest.TestCase):
    def test_training_has_the_losses_of_the_cpu_and_a_race_is_told(self):
        environment = dict(os.environ, FAKE_GPU_TELL="1", FAKE_GPU_SCHEDULE="lazy",
                           OMP_NUM_THREADS="1",
                           LD_PRELOAD=f"{LIBRARIES}/libcuda.so.1 {LIBRARIES}/libfake_gpu_aten.so")
        result = subprocess.run([sys.executable, "-c", TRAINING_AND_RACE], env=environment,
                                capture_output=True, text=True, check=True)
        self.assertEqual(result.stdout, "True\n")
        told = [line for line in result.stderr.splitlines() if line.startswith("fake GPU: ")]
        self.assertEqual(len(told), 1, result.stderr)
        self.assertIn("race on a tensor of 1024 bytes at byte 0: 'aten::mul'", told[0])
        self.assertIn("'aten::sum'", told[0])


if __name__ == "__main__":
    unittest.main()
