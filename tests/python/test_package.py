"""The package beside torch: backends without an import, refusals, and what its parts compute."""

import os
import subprocess
import sys
import time
import unittest

from ranks import BUILD, error_of, run_ranks

import torch
import torch.distributed as dist


def run_python(code, unset=(), **environment):
    paths = os.pathsep.join([str(BUILD / "python"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          timeout=100, check=False,
                          env={name: value for name, value in {
                              **os.environ, "PYTHONPATH": paths}.items() if name not in unset}
                          | environment)


class Import(unittest.TestCase):
    def test_importing_torch_makes_the_backends_known(self):
        done = run_python("import torch, os, sys; print(torch.distributed.Backend.backend_list); "
                          "print('record', os.environ.get('TORCH_FR_BUFFER_SIZE')); "
                          "print([m for m in sys.modules if m.startswith('thinwire')])", unset=("TORCH_FR_BUFFER_SIZE",))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("'thinwire', 'thinwire_mpi'", done.stdout)
        self.assertIn("['thinwire_autoload']", done.stdout)  # and nothing else was loaded
        self.assertIn("record None", done.stdout)

    def test_a_command_without_its_program_says_where_it_is(self):
        done = run_python("from thinwire import _cli; _cli.main()")
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"^thinwire: the program \S+ is not there: install thinwire's")

    def test_the_package_keeps_gloo_from_its_record(self):
        """Which is not made for several threads, unless the program has asked for one."""
        code = "import os, thinwire; print(os.environ.get('TORCH_FR_BUFFER_SIZE'))"
        # And it may be imported before torch.
        first = code + "; import torch; print(thinwire.codecs()[0][0])"
        for code, asked, found in ((first, {}, ["0", "identity"]),
                                   (code, {"TORCH_FR_BUFFER_SIZE": "20"}, ["20"]),
                                   (code, {"TORCH_NCCL_TRACE_BUFFER_SIZE": "20"}, ["None"])):
            done = run_python(code, unset=("TORCH_FR_BUFFER_SIZE",), **asked)
            self.assertEqual(done.stdout.split(), found, done.stderr)

    def test_a_package_that_cannot_be_loaded_does_not_break_torch(self):
        code = ("import sys; sys.modules['thinwire._C'] = None\n"
                "import torch, torch.distributed as dist\n"
                "print('torch is there')\n"
                "try: dist.init_process_group('thinwire', init_method='tcp://127.0.0.1:0', rank=0,"
                " world_size=1)\n"
                "except RuntimeError as error: print(type(error).__name__, error)")
        done = run_python(code)
        self.assertIn("torch is there", done.stdout, done.stderr)
        self.assertIn("cannot be loaded", done.stdout)
        self.assertIn("install the wheel of `make wheel`, made with this Python", done.stdout)

    def test_another_torch_is_refused_with_a_sentence(self):
        from thinwire import _torch
        kind, text = error_of(lambda: _torch.check_version("2.11.0", "2.12.1+cu130"))
        self.assertEqual(kind, "Error")
        self.assertIn("built for torch 2.11 and found 2.12.1+cu130", text)
        self.assertIn("install torch 2.11", text)
        _torch.check_version("2.11.0", "2.11.3")

    def test_errors_are_runtime_errors_and_what_they_say(self):
        import thinwire
        self.assertTrue(issubclass(thinwire.Error, RuntimeError))
        with self.assertRaises(ValueError):
            thinwire.plan(torch.nn.Linear(64, 64), "quantise(bits=4)")
        with self.assertRaisesRegex(thinwire.InvalidArgument, "quantize"):
            thinwire.plan(torch.nn.Linear(64, 64), "quantise(bits=4)")
        with self.assertRaisesRegex(thinwire.FileError, "nowhere"):
            thinwire.peft.manifest("nowhere.compeft")

    def test_before_initialisation(self):
        import thinwire
        for call in (lambda: thinwire.compress(torch.nn.Linear(4, 4), "none"), thinwire.stats):
            kind, text = error_of(call)
            self.assertEqual(kind, "Error")
            self.assertIn("init_process_group()", text)


class Plan(unittest.TestCase):
    def test_small_and_flat_layers_stay_uncompressed(self):
        import thinwire
        model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 2))
        plan = thinwire.plan(model, "topk(density=0.1)", overrides={"1.*": "cast(bf16)"})
        self.assertIn("topk", plan["0.weight"])
        self.assertEqual(plan["0.bias"], "none")
        self.assertIn("bf16", plan["1.weight"])


