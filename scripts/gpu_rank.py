"""One rank of the jobs that gpu_test.py starts: prints JSON lines on rank 0.

    gpu_rank.py machine|check|speed|overlap --elements N --repeats N

Over NCCL where every rank has a GPU of its own, else over Gloo, all on the first.
"""

import argparse
import json
import os
import re

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import thinwire

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
SPECS = ("quantize(bits=1)", "quantize(bits=4)", "quantize(bits=8, norm=l2)",
         "quantize(bits=4, rounding=stochastic)", "cast(format=bf16)", "cast(format=fp16)",
         "cast(format=fp8_e4m3)", "cast(format=fp8_e5m2)", "onebit", "terngrad",
         "topk(density=0.03, values=fp16, momentum=0.9)", "ternary(density=0.05)",
         "randomk(density=0.1)", "powersgd(rank=3)", "powersgd(rank=2, iterations=2, factors=int8)",
         "lgreco(family=mixed, period=2, warmup=0, first=1, window=1)", "none")
STEPS = 3


class Given(nn.Module):
    """Parameters whose gradients are what forward() is given, bit for bit."""

    def __init__(self, shapes, dtype):
        super().__init__()
        self.values = nn.ParameterList(torch.zeros(shape, dtype=dtype) for shape in shapes)

    def forward(self, gradients):
        return sum((value * gradient).sum() for value, gradient in zip(self.values, gradients))


def tell(**what):
    if RANK == 0:
        print(json.dumps(what), flush=True)


def compressed(module, spec):
    ddp = DistributedDataParallel(module)
    return ddp, thinwire.compress(ddp, spec, min_numel=1, compress_1d=True)


