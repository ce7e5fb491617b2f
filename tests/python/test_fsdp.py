"""FSDP2 and HSDP over the compressing backend."""

import unittest

from ranks import error_of, run_ranks

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(),
                         nn.Linear(128, 8))


def batch(step, rank, world):
    """The same 48 examples of a step, shared out."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(48, 64, generator=generator)
    x = x.chunk(world)[rank]
    return x, x[:, :8].argmax(1)


def train(net, rank, world, steps):
    optimizer = torch.optim.SGD(net.parameters(), 0.2, momentum=0.9)
    losses = []
    for step in range(steps):
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


def job(rank, world, weights, steps, mesh_shape=None):
    import thinwire
    net = make_net()
    mesh = (init_device_mesh("cpu", (world,)) if mesh_shape is None else
            init_device_mesh("cpu", mesh_shape, mesh_dim_names=("replicate", "shard")))
    for layer in (net[0], net[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    groups = thinwire.fsdp.compress(net, weights) if weights else 0
    losses = train(net, rank, world, steps)
    stats = thinwire.stats(mesh.get_group(mesh.ndim - 1))
    state = thinwire.state_dict(mesh.get_group(mesh.ndim - 1))
    return sum(losses[-5:]) / 5, groups, stats, sorted(state), whole(net)


def hybrid_job(rank, world):
    """(stats, names of the state) of the groups of the shards and of the replicas."""
    import thinwire
    net = make_net()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    for layer in (net[0], net[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    thinwire.fsdp.compress(net)
    train(net, rank, world, 3)
    groups = [mesh.get_group(name) for name in ("shard", "replicate")]
    return [(thinwire.stats(group), sorted(thinwire.state_dict(group))) for group in groups]


def options(**specs):
    import thinwire
    return thinwire.ProcessGroupOptions(**specs)


class Fsdp(unittest.TestCase):
    STEPS = 60

    def reference(self, world):
        return run_ranks(world, job, "", self.STEPS, backend="thinwire",
                         options=options(compression="none"))[0]

    def test_gradients_at_4_bits_train_as_well_as_uncompressed(self):
        want, _, none, _, _ = self.reference(2)
        self.assertEqual(none["coded"], 0)
        for weights, all_gather in (("as_they_are", "cast(bf16)"), ("deltas", "quantize(bits=6)")):
            with self.subTest(weights):
                results = run_ranks(
                    2, job, weights, self.STEPS, backend="thinwire",
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
        want = self.reference(2)[0]
        spec = options(compression="quantize(bits=2, bucket=4096)", all_gather="none")
        keyed = run_ranks(2, job, "as_they_are", self.STEPS, backend="thinwire", options=spec)[0]
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

        def twice(rank, world):
            net = make_net()
            fully_shard(net, mesh=init_device_mesh("cpu", (world,)))
            thinwire.fsdp.compress(net)
            return error_of(lambda: thinwire.fsdp.compress(net))

        for _, text in run_ranks(2, twice, backend="thinwire"):
            self.assertIn("was called for this module before", text)


if __name__ == "__main__":
    unittest.main()
