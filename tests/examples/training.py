"""What the tests of train_fashion_mnist share: a small data set, and the command line."""

import gzip
import json
import pathlib
import random
import tempfile
import time
import unittest

import jobs

PROGRAM = jobs.PROGRAMS / "train_fashion_mnist"
TRAIN_IMAGES = 640
TEST_IMAGES = 200


def write_idx(path, shape, data):
    """An IDX file of bytes, compressed as the published files are."""
    header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
    path.write_bytes(gzip.compress(header + data, compresslevel=1))


def write_data_set(folder):
    """Files in the format of Fashion-MNIST: ten patterns under noise, easy to tell apart."""
    rng = random.Random(1)
    patterns = [rng.randbytes(784) for _ in range(10)]
    for prefix, count in (("train", TRAIN_IMAGES), ("t10k", TEST_IMAGES)):
        labels = bytes(rng.randrange(10) for _ in range(count))
        images = b"".join(bytes((p + q) >> 1 for p, q in zip(patterns[label], rng.randbytes(784)))
                          for label in labels)
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", (count, 28, 28), images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", (count,), labels)


class TrainingTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        write_data_set(cls.folder)

    def command(self, **options):
        """The command line; an option replaces the default one, None leaves it out."""
        chosen = {"data": self.folder, "model": "mlp", "epochs": 1, "threads": 1, "timeout": 20,
                  "batch_size": 32, "compression": "quantize(bits=4)", **options}
        return [str(PROGRAM)] + [f"--{name.replace('_', '-')}={value}"
                                 for name, value in chosen.items() if value is not None]

    def train(self, start, **options):
        """`start` gets the command line and returns the job; returns the result it logged."""
        with tempfile.TemporaryDirectory() as folder:
            log = pathlib.Path(folder) / "log.jsonl"
            begun = time.monotonic()
            job = start(self.command(log=log, **options))
            self.job_seconds = time.monotonic() - begun
            self.assertEqual(job.code, 0, str(job))
            events = [json.loads(line) for line in log.read_text().splitlines()]
        self.assertEqual(events[0]["event"], "start")
        self.assertLessEqual({event["event"] for event in events[1:-1]},
                             {"epoch", "progress", "layers", "profile"})
        result = events[-1]
        self.assertEqual(result.pop("event"), "result")
        return result
