"""An adapter that train_lora wrote, in the hands of the PEFT library."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, os.path.join(os.environ["THINWIRE_SOURCE_DIR"], "tests", "examples"))

import training
from peft_program import FOLDER, run

try:
    import peft
    import torch
    MISSING = ""
except ImportError as error:
    MISSING = f"{error}; pip install -r requirements-test.txt"

HIDDEN = 96


class Net(torch.nn.Module if not MISSING else object):
    """The example's classifier under the same names."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(784, HIDDEN), torch.nn.ReLU(),
            torch.nn.Linear(HIDDEN, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 10))

    def forward(self, x):
        return self.layers(x)


def read_idx(path, header):
    import gzip
    return torch.frombuffer(bytearray(gzip.decompress(path.read_bytes())[header:]),
                            dtype=torch.uint8)


@unittest.skipIf(MISSING, MISSING)
class Example(unittest.TestCase):
    def test_accuracies_are_those_of_the_library(self):
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            training.write_data_set(folder)
            subprocess.run(
                [FOLDER / "train_lora", f"--data={folder}", f"--hidden={HIDDEN}", "--rank=6",
                 "--outer-steps=6", "--inner-steps=10", "--base-steps=60", "--lr=0.01",
                 "--threads=1", "--pack-density=0.1", f"--base={folder}/base.pt",
                 f"--output={folder}", f"--log={folder}/log.jsonl"],
                check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120)
            result = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
            run("unpack", folder / "adapter.compeft", "-o", folder / "unpacked")

            state = torch.jit.load(folder / "base.pt").state_dict()
            images = read_idx(folder / "t10k-images-idx3-ubyte.gz", 16).view(-1, 1, 28, 28)
            labels = read_idx(folder / "t10k-labels-idx1-ubyte.gz", 8).long()
            images = (images.float() / 255 - 0.2860) / 0.3530
            new = labels >= 5

            def accuracy(adapter):
                base = Net()
                base.load_state_dict(state)
                model = peft.PeftModel.from_pretrained(base, folder / adapter)
                self.assertEqual(sum("lora_" in name for name, _ in model.named_parameters()), 6)
                right = model(images[new]).argmax(1) == labels[new]
                return right.double().mean().item()

            # One image in a hundred may fall to the other side of a rounding error.
            self.assertAlmostEqual(accuracy("adapter"), result["test_accuracy"], delta=0.011)
            self.assertAlmostEqual(accuracy("unpacked"), result["packed_accuracy"], delta=0.011)
            self.assertGreater(result["test_accuracy"], 0.4)


if __name__ == "__main__":
    unittest.main()
