"""A training step with thinwire beside PyTorch's own DistributedDataParallel and its hooks for bf16,
fp16 and PowerSGD: all models in one job of one thread a rank, taking turns. A rank of torchrun.

    bench_training.py --model embedding|convolutions [--settings 'none;auto'] [--rounds 20]

`embedding` sends 6.4 MB a step and computes next to nothing, `convolutions` 0.7 MB after a tenth of a
second and more. `make bench-training` runs the first on two emulated hosts with links of 25 Mbit/s,
the second with 1 Gbit/s. PYTHONPATH must name the package.

Prints for each setting the median and the 99th percentile of a step of the slower rank, how many times
faster than plain DDP the median of their rounds is, and the bytes that rank 0's host sent for a step,
by the kernel's count: headers, retransmissions and the bench's own barrier are among them.
"""

import argparse
import os
import pathlib
import re
import statistics
import time

os.environ["TORCH_FR_BUFFER_SIZE"] = "0"

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import thinwire

PLAIN = "PyTorch"
POWERSGD = "PyTorch, PowerSGD rank 4"
HOOKS = {"PyTorch, bf16": default_hooks.bf16_compress_hook,
         "PyTorch, fp16": default_hooks.fp16_compress_hook}
# Steps before those that count: the Reducer's buckets, memory, and the searches of auto.
WARM_STEPS, WARM_STEPS_OF_AUTO = 5, 88
TOKENS, LABELS = 16384, 100


def embedding():
    """A bag of tokens, the rare ones of which a batch seldom has, as in a recommender or a language."""
    model = torch.nn.Sequential(torch.nn.Embedding(TOKENS, 96), torch.nn.Flatten(),
                                torch.nn.Linear(16 * 96, 16), torch.nn.ReLU(),
                                torch.nn.Linear(16, LABELS))
    generator = torch.Generator().manual_seed(dist.get_rank())
    ranks = torch.rand(64, 16, generator=generator)
    return model, (TOKENS ** ranks).long() - 1


def convolutions():
    layers, channels = [], 3
    for width in (32, 32, 64, 64):
        layers += [torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU()]
        channels = width
    model = torch.nn.Sequential(*layers, torch.nn.MaxPool2d(8), torch.nn.Flatten(),
                                torch.nn.Linear(16 * channels, LABELS))
    return model, torch.randn(16, 3, 32, 32,
                              generator=torch.Generator().manual_seed(dist.get_rank()))


MODELS = {"embedding": embedding, "convolutions": convolutions}


class Training:
    """One model and what averages its gradients."""

    def __init__(self, model, setting):
        torch.manual_seed(1)
        network, self.inputs = MODELS[model]()
        self.labels = torch.arange(len(self.inputs)) % LABELS
        self.model = DistributedDataParallel(network)
        self.optimizer = torch.optim.SGD(network.parameters(), 0.01)
        self.handle = None
        if setting == POWERSGD:
            state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=4,
                                                start_powerSGD_iter=2)
            self.model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        elif setting in HOOKS:
            self.model.register_comm_hook(None, HOOKS[setting])
        elif setting != PLAIN:
            self.handle = thinwire.compress(self.model, setting)
        self.steps, self.sent = [], []
        warm = WARM_STEPS_OF_AUTO if re.match(r"auto\b", setting) else WARM_STEPS
        for _ in range(warm):
            self.step()
        self.steps, self.sent = [], []

    def step(self):
        dist.barrier()
        begin, sent = time.perf_counter(), sent_bytes()
        self.optimizer.zero_grad()
        torch.nn.functional.cross_entropy(self.model(self.inputs), self.labels).backward()
        self.optimizer.step()
        seconds = torch.tensor(time.perf_counter() - begin, dtype=torch.float64)
        self.sent.append(sent_bytes() - sent)
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        self.steps.append(float(seconds))


def sent_bytes():
    """What the interfaces of this host have sent, but the loopback."""
    lines = pathlib.Path("/proc/self/net/dev").read_text(encoding="ascii").splitlines()[2:]
    fields = [line.replace(":", " ").split() for line in lines]
    return sum(int(words[9]) for words in fields if words[0] != "lo")


def p99(values):
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--settings", help="of thinwire, separated by semicolons",
                        default="none;quantize(bits=4);ecsq(as=quantize(bits=4));powersgd(rank=4);"
                                "topk(density=0.01);auto")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    settings = [PLAIN, *HOOKS, POWERSGD, *options.settings.split(";")]
    trainings = {setting: Training(options.model, setting) for setting in settings}
    for number in range(options.rounds):
        for setting in settings if number % 2 == 0 else reversed(settings):
            trainings[setting].step()
    if dist.get_rank() == 0:
        print(f"{options.model}, {dist.get_world_size()} ranks, {options.rounds} rounds\n\n"
              "| setting | step, ms | p99 | times faster | sent, kB |\n"
              "| --- | --- | --- | --- | --- |")
        plain = trainings[PLAIN]
        for setting, training in trainings.items():
            faster = statistics.median(a / b for a, b in zip(plain.steps, training.steps))
            print(f"| {setting} | {1e3 * statistics.median(training.steps):.1f} "
                  f"| {1e3 * p99(training.steps):.1f} | {faster:.2f} "
                  f"| {statistics.median(training.sent) / 1e3:.1f} |")
        for setting, training in trainings.items():
            stats = training.handle.stats() if training.handle else {}
            if "reason" in stats:
                print(f"\n{setting}: {stats['setting']}, {stats['reason']}")
    # Hooks in Python leave callbacks on the backend's threads: none is to be freed after Python's end.
    trainings.clear()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
