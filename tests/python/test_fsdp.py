"""FSDP2 and HSDP over the compressing backend."""

import functools
import io
import tempfile
import unittest

from ranks import error_of, run_ranks

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


def make_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(),
                         nn.Linear(128, 8))


def batch(step, rank, world):
    """The same 48 examples of a step, shared out."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(48, 64, generator=generator)
    x = x.chunk(world)[rank]
    return x, x[:, :8].argmax(1)


def train(net, rank, world, steps, optimizer=None, first=0):
    optimizer = optimizer or torch.optim.SGD(net.parameters(), 0.2, momentum=0.9)
    losses = []
    for step in range(first, first + steps):
        x, y = batch(step, rank, world)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def whole(net):
    return torch.cat([(p.full_tensor() if isinstance(p, DTensor) else p).detach().flatten()
                      for p in net.parameters()])


def names_of(group):
    """Names of the tensors that this rank's state of a process group holds."""
    import thinwire
    return sorted(torch.load(io.BytesIO(thinwire.state_dict(group)[f"rank {dist.get_rank()}"])))


def job(rank, world, weights, steps, mesh_shape=None):
    import thinwire
    net = make_net()
    mesh = (init_device_mesh("cpu", (world,)) if mesh_shape is None else
            init_device_mesh("cpu", mesh_shape, mesh_dim_names=("replicate", "shard")))
    for layer in (net[0], net[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    handle = thinwire.fsdp.compress(net, weights) if weights else None
    losses = train(net, rank, world, steps)
    stats = thinwire.stats(mesh.get_group(mesh.ndim - 1))
    if handle and mesh_shape is None:
        assert handle.stats() == stats
    return (sum(losses[-5:]) / 5, len(handle.keys) if handle else 0, stats,
            names_of(mesh.get_group(mesh.ndim - 1)), whole(net))


def hybrid_job(rank, world):
    """(stats, names of the state) of the groups of the shards and of the replicas."""
    import thinwire
    net = make_net()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    for layer in (net[0], net[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    handle = thinwire.fsdp.compress(net)
    train(net, rank, world, 3)
    groups = [mesh.get_group(name) for name in ("shard", "replicate")]
    parts = [(thinwire.stats(group), names_of(group)) for group in groups]
    total = handle.stats()
    assert total["coded"] == sum(stats["coded"] for stats, _ in parts)
    state = handle.state_dict()
    assert list(state) == ["shards", "replicas"]
    handle.load_state_dict(state)
    assert handle.state_dict() == state
    return parts


def checkpoint_job(rank, world, folder):
    """[whether a job has the bits of the one that went on, with what thinwire saved, without]"""
    import thinwire
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    def start(seed):
        net = make_net(seed)
        mesh = init_device_mesh("cpu", (world,))
        for layer in (net[0], net[2]):
            fully_shard(layer, mesh=mesh)
        fully_shard(net, mesh=mesh)
        handle = thinwire.fsdp.compress(net, "deltas")
        return net, torch.optim.AdamW(net.parameters(), 1e-2), handle

    def everything(net, optimizer, handle):
        weights, moments = get_state_dict(net, optimizer)
        return {"model": weights, "optimizer": moments, "thinwire": handle}

    net, optimizer, handle = start(0)
    train(net, rank, world, 4, optimizer)
    dcp.save(everything(net, optimizer, handle), checkpoint_id=folder)
    train(net, rank, world, 4, optimizer, first=4)
    want = whole(net)
    same = []
    for forget in (False, True):
        del net, optimizer, handle
        net, optimizer, handle = start(1)
        saved = everything(net, optimizer, handle)
        if forget:
            saved.pop("thinwire")
        dcp.load(saved, checkpoint_id=folder)
        set_state_dict(net, optimizer, model_state_dict=saved["model"],
                       optim_state_dict=saved["optimizer"])
        train(net, rank, world, 4, optimizer, first=4)
        same.append(torch.equal(whole(net), want))
    return same


def mistakes_job(rank, world):
    """Of each mistake, most of them on rank 1 alone, what this rank is told."""
    import thinwire
    found, wrong = {}, rank == 1

    def sharded():
        net = make_net()
        fully_shard(net, mesh=init_device_mesh("cpu", (world,)))
        return net

    net = sharded()
    compress = thinwire.fsdp.compress
    found["weights"] = error_of(lambda: compress(net, 7 if wrong else "deltas"))
    found["different"] = error_of(lambda: compress(net, "as_they_are" if wrong else "deltas"))
    found["module"] = error_of(lambda: compress(make_net() if wrong else net))
    found["no module"] = error_of(lambda: compress(None if wrong else net))
    handle = compress(net)
    found["twice"] = error_of(lambda: compress(net))
    other = sharded()
    found["name"] = error_of(lambda: compress(other))
    train(other, rank, world, 1)
    compress(other, name="critic")
    state = handle.state_dict()
    found["state"] = error_of(lambda: handle.load_state_dict([] if wrong else state))
    handle.load_state_dict(state)
    plain = dist.new_group(backend="gloo")
    gloo = make_net()
    fully_shard(gloo, mesh=DeviceMesh.from_group(plain, "cpu"))
    found["gloo"] = error_of(lambda: compress(gloo))
    none = dist.new_group(backend="thinwire", pg_options="none")
    exact = make_net()
    fully_shard(exact, mesh=DeviceMesh.from_group(none, "cpu"))
    found["no codec"] = error_of(lambda: compress(exact, "deltas"))
    return found


def options(**specs):
    import thinwire
    return thinwire.ProcessGroupOptions(**specs)


STEPS = 60


@functools.cache
def reference(world):
    """What an uncompressed job of STEPS ends with."""
    return run_ranks(world, job, "", STEPS, backend="thinwire",
                     options=options(compression="none"))[0]


class Fsdp(unittest.TestCase):
    def test_gradients_at_4_bits_train_as_well_as_uncompressed(self):
        want, _, none, _, _ = reference(2)
        self.assertEqual(none["coded"], 0)
        for weights, all_gather in (("as_they_are", "cast(bf16)"), ("deltas", "quantize(bits=6)")):
            with self.subTest(weights):
                results = run_ranks(
                    2, job, weights, STEPS, backend="thinwire",
                    options=options(compression="quantize(bits=4)", all_gather=all_gather))
                for loss, groups, stats, state, parameters in results:
                    self.assertLess(abs(loss - want), 0.1 * want + 0.05)
                    self.assertEqual(groups, 3)
                    # Residuals per shard, by the modules' names.
                    self.assertIn("parts/residual/fsdp/0", state)
                    self.assertEqual("parts/received/fsdp/2" in state, weights == "deltas")
                    sums = stats["operations"]["reduce_scatter"]
                    self.assertGreater(sums["dense_bytes"] / sums["sent_bytes"], 5)
                    gathers = stats["operations"]["all_gather"]
                    self.assertGreater(gathers["dense_bytes"] / gathers["sent_bytes"], 1.8)
                    self.assertTrue(torch.equal(parameters, results[0][4]))

    def test_feedback_needs_the_keys(self):
        """Two bits without feedback lose more than with it."""
        want = reference(2)[0]
        spec = options(compression="quantize(bits=2, bucket=4096)", all_gather="none")
        keyed = run_ranks(2, job, "as_they_are", STEPS, backend="thinwire", options=spec)[0]
        self.assertLess(abs(keyed[0] - want), 0.15 * want + 0.1)
        topk = options(compression="topk(density=0.1)")
        without = run_ranks(2, job, "", 3, backend="thinwire", options=topk)[0][2]
        self.assertEqual(without["coded"], 0)
        self.assertGreater(without["without_key"], 0)
        with_keys = run_ranks(2, job, "as_they_are", 3, backend="thinwire", options=topk)[0][2]
        self.assertEqual(with_keys["without_key"], 0)
        self.assertGreater(with_keys["coded"], 0)

    def test_hybrid_sharding(self):
        results = run_ranks(4, job, "as_they_are", 20, (2, 2), backend="thinwire",
                            options=options(compression="quantize(bits=8)"))
        want = run_ranks(4, job, "", 20, (2, 2), backend="thinwire",
                         options=options(compression="none"))[0][0]
        for loss, _, stats, _, parameters in results:
            # The mesh's groups have the default group's options.
            self.assertGreater(stats["operations"]["reduce_scatter"]["coded"], 0)
            self.assertTrue(torch.equal(parameters, results[0][4]))
            self.assertLess(abs(loss - results[0][0]), 1.0)
        self.assertLess(abs(results[0][0] - want), 0.1 * want + 0.05)

    def test_hybrid_sharding_has_feedback_for_shards_and_replicas(self):
        """Top-k is used for named calls alone."""
        for shards, replicas in run_ranks(4, hybrid_job, backend="thinwire",
                                          options=options(compression="topk(density=0.1)")):
            for stats, state in (shards, replicas):
                self.assertEqual(stats["without_key"], 0)
                self.assertGreater(stats["coded"], 0)
                self.assertTrue(any(name.endswith("/residual/fsdp/0") for name in state), state)

    def test_mistakes(self):
        import thinwire
        self.assertIn("call fully_shard()", error_of(lambda: thinwire.fsdp.compress(make_net()))[1])
        self.assertIn("'as_they_are' or 'deltas'",
                      error_of(lambda: thinwire.fsdp.compress(make_net(), "all"))[1])

        for found in run_ranks(2, mistakes_job, backend="thinwire",
                               options=options(all_gather="quantize(bits=6)")):
            for name, words in (
                    ("weights", "rank 1: weights must be 'as_they_are' or 'deltas', got 7"),
                    ("different", "'weights deltas' on rank 0 and 'weights as_they_are' on rank 1"),
                    ("module", "rank 1: the module has no FSDP parameter group: call fully_shard()"),
                    ("no module", "rank 1: thinwire.fsdp.compress() takes a module after"),
                    ("twice", "was called for this module before"),
                    ("name", "another model on this mesh has the feedback key 'fsdp/': give each"),
                    ("state", "rank 1: a state of FSDP's process groups has the entries ['shards']"),
                    ("gloo", "the process group's backend is 'gloo'"),
                    ("no codec", "weights='deltas' needs a codec for all_gather")):
                with self.subTest(name):
                    self.assertEqual(found[name][0], "InvalidArgument", found[name][1])
                    self.assertIn(words, found[name][1])

    def test_a_checkpoint_goes_on_with_the_same_bits(self):
        with tempfile.TemporaryDirectory() as folder:
            results = run_ranks(2, checkpoint_job, folder, backend="thinwire", options=options(
                compression="quantize(bits=4)", all_gather="quantize(bits=6)"))
        self.assertEqual(results, [[True, False]] * 2)


if __name__ == "__main__":
    unittest.main()
