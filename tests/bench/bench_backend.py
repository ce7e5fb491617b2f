"""What the backend "thinwire" costs where it compresses nothing, against plain Gloo: all_reduce on
two ranks of this machine, both groups in one job, taking turns. PYTHONPATH must name the package.

    bench_backend.py [--rounds 9]
"""

import argparse
import os
import statistics
import tempfile
import time

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
os.environ["TORCH_FR_BUFFER_SIZE"] = "0"

import torch
import torch.distributed as dist
import torch.multiprocessing

SIZES = [1 << 10, 1 << 14, 1 << 18, 1 << 22, 1 << 26]


def seconds_of(group, tensor, calls):
    dist.barrier(group=group)
    begin = time.perf_counter()
    for _ in range(calls):
        dist.all_reduce(tensor, group=group)
    return (time.perf_counter() - begin) / calls


def rank_job(rank, rounds, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    groups = {"gloo": dist.new_group(), "none": dist.new_group(backend="thinwire", pg_options="none"),
              # Integers never go through the codec that the group has.
              "exact beside a codec": dist.new_group(backend="thinwire",
                                                     pg_options="quantize(bits=4)")}
    if rank == 0:
        print("| bytes | gloo, us | none | exact beside a codec |\n| --- | --- | --- | --- |")
    for size in SIZES:
        tensor = torch.ones(size // 4, dtype=torch.int32)
        calls = max(3, min(300, (1 << 25) // size))
        times = {name: [] for name in groups}
        for _ in range(rounds):
            for name, group in groups.items():
                times[name].append(seconds_of(group, tensor, calls))
        best = {name: statistics.median(values) for name, values in times.items()}
        if rank == 0:
            print(f"| {size} | {1e6 * best['gloo']:.1f} | " + " | ".join(
                f"{100 * (best[name] / best['gloo'] - 1):+.1f} %" for name in list(groups)[1:])
                + " |", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(rank_job, (parser.parse_args().rounds, folder), nprocs=2)