class Peft(unittest.TestCase):
    def test_tensors_and_files_round_trip(self):
        import tempfile

        import thinwire
        torch.manual_seed(0)
        base = {"w": torch.randn(50, 40), "v": torch.randn(30).bfloat16()}
        tuned = {name: (t + 0.1 * torch.randn(t.shape).to(t.dtype)) for name, t in base.items()}
        with tempfile.TemporaryDirectory() as folder:
            out = f"{folder}/a.compeft"
            result = thinwire.peft.pack(tuned, out, 0.5, base=base)
            self.assertEqual(result["kept"], 1015)
            applied = thinwire.peft.apply(base, out)
            self.assertEqual(applied["v"].dtype, torch.bfloat16)
            moved = (applied["w"] - base["w"]).flatten()
            self.assertLess((moved - (tuned["w"] - base["w"]).flatten()).norm(), 0.1 * 2000**0.5)
            self.assertGreater((moved != 0).sum(), 900)
            delta = {"w": torch.randn(20, 20)}
            thinwire.peft.pack(delta, f"{folder}/b.compeft", 1.0)
            thinwire.peft.pack({"w": -delta["w"]}, f"{folder}/c.compeft", 1.0)
            files = [f"{folder}/b.compeft", f"{folder}/c.compeft"]
            cosines = thinwire.peft.similarity(files)
            self.assertAlmostEqual(cosines[0][1], -1, places=5)
            back = thinwire.peft.unpack(files[0])
            self.assertTrue(torch.equal(back["w"].sign(), delta["w"].sign()))
            thinwire.peft.merge(files, f"{folder}/m.compeft", method="average")
            self.assertEqual(thinwire.peft.unpack(f"{folder}/m.compeft")["w"].abs().max(), 0)
            self.assertEqual(thinwire.peft.manifest(files[0])["density"], 1.0)


def outer_job(rank, world):
    import thinwire
    torch.manual_seed(rank)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64),
                                torch.nn.Linear(64, 4))
    inner = torch.optim.AdamW(model.parameters(), 1e-2)
    outer = thinwire.OuterOptimizer(model, inner, inner_steps=5, compression="quantize(bits=8)")
    met = []
    for step in range(12):
        torch.manual_seed(100 * step + rank)
        outer.zero_grad()
        model(torch.randn(16, 64)).pow(2).mean().backward()
        met.append(outer.step())
        if met[-1]:
            weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    state = outer.state_dict()
    again = thinwire.OuterOptimizer(model, inner, inner_steps=5, compression="quantize(bits=8)")
    again.load_state_dict(state)
    same = again.state_dict() == state
    return met, weights, outer.stats(), same, error_of(
        lambda: thinwire.OuterOptimizer(model, inner, inner_steps=0))


def outer_module_job(rank, world):
    """What happens to the module and to the inner optimizer after the OuterOptimizer was made."""
    import thinwire
    torch.manual_seed(rank)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
    inner = torch.optim.AdamW(model.parameters(), 1e-2)
    outer = thinwire.OuterOptimizer(model, inner, inner_steps=50, compression="none")
    model(torch.randn(16, 8)).pow(2).mean().backward()
    outer.step()
    mean = model[1].running_mean.clone()
    model[1].running_mean = mean  # programs write self.mean = ... in forward()
    outer.outer_step()
    followed = [model[1].running_mean, mean is model[1].running_mean]
    # A rank whose delta is not finite forgets the moments of that parameter.
    with torch.no_grad():
        model[0].weight[rank] = float("nan") if rank == 1 else 0
    inner.state[model[0].weight]["exp_avg"][0, 0] = float("nan") if rank == 1 else 0
    outer.outer_step()
    kept = model[0].weight in inner.state, model[0].bias in inner.state
    found = {}
    model[1].running_mean = torch.zeros(8, dtype=torch.float64 if rank == 1 else torch.float32)
    found["buffer"] = error_of(outer.outer_step)
    model[1].running_mean = torch.zeros(8)
    model.load_state_dict({name: t.clone() for name, t in model.state_dict().items()}, assign=True)
    found["assign"] = error_of(outer.step)
    found["assign at a meeting"] = error_of(outer.outer_step)
    return followed, kept, found