def random_gradients(shapes, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def averages(device, spec, dtype, shapes):
    """Means of a few steps, and what compression carries over afterwards, on the CPU."""
    ddp, handle = compressed(Given(shapes, dtype).to(device), spec)
    means = []
    for step in range(STEPS):
        gradients = random_gradients(shapes, dtype, 10 * step + RANK)
        if step == 1 and RANK == 0 and spec != "none":
            gradients[0].view(-1)[3] = float("nan")
        ddp.zero_grad()
        ddp([gradient.to(device) for gradient in gradients]).backward()
        # A NaN is a NaN: GPUs have their own.
        means += [parameter.grad.cpu().nan_to_num(nan=77.0) for parameter in ddp.parameters()]
    return means, handle.state_dict()


def same(left, right):
    return all(a.shape == b.shape and bytes(a.view(torch.uint8).flatten().tolist())
               == bytes(b.view(torch.uint8).flatten().tolist()) for a, b in zip(left, right))


def check(device, options):
    count = min(options.elements, 100_003)
    shapes = ((count,), (29, 23), (count // 3,))
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    for spec in SPECS:
        for dtype in dtypes if spec == "quantize(bits=4)" else dtypes[:1]:
            found, state = averages(device, spec, dtype, shapes)
            expected, expected_state = averages(torch.device("cpu"), spec, dtype, shapes)
            wrong = [f"mean {i}" for i, (a, b) in enumerate(zip(found, expected)) if not same([a], [b])]
            wrong += ["state"] if state != expected_state else []
            everywhere = [None] * WORLD
            dist.all_gather_object(everywhere, wrong)
            wrong = sorted(set(sum(everywhere, [])))
            tell(spec=spec, dtype=str(dtype).removeprefix("torch."), world=WORLD,
                 backend=backend_name(), equal=not wrong, different=", ".join(wrong))


def backend_name():
    return "nccl" if torch.cuda.device_count() >= WORLD else "gloo"


def microseconds(work, repeats):
    """Of one call on the device, the median."""
    times = []
    for _ in range(repeats + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(1e3 * begin.elapsed_time(end))
    return max(sorted(times[2:])[repeats // 2], 1e-3)


def kernel_times(work):
    """Microseconds a call of each of thinwire's kernels, by name; empty where no profiler can tell."""
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            work()
            torch.cuda.synchronize()
        found = {}
        for event in profiler.key_averages():
            name = re.search(
                r"(encode_pieces|reduce_pieces|decode_pieces|sum_frames|frames|sparse_\w+?|low_rank_\w+?)"
                r"_kernel", event.key)
            if name and event.device_time_total > 0:
                found[name[1]] = event.device_time_total
        return found
    except (RuntimeError, AttributeError) as error:
        tell(note=str(error))
        return {}


def speed(device, options):
    count = options.elements
    x, y = torch.ones(count, device=device), torch.ones(count, device=device)
    half = torch.empty(count, dtype=torch.bfloat16, device=device)
    rows = [("copy", lambda: y.copy_(x), 8), ("torch: to bfloat16", lambda: half.copy_(x), 6),
            ("torch: add_", lambda: y.add_(x), 12), ("torch: largest", x.max, 4)]
    if WORLD > 1:
        rows.append((f"all_reduce of {WORLD} over {backend_name()}", lambda: dist.all_reduce(y), 0))
    for what, work, moved in rows:
        tell(what=what, elements=count, microseconds=microseconds(work, options.repeats), bytes=moved)
    shape = (max(1, count // 4096), min(count, 4096))
    gradients = [torch.randn(shape).to(device)]
    for spec, payload in (("quantize(bits=4)", 0.5), ("cast(format=bf16)", 2),
                          ("topk(density=0.01)", 0), ("powersgd(rank=4)", 0), ("none", 4)):
        ddp, _ = compressed(Given((shape,), torch.float32).to(device), spec)

        def step(ddp=ddp, gradients=gradients):
            ddp(gradients).backward()

        name = f"{spec} on {WORLD} rank(s)"
        tell(what=f"DDP step, {name}", elements=count, bytes=0,
             microseconds=microseconds(step, options.repeats))
        # Gradient, residual, loss and payload: see docs/gpu.md.
        moved = {"encode_pieces": 12 + payload, "reduce_pieces": payload + (8 + payload) / WORLD,
                 "decode_pieces": payload + 12, "sum_frames": payload,
                 "sparse_correct": 12, "sparse_count": 8, "sparse_tally": 4, "sparse_gather": 4,
                 "sparse_decode": 12,
                 "low_rank_multiply": 12, "low_rank_transposed": 4, "low_rank_replace": 12}
        for kernel, time in kernel_times(step).items():
            tell(what=f"{kernel}, {name}", elements=count, microseconds=time,
                 bytes=moved.get(kernel, 0))


def without_exchange(ddp, step):
    def alone():
        with ddp.no_sync():
            step()
    return alone


def overlap(device, options):
    """Of a step whose backward pass computes for a while, how much of the exchange is hidden."""
    layers = 8
    width = max(2, int((options.elements / layers) ** 0.5))
    x = torch.randn(max(8, width), width, device=device)
    for spec in ("quantize(bits=4)", "cast(format=bf16)", "none"):
        model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers))).to(device)
        ddp, _ = compressed(model, spec)
        given, _ = compressed(Given([(width, width)] * layers, torch.float32).to(device), spec)
        gradients = [parameter.detach() for parameter in model.parameters()]

        def step(ddp=ddp):
            ddp(x).sum().backward()

        def exchange(given=given, gradients=gradients):
            given(gradients).backward()

        def time(work):
            return microseconds(work, options.repeats)

        tell(overlap=f"{spec} on {WORLD} rank(s)", elements=layers * width * width, step=time(step),
             compute=time(without_exchange(ddp, step)),
             exchange=time(exchange) - time(without_exchange(given, exchange)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=("machine", "check", "speed", "overlap"))
    parser.add_argument("--elements", type=int, required=True)
    parser.add_argument("--repeats", type=int, required=True)
    options = parser.parse_args()
    if options.work == "machine":
        major, minor = torch.cuda.get_device_capability(0)
        tell(name=torch.cuda.get_device_name(0), count=torch.cuda.device_count(),
             capability=f"{major}.{minor}", torch=torch.__version__)
        return
    device = torch.device("cuda", RANK if backend_name() == "nccl" else 0)
    torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if backend_name() == "nccl" else "gloo")
    {"check": check, "speed": speed, "overlap": overlap}[options.work](device, options)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
