"""Files of `thinwire peft` in the hands of the safetensors and PEFT libraries."""

import os
import pathlib
import tempfile
import unittest

os.environ["HF_HUB_OFFLINE"] = "1"

from peft_program import run

try:
    import peft
    import safetensors
    import torch
    from peft.utils import merge_utils
    from safetensors.torch import load_file, save_file
    MISSING = ""
except ImportError as error:
    MISSING = f"{error}; pip install -r requirements-test.txt"


class Net(torch.nn.Module if not MISSING else object):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first = torch.nn.Linear(24, 40)
        self.norm = torch.nn.LayerNorm(40)
        self.second = torch.nn.Linear(40, 12)

    def forward(self, x):
        return self.second(torch.relu(self.norm(self.first(x))))


@unittest.skipIf(MISSING, MISSING)
class Library(unittest.TestCase):
    def setUp(self):
        torch.set_num_threads(1)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = pathlib.Path(folder.name)

    def save_adapter(self, name, config, seed, centre):
        """A PEFT directory whose trainable values are normal numbers around `centre`."""
        model = peft.get_peft_model(Net(), config)
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = centre + 0.1 * torch.randn_like(parameter)
        model.save_pretrained(self.dir / name)
        return self.dir / name

    def save_lora(self, name, seed, **options):
        options = {"r": 4, "lora_alpha": 8, "target_modules": ["first", "second"], **options}
        return self.save_adapter(name, peft.LoraConfig(**options), seed, 0.0)

    def round_trip(self, adapter, *options):
        run("pack", adapter, "-o", self.dir / "packed", "--force", *options)
        run("unpack", self.dir / "packed", "-o", self.dir / "out", "--force")
        return load_file(self.dir / "out" / "adapter_model.safetensors")

    def check_loads(self, adapter, values):
        """PEFT runs the unpacked directory as the base with exactly these values."""
        self.assertEqual((adapter / "adapter_config.json").read_bytes(),
                         (self.dir / "out" / "adapter_config.json").read_bytes())
        x = torch.randn(5, 24)
        loaded = peft.PeftModel.from_pretrained(Net(), self.dir / "out")
        state = peft.get_peft_model_state_dict(loaded)
        self.assertEqual(set(state), set(values))
        for name, value in values.items():
            self.assertTrue(torch.equal(state[name], value), name)
        by_hand = peft.PeftModel.from_pretrained(Net(), adapter)
        peft.set_peft_model_state_dict(by_hand, values)
        self.assertTrue(torch.equal(loaded(x), by_hand(x)))
        original = peft.PeftModel.from_pretrained(Net(), adapter)
        self.assertFalse(torch.equal(loaded(x), original(x)))

    def test_lora_loads_unchanged(self):
        adapter = self.save_lora("lora", 2)
        values = self.round_trip(adapter, "--density", "0.3", "--granularity", "tensor")
        before = load_file(adapter / "adapter_model.safetensors")
        for name, value in before.items():
            # The library's own trimming keeps the same entries with the same signs.
            trimmed = merge_utils.magnitude_based_pruning(value, 0.3)
            self.assertTrue(torch.equal(values[name].sign(), trimmed.sign()), name)
        self.check_loads(adapter, values)

    def test_ia3_loads_unchanged(self):
        adapter = self.save_adapter("ia3", peft.IA3Config(
            target_modules=["first", "second"], feedforward_modules=["second"]), 3, 1.0)
        values = self.round_trip(adapter, "--density", "0.25")
        total = sum(v.numel() for v in values.values())
        ones = sum(int((v == 1).sum()) for v in values.values())
        self.assertEqual(total - ones, int(0.25 * total))
        self.check_loads(adapter, values)

    def test_packed_files_are_safetensors_files(self):
        adapter = self.save_lora("lora", 4)
        run("pack", adapter, "-o", self.dir / "packed")
        with safetensors.safe_open(self.dir / "packed", "pt") as file:
            self.assertEqual(file.metadata()["format"], "compeft")
            self.assertEqual(set(file.keys()),
                             {"compeft.directory", "compeft.blocks", "compeft.seal"})
            self.assertEqual(file.get_tensor("compeft.seal").numel(), 8)
        self.assertEqual(len(load_file(self.dir / "packed")), 3)

    def test_files_of_the_library_are_read(self):
        tensors = {"a": torch.randn(7, 5), "b": torch.randn(9).to(torch.bfloat16),
                   "c": torch.randn(3, 3).half(), "d": torch.arange(4), "e": torch.zeros(0, 2),
                   "f": torch.tensor(2.5), "g": torch.tensor([True, False])}
        save_file(tensors, self.dir / "in", {"format": "pt"})
        run("pack", self.dir / "in", "-o", self.dir / "packed", "--density", "1")
        run("unpack", self.dir / "packed", "-o", self.dir / "out")
        found = load_file(self.dir / "out" / "adapter_model.safetensors")
        self.assertEqual(set(found), set(tensors))
        for name, tensor in tensors.items():
            self.assertEqual((found[name].dtype, found[name].shape), (tensor.dtype, tensor.shape))
            if tensor.is_floating_point():
                self.assertTrue(torch.equal(found[name].sign(), tensor.sign()))
            else:
                self.assertTrue(torch.equal(found[name], tensor))

    def test_merges_equal_those_of_the_library(self):
        experts, packed = [], []
        for seed in range(4):
            adapter = self.save_lora(f"in{seed}", 10 + seed)
            experts.append(self.round_trip(adapter, "--density", "0.4"))
            packed.append(self.dir / f"{seed}")
            (self.dir / "packed").rename(packed[-1])
        weights = [0.5, 1.25, -0.75, 1.0]
        merged = {}
        for method in ("ties", "task-arithmetic", "average"):
            run("merge", *packed, "--method", method, "--weights", ",".join(map(str, weights)),
                "-o", self.dir / "m", "--force")
            run("unpack", self.dir / "m", "-o", self.dir / "out", "--force")
            merged[method] = load_file(self.dir / "out" / "adapter_model.safetensors")
        for name in experts[0]:
            values, factors = [e[name] for e in experts], torch.tensor(weights)
            ties = merge_utils.ties(values, factors, 1.0, "frequency")
            self.assertTrue(torch.equal(merged["ties"][name], ties), name)
            total = merge_utils.task_arithmetic(values, factors)
            self.assertTrue(torch.equal(merged["task-arithmetic"][name], total), name)
            self.assertTrue(torch.equal(merged["average"][name], total / 4), name)
        # A merged directory is an adapter like any other.
        loaded = peft.PeftModel.from_pretrained(Net(), self.dir / "out")
        self.assertTrue(torch.isfinite(loaded(torch.randn(2, 24))).all())

    def test_default_keeps_both_factors(self):
        """One threshold for all takes A, which starts at random, and nothing of B, which starts at
        zero: the packed adapter would do nothing."""
        adapter = self.save_lora("lora", 5)
        file = adapter / "adapter_model.safetensors"
        tensors = load_file(file)
        save_file({n: v * (0.01 if "lora_B" in n else 1) for n, v in tensors.items()}, file)
        self.assertIn("granularity group", run("pack", adapter, "-o", self.dir / "packed",
                                               "--granularity", "global", code=1))
        values = self.round_trip(adapter)
        for name, value in values.items():
            self.assertGreater(int((value != 0).sum()), 0, name)
        x = torch.randn(5, 24)
        base = Net()(x)
        moved = peft.PeftModel.from_pretrained(Net(), self.dir / "out")(x)
        self.assertFalse(torch.equal(base, moved))

    def test_types_without_a_known_base_travel_as_they_are(self):
        for name, config in (("ln", peft.LNTuningConfig(target_modules=["norm"])),
                             ("hra", peft.HRAConfig(r=4, target_modules=["first"]))):
            adapter = self.save_adapter(name, config, 6, 0.5)
            values = self.round_trip(adapter)
            before = load_file(adapter / "adapter_model.safetensors")
            for tensor, value in before.items():
                self.assertTrue(torch.equal(values[tensor], value), tensor)

    def test_what_is_no_factor_travels_as_it_is(self):
        adapter = self.save_adapter("loha", peft.LoHaConfig(
            r=4, target_modules=["first"], modules_to_save=["second"]), 7, 0.0)
        values = self.round_trip(adapter, "--density", "0.2")
        before = load_file(adapter / "adapter_model.safetensors")
        kept = {n for n in before if torch.equal(values[n], before[n])}
        self.assertEqual(kept, {n for n in before if "second" in n})
        self.assertEqual(len(kept), 2)

    def test_road_is_relative_to_its_identity(self):
        config = peft.RoadConfig(target_modules=["first"], group_size=4)
        adapter = self.save_adapter("road", config, 8, 0.0)
        file = adapter / "adapter_model.safetensors"
        tensors = load_file(file)
        save_file({n: v + ("alpha" in n) for n, v in tensors.items()}, file)
        for name, value in self.round_trip(adapter, "--density", "0.2").items():
            base = 1.0 if "alpha" in name else 0.0
            untouched = int((value == base).sum())
            self.assertEqual(untouched, value.numel() - int(0.2 * value.numel()), name)

    def test_adapters_of_another_scale_mean_the_same_when_merged(self):
        packed = []
        for name, options in (("plain", {}), ("alpha", {"lora_alpha": 64}),
                              ("root", {"use_rslora": True})):
            self.round_trip(self.save_lora(name, 20, **options), "--density", "0.5")
            packed.append(self.dir / f"{name}.packed")
            (self.dir / "packed").rename(packed[-1])
            (self.dir / "out").rename(self.dir / f"{name}.out")
        x = torch.randn(5, 24)

        def output(folder):
            return peft.PeftModel.from_pretrained(Net(), self.dir / folder)(x)

        for i, name in ((1, "alpha"), (2, "root")):
            run("merge", packed[0], packed[i], "--method", "task-arithmetic", "--weights", "0,1",
                "-o", self.dir / "m", "--force")
            run("unpack", self.dir / "m", "-o", self.dir / "merged", "--force")
            change = output(f"{name}.out") - Net()(x)
            self.assertLess((output("merged") - Net()(x) - change).norm(), 1e-5 * change.norm())
            self.assertGreater((output("plain.out") - Net()(x) - change).norm(),
                               0.1 * change.norm())

    def test_initialisations_that_change_the_base_are_refused(self):
        for init in ("pissa", "olora"):
            adapter = self.save_lora(init, 9, init_lora_weights=init)
            self.assertIn(f"init_lora_weights = '{init}'",
                          run("pack", adapter, "-o", self.dir / "packed", code=1))


if __name__ == "__main__":
    unittest.main()
