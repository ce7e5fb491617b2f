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
        self.second = torch.nn.Linear(40, 12)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


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

    def save_lora(self, name, seed):
        return self.save_adapter(name, peft.LoraConfig(
            r=4, lora_alpha=8, target_modules=["first", "second"]), seed, 0.0)

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


if __name__ == "__main__":
    unittest.main()
