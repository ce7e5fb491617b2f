"""Which of torch's ways to communicate reach the backend, and that their numbers are right: all on
"thinwire" with a codec for everything, whose values are near those of Gloo, and without, bit-equal."""

import unittest

from ranks import error_of, run_ranks

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (ColwiseParallel, RowwiseParallel,
                                               parallelize_module)

N = 4096


def mine(rank, numel=N, seed=0):
    generator = torch.Generator().manual_seed(10 * seed + rank + 1)
    return torch.randn(numel, generator=generator)


def all_of(world, numel=N, seed=0):
    return torch.stack([mine(r, numel, seed) for r in range(world)])


# name -> function(rank, world) that returns (what torch gave, what it should be).
CALLS = {}
# name -> what docs/python.md calls it.
TITLES = {}


def call(title):
    def add(function):
        CALLS[function.__name__] = function
        TITLES[function.__name__] = title
        return function

    return add


@call("`all_reduce`")
def all_reduce(rank, world):
    t = mine(rank)
    dist.all_reduce(t)
    return t, all_of(world).sum(0)


@call("`all_reduce` with `async_op`, several at a time")
def all_reduce_async(rank, world):
    ts = [mine(rank, seed=s) for s in range(4)]
    for work in [dist.all_reduce(t, op=dist.ReduceOp.AVG, async_op=True) for t in ts]:
        work.wait()
    return torch.cat(ts), torch.cat([all_of(world, seed=s).mean(0) for s in range(4)])


@call("its Work's future")
def all_reduce_future(rank, world):
    t = mine(rank)
    value = dist.all_reduce(t, async_op=True).get_future().wait()
    return value[0], all_of(world).sum(0)


@call("`_coalescing_manager`")
def coalescing_manager(rank, world):
    ts = [mine(rank, seed=s) for s in range(3)]
    with dist._coalescing_manager(async_ops=True) as works:
        for t in ts:
            dist.all_reduce(t)
    works.wait()
    return torch.cat(ts), torch.cat([all_of(world, seed=s).sum(0) for s in range(3)])


@call("`reduce_scatter_tensor`")
def reduce_scatter_tensor(rank, world):
    out = torch.empty(N)
    dist.reduce_scatter_tensor(out, mine(rank, N * world))
    return out, all_of(world, N * world).sum(0)[rank * N:(rank + 1) * N]


@call("`reduce_scatter` of a list")
def reduce_scatter(rank, world):
    out = torch.empty(N)
    dist.reduce_scatter(out, list(mine(rank, N * world).chunk(world)))
    return out, all_of(world, N * world).sum(0)[rank * N:(rank + 1) * N]


@call("`all_gather_into_tensor`")
def all_gather_into_tensor(rank, world):
    out = torch.empty(N * world)
    dist.all_gather_into_tensor(out, mine(rank))
    return out, all_of(world).flatten()


@call("`all_gather` into a list")
def all_gather(rank, world):
    outs = [torch.empty(N) for _ in range(world)]
    dist.all_gather(outs, mine(rank))
    return torch.cat(outs), all_of(world).flatten()


@call("`all_to_all_single`")
def all_to_all_single(rank, world):
    out = torch.empty(N * world)
    dist.all_to_all_single(out, mine(rank, N * world))
    return out, torch.cat([all_of(world, N * world)[r].chunk(world)[rank] for r in range(world)])


@call("`all_to_all_single` with splits")
def all_to_all_uneven(rank, world):
    sends = [2000 * (rank + to) for to in range(world)]
    comes = [2000 * (r + rank) for r in range(world)]
    out = torch.empty(sum(comes))
    dist.all_to_all_single(out, mine(rank, sum(sends)), comes, sends)
    parts = []
    for r in range(world):
        sizes = [2000 * (r + to) for to in range(world)]
        parts.append(mine(r, sum(sizes)).split(sizes)[rank])
    return out, torch.cat(parts)


@call("functional collectives, coalesced too")
def functional(rank, world):
    group = dist.group.WORLD
    have = [funcol.all_reduce(mine(rank), "sum", group),
            funcol.all_gather_tensor(mine(rank), 0, group),
            funcol.reduce_scatter_tensor(mine(rank, N * world), "sum", 0, group),
            *funcol.all_reduce_coalesced([mine(rank), mine(rank, seed=1)], "sum", group),
            *funcol.all_gather_into_tensor_coalesced([mine(rank), mine(rank, 5)], group),
            *funcol.reduce_scatter_tensor_coalesced([mine(rank, N * world), mine(rank, 2 * world)],
                                                    "sum", [0, 0], group)]
    everyone = all_of(world, N * world).sum(0)
    want = [all_of(world).sum(0), all_of(world).flatten(), everyone.chunk(world)[rank],
            all_of(world).sum(0), all_of(world, seed=1).sum(0), all_of(world).flatten(),
            all_of(world, 5).flatten(), everyone.chunk(world)[rank],
            all_of(world, 2 * world).sum(0).chunk(world)[rank]]
    return torch.cat([t.flatten() + 0 for t in have]), torch.cat(want)