def one_rank_job(rank, world):
    """What is wrong on rank 1 alone. Of each mistake, what this rank is told."""
    import thinwire
    found = {}
    wrong = rank == 1
    thinwire.OuterOptimizer  # loads the compiled part, which takes its time
    begun = time.monotonic()
    model = torch.nn.Linear(8, 8)
    inner = torch.optim.SGD(model.parameters(), 1e-2)

    def outer(**options):
        return thinwire.OuterOptimizer(model, inner, compression="none", **options)

    found["granularity"] = error_of(lambda: outer(granularity="row" if wrong else "tensor"))
    found["type"] = error_of(lambda: outer(inner_steps="many" if wrong else 5))
    found["inner"] = error_of(lambda: thinwire.OuterOptimizer(model, 3 if wrong else inner))
    found["group options"] = error_of(lambda: dist.new_group(
        backend="thinwire", pg_options=3 if wrong else "quantize(bits=8)"))
    group = dist.new_group(backend="thinwire", pg_options="quantize(bits=8)")
    kept = thinwire.state_dict(group)
    found["group state"] = error_of(lambda: thinwire.load_state_dict(None if wrong else kept, group))
    made = outer(inner_steps=5)
    state = made.state_dict()
    found["state"] = error_of(lambda: made.load_state_dict({"a": 3} if wrong else state))
    found["gate"] = error_of(lambda: thinwire.MoELayer(8, 16, 4, gate="top" if wrong else "topk"))
    found["rows"] = error_of(lambda: thinwire.MoELayer(8, 16, 4, rows="spectral(" if wrong else ""))
    layer = thinwire.MoELayer(8, 16, 4)
    found["full state"] = error_of(lambda: layer.load_full_state(3 if wrong else {}))
    found["width"] = error_of(lambda: layer(torch.randn(6, 7 if wrong else 8)))
    # Groups of their own: a rank that was refused may have left the other one in a collective.
    layer = thinwire.MoELayer(8, 16, 4, group=dist.new_group())
    found["tokens"] = error_of(lambda: layer([1.0] if wrong else torch.randn(6, 8)))
    layer = thinwire.MoELayer(8, 16, 4, group=dist.new_group())
    if wrong:
        layer.router.weight = torch.nn.Parameter(layer.router.weight.detach().clone())
    found["replaced"] = error_of(lambda: layer(torch.randn(6, 8)))
    return found, time.monotonic() - begun


def moe_job(rank, world):
    import thinwire
    torch.manual_seed(5)
    tokens = torch.randn(2, 6, 8)[rank].requires_grad_()
    layer = thinwire.MoELayer(8, 16, experts=4, top_k=2)
    names = [name for name, _ in layer.named_parameters()]
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        output, auxiliary = layer(tokens)
        loss = (output - 1).pow(2).mean()
        (loss + auxiliary).backward()
        for p in layer.parameters():
            if all(p is not e for e in layer.expert_parameters()):
                dist.all_reduce(p.grad)
                p.grad /= world
        optimizer.step()
        losses.append(loss.item())
    state = layer.full_state()
    other = thinwire.MoELayer(8, 16, experts=4, top_k=2, seed=9)
    other.load_full_state(state)
    same = torch.equal(other(tokens)[0], layer(tokens)[0])
    held = torch.nn.Sequential(layer)
    assigned = error_of(lambda: held.load_state_dict(held.state_dict(), assign=True))
    held.load_state_dict(held.state_dict())
    layer.router.weight = torch.nn.Parameter(layer.router.weight.detach().clone())
    replaced = error_of(lambda: layer(tokens))
    return (names, losses, tokens.grad is not None, same, error_of(lambda: other.double()), assigned,
            replaced)


class Mixture(torch.nn.Module):
    """Its output is the loss."""

    def __init__(self, seed):
        import thinwire
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.mixture = torch.nn.Linear(8, 8), thinwire.MoELayer(8, 16, 4, seed=seed)

    def forward(self, x):
        output, loss = self.mixture(self.first(x))
        return (output - 1).pow(2).mean() + loss


