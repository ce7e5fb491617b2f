"""train_fashion_mnist under every launcher: its result, and that the result is always the same."""

import json
import pathlib
import subprocess
import tempfile
import unittest

import training
from training import jobs

# Everything that the backend and the launcher must not change.
SAME = ("test_accuracy", "parameters_crc32c", "wire_bytes_per_step", "dense_bytes_per_step")
MLP_PARAMETERS = (784 + 1) * 512 + (512 + 1) * 256 + (256 + 1) * 10


def by_hand(size):
    return lambda command: jobs.start_by_hand([command] * size)


def mpirun(size):
    return lambda command: jobs.start_mpirun(size, command)


class Training(training.TrainingTest):
    def check(self, result, **expected):
        """The keys of a result line and values that every run of four bits has."""
        self.assertEqual(set(result), {
            "backend", "compression", "world_size", "model", "epochs", "test_accuracy",
            "train_seconds", "wire_bytes_per_step", "dense_bytes_per_step", "parameters_crc32c",
            "replicas_equal"})
        expected = {"model": "mlp", "epochs": 1, "replicas_equal": True, **expected}
        self.assertEqual(result, result | expected)
        # A part of the job, of which starting it is the rest.
        self.assertTrue(0.001 * self.job_seconds < result["train_seconds"] < self.job_seconds, result)
        # Ten classes; the patterns are easy.
        self.assertTrue(0.2 < result["test_accuracy"] <= 1, result)
        size = result["world_size"]
        if size > 1:
            dense = 2 * (size - 1) / size * 4 * MLP_PARAMETERS
            self.assertAlmostEqual(result["dense_bytes_per_step"] / dense, 1, delta=0.001)
            ratio = result["dense_bytes_per_step"] / result["wire_bytes_per_step"]
            self.assertTrue(7.5 <= ratio < 8, result)

    def assert_same(self, first, second):
        for key in SAME:
            self.assertEqual(first[key], second[key], key)

    def test_alone(self):
        first = self.train(jobs.start_alone, seed=1)
        self.check(first, world_size=1, backend="gloo")
        self.assertEqual(first["wire_bytes_per_step"], 0)
        self.assert_same(first, self.train(jobs.start_alone, seed=1))
        other = self.train(jobs.start_alone, seed=2)
        self.assertNotEqual(first["parameters_crc32c"], other["parameters_crc32c"])

    def test_two_ranks_over_gloo_and_mpi(self):
        gloo = self.train(by_hand(2))
        self.check(gloo, world_size=2, backend="gloo")
        self.assert_same(gloo, self.train(by_hand(2)))
        if jobs.HAS_MPI:
            mpi = self.train(mpirun(2))
            self.check(mpi, world_size=2, backend="mpi")
            self.assert_same(gloo, mpi)

    def test_four_ranks_over_mpi_and_gloo(self):
        if not jobs.HAS_MPI:
            self.skipTest("this build has no MPI")
        first = self.train(mpirun(4))
        self.check(first, world_size=4, backend="mpi")
        self.assert_same(first, self.train(mpirun(4)))
        # Compressed gradients are summed in rank order on every backend.
        self.assert_same(first, self.train(by_hand(4)))

    def test_torchrun(self):
        if not jobs.TORCHRUN:
            self.skipTest("this LibTorch has no torchrun")
        with tempfile.TemporaryDirectory() as folder:
            result = self.train(lambda command: jobs.start_torchrun(4, command, folder))
        self.check(result, world_size=4, backend="gloo")

    def test_fewer_test_images_than_ranks(self):
        result = self.train(by_hand(3), test_samples=1)
        self.assertTrue(result["replicas_equal"])
        self.assertIn(result["test_accuracy"], (0, 1))

    def test_uncompressed(self):
        result = self.train(by_hand(2), compression="none")
        self.assertEqual(result["compression"], "none")
        self.assertTrue(result["replicas_equal"])
        ratio = result["dense_bytes_per_step"] / result["wire_bytes_per_step"]
        self.assertAlmostEqual(ratio, 1, delta=0.001)

    def test_matrices_below_the_least_size_are_sent_uncompressed(self):
        most = self.train(by_hand(2), min_numel=1)
        some = self.train(by_hand(2), min_numel=784 * 512)
        none = self.train(by_hand(2), min_numel=784 * 512 + 1)
        sizes = [result["wire_bytes_per_step"] for result in (most, some, none)]
        self.assertLess(sizes[0], sizes[1])
        self.assertLess(sizes[1], sizes[2])
        self.assertAlmostEqual(sizes[2] / none["dense_bytes_per_step"], 1, delta=0.001)

    def test_advise_reads_the_log_of_any_setting(self):
        for setting in ("none", "onebit(residual_decay=0.95, second_residual=off)",
                        "topk(density=0.05, momentum=0.9, ramp=8)",
                        "lgreco(family=quantize, reference=4, period=8, window=4)"):
            with tempfile.TemporaryDirectory() as folder, self.subTest(setting):
                log = pathlib.Path(folder) / "log.jsonl"
                job = jobs.start_by_hand([[*self.command(compression=setting, log=log),
                                           "--profile"]] * 2)
                self.assertEqual(job.code, 0, str(job))
                result = subprocess.run(
                    [str(jobs.PROGRAMS / "thinwire"), "advise", str(log), "--json"],
                    capture_output=True, text=True, env=jobs.environment(), check=False)
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertGreater(json.loads(result.stdout)["logged"]["predicted"], 0)


if __name__ == "__main__":
    unittest.main()