@call("`torch.compile` of functional collectives and of `all_reduce`")
def compiled(rank, world):
    @torch.compile(backend="aot_eager", fullgraph=True)
    def function(t):
        total = funcol.all_reduce(t * 2, "sum", dist.group.WORLD)
        return funcol.all_gather_tensor(total + 1, 0, dist.group.WORLD)

    @torch.compile(backend="aot_eager")
    def in_place(t):
        t = t * 2
        dist.all_reduce(t)
        return t + 1

    total = 2 * all_of(world).sum(0) + 1
    return (torch.cat([function(mine(rank)), in_place(mine(rank))]),
            torch.cat([total.repeat(world), total]))


@call("DTensor: `full_tensor()`, `redistribute()`")
def dtensor(rank, world):
    mesh = init_device_mesh("cpu", (world,))
    whole = mine(0, N * world).view(world * 64, -1)
    sharded = distribute_tensor(whole, mesh, [Shard(0)])
    partial = DTensor.from_local(mine(rank), mesh, [Partial()])
    return (torch.cat([sharded.full_tensor().flatten(),
                       partial.redistribute(placements=[Replicate()]).to_local()]),
            torch.cat([whole.flatten(), all_of(world).sum(0)]))


@call("DTensor: `parallelize_module()`, whose all_reduce carries activations")
def tensor_parallel(rank, world):
    def make_net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(32, 96), nn.ReLU(), nn.Linear(96, 64))

    whole, shared = make_net(), make_net()
    parallelize_module(shared, init_device_mesh("cpu", (world,)),
                       {"0": ColwiseParallel(), "2": RowwiseParallel()})
    x = mine(0).view(128, 32)
    have = [shared(x).detach(), *torch.autograd.grad(shared(x).pow(2).sum(), [shared[0].weight])]
    want = [whole(x).detach(), *torch.autograd.grad(whole(x).pow(2).sum(), [whole[0].weight])]
    # Gradients of 128 examples, relative to their size.
    return (torch.cat([have[0].flatten(), have[1].full_tensor().flatten() / want[1].abs().max()]),
            torch.cat([want[0].flatten(), want[1].flatten() / want[1].abs().max()]))


@call("groups of some ranks")
def subgroups(rank, world):
    pairs = [dist.new_group([0, world - 1]), dist.new_group(list(range(world)))]
    t, u = mine(rank), mine(rank)
    if rank in (0, world - 1):
        dist.all_reduce(t, group=pairs[0])
        want = mine(0) + (mine(world - 1) if world > 1 else 0)
    else:
        want = mine(rank)
    dist.all_reduce(u, group=pairs[1])
    return torch.cat([t, u]), torch.cat([want, all_of(world).sum(0)])


@call("integers, bool, MAX, broadcast, gather, scatter, send, recv, objects")
def exact_ones(rank, world):
    """What no codec touches; also objects, broadcast, gather, scatter, send, recv."""
    have, want = [], []
    for dtype in (torch.int64, torch.int32, torch.uint8, torch.bool):
        t = (mine(rank) > 0).to(dtype)
        op = dist.ReduceOp.MAX if dtype == torch.bool else dist.ReduceOp.SUM
        dist.all_reduce(t, op)
        have.append(t.float())
        exact = (all_of(world) > 0).sum(0)
        want.append((exact > 0).float() if dtype == torch.bool else exact.float())
    t = mine(rank)
    dist.all_reduce(t, dist.ReduceOp.MAX)
    have.append(t)
    want.append(all_of(world).max(0).values)
    t = mine(rank)
    dist.broadcast(t, 1)
    have.append(t)
    want.append(mine(1))
    outs = [torch.empty(N) for _ in range(world)] if rank == 0 else None
    dist.gather(mine(rank), outs, 0)
    have.append(torch.cat(outs) if rank == 0 else torch.zeros(0))
    want.append(all_of(world).flatten() if rank == 0 else torch.zeros(0))
    t = torch.empty(N)
    dist.scatter(t, list(all_of(world)) if rank == 0 else None, 0)
    have.append(t)
    want.append(mine(rank))
    if rank < 2:
        t = mine(0) if rank == 0 else torch.empty(N)
        dist.send(t, 1) if rank == 0 else dist.recv(t, 0)
        have.append(t)
        want.append(mine(0))
    objects = [None] * world
    dist.all_gather_object(objects, {"rank": rank})
    assert [o["rank"] for o in objects] == list(range(world))
    dist.barrier()
    return torch.cat(have), torch.cat(want)


@call("sparse tensors (over Gloo; MPI's backend refuses them)")
def sparse(rank, world):
    t = torch.sparse_coo_tensor([[rank]], [1.0], (world,))
    dist.all_reduce(t)
    return t.to_dense(), torch.ones(world)