def checkpoint_job(rank, world, folder):
    """A compressed mixture of experts and an OuterOptimizer, saved half-way and loaded by
    torch.distributed.checkpoint: whether the weights have the bits of the job that went on; and
    without the handle, and without the OuterOptimizer."""
    import thinwire
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions, get_state_dict, set_state_dict)

    options = StateDictOptions(flatten_optimizer_state_dict=True)

    def start(seed):
        torch.manual_seed(seed)
        model = Mixture(seed)
        handle = thinwire.compress(model, "topk(density=0.2)", min_numel=1)
        dense = torch.nn.Linear(64, 64)
        adam = torch.optim.Adam(model.parameters(), 1e-2)
        sgd = torch.optim.SGD(dense.parameters(), 0.1)
        return handle, adam, dense, thinwire.OuterOptimizer(dense, sgd, inner_steps=3)

    def train(handle, adam, dense, outer, steps):
        for step in steps:
            torch.manual_seed(10 * step + rank)
            adam.zero_grad()
            outer.zero_grad()
            handle(torch.randn(6, 8)).backward()
            adam.step()
            (dense(torch.randn(4, 64)) - 1).pow(2).mean().backward()
            outer.step()
        return torch.cat([p.detach().flatten() for model in (handle.module, dense)
                          for p in model.parameters()])

    def parts(handle, adam, dense, outer):
        weights, moments = get_state_dict(handle.module, adam, options=options)
        # Between two meetings each rank has weights of its own.
        return {"model": weights, "moments": moments, "handle": handle, "outer": outer,
                "dense": {f"rank {rank}": dense.state_dict()}}

    job = start(0)
    train(*job, range(4))
    dcp.save(parts(*job), checkpoint_id=folder)
    want = train(*job, range(4, 8))
    same = []
    for without in ("", "handle", "outer"):
        again = start(1)
        saved = parts(*again)
        saved.pop(without, None)
        dcp.load(saved, checkpoint_id=folder)
        set_state_dict(again[0].module, again[1], model_state_dict=saved["model"],
                       optim_state_dict=saved["moments"], options=options)
        again[2].load_state_dict(saved["dense"][f"rank {rank}"])
        same.append(torch.equal(train(*again, range(4, 8)), want))
    return same


