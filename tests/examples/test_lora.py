"""train_lora under every launcher: its result, its files, and that the result is always the same."""

import json
import pathlib
import tempfile
import time
import unittest

import training
from training import jobs

PROGRAM = jobs.PROGRAMS / "train_lora"
HIDDEN, RANK = 96, 6
OUTER_STEPS, INNER_STEPS = 6, 10
FACTORS = RANK * ((784 + HIDDEN) + 2 * HIDDEN + (HIDDEN + 10))
SAME = ("test_accuracy", "packed_accuracy", "parameters_crc32c", "packed_bytes",
        "wire_bytes_per_step", "dense_bytes_per_step")


def by_hand(size):
    return lambda command: jobs.start_by_hand([command] * size)


class Lora(training.TrainingTest):
    def command(self, **options):
        chosen = {"data": self.folder, "hidden": HIDDEN, "rank": RANK, "outer_steps": OUTER_STEPS,
                  "inner_steps": INNER_STEPS, "base_steps": 60, "lr": 0.01, "threads": 1, "timeout": 20,
                  **options}
        return [str(PROGRAM)] + [f"--{name.replace('_', '-')}={value}"
                                 for name, value in chosen.items() if value is not None]

    def train(self, start, **options):
        with tempfile.TemporaryDirectory() as folder:
            log = pathlib.Path(folder) / "log.jsonl"
            timeline = pathlib.Path(folder) / "timeline.json"
            begun = time.monotonic()
            job = start(self.command(log_file=log, timeline=timeline, **options))
            self.job_seconds = time.monotonic() - begun
            self.assertEqual(job.code, 0, str(job))
            events = [json.loads(line) for line in log.read_text().splitlines()]
            self.assertIn("rank 0", timeline.read_text())
            json.loads(timeline.read_text())
        self.assertEqual([event["event"] for event in events], ["outer_step"] * OUTER_STEPS + ["result"])
        return events[-1]

    def check(self, result, **expected):
        expected = {"outer_steps": OUTER_STEPS,
                    "inner_steps": OUTER_STEPS * INNER_STEPS, "adapter_parameters": FACTORS,
                    "replicas_equal": True, "compression": "ternary(density=0.05)", **expected}
        self.assertEqual(result, result | expected)
        # Five new classes of easy patterns, of which the base knows nothing.
        self.assertLess(result["base_accuracy"], 0.1)
        self.assertGreater(result["test_accuracy"], 0.4)
        self.assertLess(result["packed_bytes"], result["adapter_bytes"] / 4)
        # Six exchanges of a small adapter, and waiting for the other ranks, are parts of the job.
        self.assertTrue(1e-5 * self.job_seconds < result["exchange_seconds"] < self.job_seconds)
        self.assertLess(result["exchange_seconds"] + result["wait_seconds"], self.job_seconds)

    def assert_same(self, first, second):
        for key in SAME:
            self.assertEqual(first[key], second[key], key)

    def test_alone(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            first = self.train(jobs.start_alone, output=folder, base=folder / "base.pt")
            self.check(first, world_size=1)
            files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
            self.assertEqual(files, {"base.pt", "adapter.compeft", "adapter/adapter_config.json",
                                     "adapter/adapter_model.safetensors"})
            # The base is loaded the second time, and the adapter comes out the same.
            second = self.train(jobs.start_alone, base=folder / "base.pt", base_steps=0)
        self.assert_same(first, second)

    def test_two_ranks_over_gloo_and_mpi(self):
        gloo = self.train(by_hand(2), granularity="group")
        self.check(gloo, world_size=2, backend="gloo")
        ratio = gloo["dense_bytes_per_step"] / gloo["wire_bytes_per_step"]
        self.assertGreater(ratio, 10, gloo)  # of float32
        if jobs.HAS_MPI:
            mpi = self.train(lambda command: jobs.start_mpirun(2, command), granularity="group")
            self.check(mpi, world_size=2, backend="mpi")
            self.assert_same(gloo, mpi)

    def test_torchrun(self):
        if not jobs.TORCHRUN:
            self.skipTest("this LibTorch has no torchrun")
        with tempfile.TemporaryDirectory() as folder:
            result = self.train(lambda command: jobs.start_torchrun(2, command, folder),
                                outer_compression="cast(bf16)", granularity="group")
        self.check(result, world_size=2, compression="cast(bf16)")

    def test_too_few_images_are_told_on_every_rank(self):
        job = by_hand(3)(self.command(train_samples=1))
        for rank in job.ranks:
            self.assertEqual(rank.code, 1, str(job))
            self.assertIn("images are too few for 3 ranks", rank.err, str(job))

    def test_wrong_specs_are_named_on_every_rank(self):
        job = by_hand(2)(self.command(outer_compression="ternery"))
        self.assertEqual(job.code, 1, str(job))
        self.assertIn("ternary", str(job))


if __name__ == "__main__":
    unittest.main()