@call("DistributedDataParallel with ZeroRedundancyOptimizer")
def zero_redundancy(rank, world):
    from torch.distributed.optim import ZeroRedundancyOptimizer
    torch.manual_seed(0)
    ddp = nn.parallel.DistributedDataParallel(nn.Linear(64, 64))
    optimizer = ZeroRedundancyOptimizer(ddp.parameters(), torch.optim.SGD, lr=0.1)
    torch.manual_seed(0)
    plain = nn.Linear(64, 64)
    ddp(mine(rank, 640).view(10, 64)).pow(2).mean().backward()
    optimizer.step()
    sum(plain(mine(r, 640).view(10, 64)).pow(2).mean() for r in range(world)).div(world).backward()
    with torch.no_grad():
        for p in plain.parameters():
            p -= 0.1 * p.grad
    return ddp.module.weight.detach().flatten(), plain.weight.detach().flatten()


def all_calls(rank, world, without=()):
    import thinwire
    answers = {}
    for name, function in CALLS.items():
        if name in without:
            continue
        before = thinwire.stats()
        have, want = function(rank, world)
        after = thinwire.stats()
        error = (have - want).abs().max().item() if have.numel() else 0.0
        answers[name] = (error, after["coded"] - before["coded"], have.shape == want.shape)
    return answers, thinwire.stats()


def options(spec):
    import thinwire
    return thinwire.ProcessGroupOptions(spec, all_gather=spec, all_to_all=spec)


# Calls in which nothing is for a codec.
NEVER_CODED = {"exact_ones", "sparse"}
# Their calls run on groups of their own.
ELSEWHERE = {"subgroups"}


class Collectives(unittest.TestCase):
    def test_values_with_a_codec(self):
        for world in (2, 3):
            for answers, stats in run_ranks(world, all_calls, backend="thinwire",
                                            options=options("quantize(bits=8)")):
                for name, (error, coded, same_shape) in answers.items():
                    with self.subTest(name, world=world):
                        self.assertTrue(same_shape)
                        self.assertLess(error, 1e-5 if name in NEVER_CODED else 0.15)
                        if name not in ELSEWHERE:
                            self.assertEqual(coded > 0, name not in NEVER_CODED)
                self.assertGreater(stats["ratio"], 2.5)

    def test_the_documents_table_is_this_one(self):
        import os
        import pathlib
        text = pathlib.Path(os.environ["THINWIRE_SOURCE_DIR"], "docs", "python.md").read_text(
            encoding="utf-8")
        table = text[text.index("| way to communicate |"):].split("\n\n")[0].splitlines()[2:]
        self.assertEqual(table, [f"| {title} | {'exact' if name in NEVER_CODED else 'codec'} |"
                                 for name, title in TITLES.items()])

    def test_values_without(self):
        for answers, stats in run_ranks(2, all_calls, backend="thinwire", options=options("none")):
            for name, (error, coded, _) in answers.items():
                with self.subTest(name):
                    self.assertLess(error, 1e-5)
                    self.assertEqual(coded, 0)
            self.assertEqual(stats["sent_bytes"], 0)

    def test_without_a_codec_the_bits_are_gloos(self):
        ours = run_ranks(3, values_of_all_calls, backend="thinwire", options=options("none"))
        gloos = run_ranks(3, values_of_all_calls, backend="gloo")
        for mine_, theirs in zip(ours, gloos):
            for name, value in theirs.items():
                self.assertTrue(torch.equal(mine_[name], value), name)

    def test_the_environments_spec_is_used(self):
        import os
        os.environ["THINWIRE_COMPRESSION"] = "quantize(bits=8)"
        self.addCleanup(os.environ.pop, "THINWIRE_COMPRESSION")
        for stats in run_ranks(2, one_all_reduce, backend="thinwire"):
            self.assertEqual(stats["operations"]["all_reduce"]["coded"], 1)

    def test_mistakes(self):
        def job(rank, world):
            import thinwire
            return (error_of(thinwire.stats),
                    error_of(lambda: dist.new_group(backend="thinwire", pg_options=3)),
                    error_of(lambda: dist.new_group(backend="thinwire", pg_options="quantise")))

        for not_ours, wrong_type, misspelt in run_ranks(2, job, backend="gloo"):
            self.assertIn("the process group's backend is 'gloo'", not_ours[1])
            self.assertIn("got int", wrong_type[1])
            self.assertIn("quantize", misspelt[1])
            self.assertEqual(misspelt[0], "InvalidArgument")


def values_of_all_calls(rank, world):
    return {name: function(rank, world)[0] for name, function in CALLS.items()}


def one_all_reduce(rank, world):
    import thinwire
    dist.all_reduce(mine(rank))
    return thinwire.stats()


if __name__ == "__main__":
    unittest.main()