def experts_job(rank, world):
    """Experts and router after three steps of DistributedDataParallel with compress()."""
    import thinwire
    DDP = torch.nn.parallel.DistributedDataParallel
    averaged = error_of(lambda: thinwire.compress(DDP(Mixture(3)), "none"))
    net = Mixture(3)
    net._ddp_params_and_buffers_to_ignore = {"first.bias"}
    thinwire.ignore_experts(net)
    ignored = set(net._ddp_params_and_buffers_to_ignore)
    net = Mixture(3)
    handle = thinwire.compress(net, "quantize(bits=8)", min_numel=1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    first = net.mixture.expert_parameters()[0].detach().clone()
    for step in range(3):
        torch.manual_seed(10 * step + rank)
        optimizer.zero_grad()
        handle(torch.randn(6, 8)).backward()
        optimizer.step()
    return (averaged, ignored, sorted(handle.plan()), first,
            net.mixture.expert_parameters()[0].detach(), net.mixture.router.weight.detach())


RESTARTED = """
import os, pathlib, torch, torch.distributed as dist, thinwire
from torch.nn.parallel import DistributedDataParallel as DDP

def start():
    torch.manual_seed(0)
    ddp = DDP(torch.nn.Sequential(torch.nn.Linear(40, 96), torch.nn.ReLU(), torch.nn.Linear(96, 4)))
    return ddp, thinwire.compress(ddp, "topk(density=0.05)"), torch.optim.Adam(ddp.parameters(), 1e-2)

def train(ddp, optimizer, step):
    torch.manual_seed(100 * step + rank)
    optimizer.zero_grad()
    ddp(torch.randn(16, 40)).pow(2).mean().backward()
    optimizer.step()

dist.init_process_group("gloo")
rank, attempt = dist.get_rank(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
ddp, handle, optimizer = start()
file = pathlib.Path(os.environ["FOLDER"], f"{rank}.pt")
first = 0
if file.exists():
    saved = torch.load(file)
    first = saved["step"]
    ddp.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    handle.load_state_dict(saved["thinwire"])
for step in range(first, 8):
    train(ddp, optimizer, step)
    if step == 4:
        torch.save({"step": step + 1, "model": ddp.state_dict(), "thinwire": handle.state_dict(),
                    "optimizer": optimizer.state_dict()}, file)
        dist.barrier()
    if attempt == 0 and step == 6 and rank == 1:
        os._exit(3)
uninterrupted, _, other = start()
for step in range(8):
    train(uninterrupted, other, step)
same = all(torch.equal(a, b) for a, b in zip(ddp.parameters(), uninterrupted.parameters()))
# One write: what the ranks print piece by piece is mixed.
os.write(1, f"rank {rank} attempt {attempt} from step {first} same bits {same}\\n".encode())
dist.destroy_process_group()
"""


class Parts(unittest.TestCase):
    def test_checkpoints_of_all_parts(self):
        import tempfile
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(run_ranks(2, checkpoint_job, folder), [[True, False, False]] * 2)

    def test_experts_stay_with_their_ranks_under_ddp(self):
        zero, one = run_ranks(2, experts_job)
        for rank, (averaged, ignored, plan, first, expert, router) in enumerate((zero, one)):
            self.assertEqual(averaged[0], "InvalidArgument")
            self.assertIn("call thinwire.ignore_experts(model) before", averaged[1])
            mine = f"mixture.experts.{2 * rank}_{2 * rank + 1}."
            self.assertEqual(ignored, {"first.bias", *(mine + n for n in ("w1", "w2", "b1", "b2"))})
            self.assertEqual(plan, ["first.bias", "first.weight", "mixture.router.weight"])
            self.assertFalse(torch.equal(first, expert))
            self.assertTrue(torch.equal(router, zero[5]))
        self.assertFalse(torch.equal(zero[3], one[3]))
        self.assertFalse(torch.equal(zero[4], one[4]))

    def test_an_elastic_restart_goes_on_with_the_same_bits(self):
        import tempfile
        with tempfile.TemporaryDirectory() as folder:
            script = os.path.join(folder, "train.py")
            with open(script, "w", encoding="utf-8") as file:
                file.write(RESTARTED)
            paths = os.pathsep.join([str(BUILD / "python"), os.environ.get("PYTHONPATH", "")])
            done = subprocess.run(
                [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
                 "--max-restarts=1", "--monitor-interval=0.1", script], capture_output=True,
                text=True, timeout=200, check=False,
                env={**os.environ, "PYTHONPATH": paths, "FOLDER": folder,
                     # Else torch's ranks of the second round meet the addresses of the first one's.
                     "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        for rank in range(2):
            self.assertIn(f"rank {rank} attempt 1 from step 5 same bits True", done.stdout)

    def test_outer_optimizer(self):
        results = run_ranks(2, outer_job)
        for met, weights, stats, same, error in results:
            self.assertEqual([i for i, m in enumerate(met) if m], [4, 9])
            self.assertTrue(torch.equal(weights, results[0][1]))
            self.assertEqual(stats["outer_steps"], 2)
            self.assertLess(stats["sent_bytes"], stats["dense_bytes"] / 2)
            self.assertTrue(same)
            self.assertEqual(error[0], "InvalidArgument")
            self.assertIn("inner_steps must be positive, got 0", error[1])

    def test_the_module_of_an_outer_optimizer_is_followed(self):
        results = run_ranks(2, outer_module_job)
        for rank, ((mean, same_object), kept, found) in enumerate(results):
            self.assertTrue(torch.equal(mean, results[0][0][0]))
            self.assertGreater(mean.abs().max(), 0)
            self.assertTrue(same_object)
            self.assertEqual(kept, (rank == 0, True))
            self.assertIn("buffer '1.running_mean' was torch.float32 [8] on cpu when the "
                          "OuterOptimizer was made and is torch.float64", found["buffer"][1])
            for name in ("assign", "assign at a meeting"):
                self.assertIn("parameter '0.weight' was replaced by another tensor", found[name][1])

    def test_a_mistake_of_one_rank_is_told_to_all(self):
        for found, seconds in run_ranks(2, one_rank_job):
            self.assertLess(seconds, 40)  # the group's timeout is 60 s
            for name, words in (("granularity", "rank 1: "), ("type", "rank 1: "),
                                ("state", "rank 1: the state holds 'a' and this is rank 1"),
                                ("inner", "rank 1: thinwire.OuterOptimizer takes a torch.optim."),
                                ("group options", "rank 1: pg_options of a thinwire group must be"),
                                ("group state", "rank 1: a state is what state_dict()"),
                                ("tokens", "tokens of a thinwire.MoELayer must be a tensor, got list"),
                                ("width", "tokens of shape [..., 8] expected, got [6, 7]"),
                                ("gate", "rank 1: "), ("rows", "rank 1: "),
                                ("full state", "rank 1: a state is a dict of tensors, got int"),
                                ("replaced", "'router.weight' of a thinwire.MoELayer was replaced")):
                with self.subTest(name):
                    self.assertEqual(found[name][0], "InvalidArgument", found[name][1])
                    self.assertIn(words, found[name][1])
            self.assertIn("'row'", found["granularity"][1])
            self.assertIn("'top'", found["gate"][1])

    def test_moe_layer(self):
        for names, losses, has_gradient, same, error, assigned, replaced in run_ranks(2, moe_job):
            self.assertIn("router.weight", names)
            self.assertLess(losses[-1], 0.9 * losses[0])
            self.assertTrue(has_gradient)
            self.assertTrue(same)
            self.assertIn("keeps its float32 parameters", error[1])
            self.assertIn("load without assign=True", assigned[1])
            self.assertIn("'router.weight' of a thinwire.MoELayer was replaced", replaced[1])


if __name__ == "__main__":
    unittest.main()
