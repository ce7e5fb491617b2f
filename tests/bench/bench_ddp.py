"""A training step of DistributedDataParallel with thinwire beside PyTorch's own: about 50 million
parameters, two ranks of this machine over Gloo, all models in one job, taking turns.

    bench_ddp.py [--specs 'none;auto'] [--rounds 15] [--batch 4] [--views]

PYTHONPATH must name the package. Prints for each spec the median time of a step of the slower rank,
the median of its ratio to PyTorch's step of the same round, and the same of the processor time that
both ranks took.
"""

import argparse
import os
import re
import resource
import statistics
import tempfile
import time

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
os.environ["TORCH_FR_BUFFER_SIZE"] = "0"

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

import thinwire

WIDTH, INNER, LAYERS = 1024, 2048, 24
# Steps before those that count: the Reducer's buckets, memory, and the first search of auto.
WARM_STEPS = {"auto": 48}


def make_model(spec, views):
    torch.manual_seed(1)
    layers = [torch.nn.Linear(*((WIDTH, INNER) if i % 2 == 0 else (INNER, WIDTH)))
              for i in range(LAYERS)]
    model = DistributedDataParallel(torch.nn.Sequential(*layers), gradient_as_bucket_view=views)
    return model, thinwire.compress(model, spec) if spec else None


def processor_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def step_of(model, inputs):
    """Seconds of a step, of the slower rank, and processor seconds, of both."""
    dist.barrier()
    begin, used = time.perf_counter(), processor_seconds()
    model(inputs).pow(2).mean().backward()
    seconds = torch.tensor([time.perf_counter() - begin, processor_seconds() - used])
    both = [torch.empty_like(seconds) for _ in range(2)]
    dist.all_gather(both, seconds)
    return max(float(rank[0]) for rank in both), sum(float(rank[1]) for rank in both)


def rank_job(rank, arguments, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    specs = ["", *arguments.specs.split(";")]
    models = {spec: make_model(spec, arguments.views) for spec in specs}
    inputs = torch.randn(arguments.batch, WIDTH, generator=torch.Generator().manual_seed(rank))
    for spec, (model, _) in models.items():
        for _ in range(WARM_STEPS.get(re.match(r"\w*", spec)[0], 5)):
            step_of(model, inputs)
    times = {spec: [] for spec in specs}
    for number in range(arguments.rounds):
        for spec in specs if number % 2 == 0 else reversed(specs):
            times[spec].append(step_of(models[spec][0], inputs))
    if rank == 0:
        print("| spec | step, ms | of PyTorch's | processor, ms | of PyTorch's |\n"
              "| --- | --- | --- | --- | --- |")
        for spec in specs:
            row = f"| {spec or 'PyTorch'} "
            for which in range(2):
                own = [step[which] for step in times[spec]]
                ratios = [a / b[which] for a, b in zip(own, times[""])]
                row += f"| {1e3 * statistics.median(own):.1f} | {statistics.median(ratios):.3f} "
            print(row + "|", flush=True)
        for spec, (_, handle) in models.items():
            stats = handle.stats() if handle else {}
            if "reason" in stats:
                print(f"{spec}: {stats['setting']}, {stats['reason']}")
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--specs", default="none;auto", help="separated by semicolons")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--views", action="store_true", help="gradient_as_bucket_view")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(rank_job, (parser.parse_args(), folder), nprocs=2)
