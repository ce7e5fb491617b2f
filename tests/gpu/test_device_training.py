"""The training examples on fake devices: with --device=cuda they end with the parameters of
--device=cpu, since the operators of the fake device are the CPU's."""

import json
import os
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(os.environ["THINWIRE_SOURCE_DIR"]) / "tests" / "examples"))
import training  # noqa: E402, pylint: disable=wrong-import-position
from training import jobs  # noqa: E402, pylint: disable=wrong-import-position


class Training(training.TrainingTest):
    def train_on(self, device, **options):
        words = ["env", *jobs.fake_gpu(FAKE_GPU_SCHEDULE="lazy")] if device == "cuda" else []
        return self.train(lambda command: self.clean(jobs.start_by_hand([words + command] * 2)),
                          device=device, model="linear", train_samples=128, test_samples=60,
                          **options)

    def clean(self, job):
        for rank in job.ranks:
            self.assertNotIn("fake GPU: ", rank.err, str(job))
            self.assertNotIn("destroy_process_group", rank.err, str(job))
        return job

    def test_parameters_are_those_of_the_cpu(self):
        found, expected = self.train_on("cuda"), self.train_on("cpu")
        self.assertEqual(found.pop("backend"), "nccl")
        for key in ("parameters_crc32c", "test_accuracy", "dense_bytes_per_step", "replicas_equal"):
            self.assertEqual(found[key], expected[key], key)
        # But for the agreements, which are other ones.
        self.assertAlmostEqual(found["wire_bytes_per_step"] / expected["wire_bytes_per_step"], 1,
                               delta=0.05)

    def test_so_are_those_of_messages_through_host_memory(self):
        found = self.train_on("cuda", backend="gloo")
        self.assertEqual(found["backend"], "gloo")
        self.assertEqual(found["parameters_crc32c"], self.train_on("cpu")["parameters_crc32c"])

    def test_so_are_those_of_mpi(self):
        if not jobs.HAS_MPI:
            self.skipTest("this build has no MPI")
        words = ["env", *jobs.fake_gpu(FAKE_GPU_SCHEDULE="lazy")]
        found = self.train(lambda command: self.clean(jobs.start_mpirun(2, words + command)),
                           device="cuda", backend="mpi", model="linear", train_samples=128,
                           test_samples=60)
        self.assertEqual(found["backend"], "mpi")
        self.assertEqual(found["parameters_crc32c"], self.train_on("cpu")["parameters_crc32c"])

    def test_without_a_driver_one_error_says_so(self):
        command = self.command(device="cuda", backend="gloo")
        job = jobs.start_alone(command)
        self.assertEqual(job.code, 1, str(job))
        self.assertEqual(len(job.ranks[0].errors()), 1, str(job))
        self.assertRegex(job.ranks[0].errors()[0], "driver|THINWIRE_DISABLE_CUDA")
        job = jobs.start_alone(self.command(device="cuda"))
        self.assertIn("the backend nccl needs a GPU and this host has none", str(job))

    def test_examples_that_train_on_the_cpu_alone_say_so(self):
        job = jobs.start_alone([jobs.PROGRAMS / "train_moe_lm", "--device=cuda"])
        self.assertEqual(job.code, 1, str(job))
        self.assertIn("takes tensors in host memory alone", job.ranks[0].errors()[0])


class Lora(training.TrainingTest):
    def train_on(self, device):
        words = ["env", *jobs.fake_gpu(FAKE_GPU_SCHEDULE="lazy")] if device == "cuda" else []
        options = {"data": self.folder, "device": device, "hidden": 16, "rank": 2, "outer_steps": 2,
                   "inner_steps": 3, "base_steps": 10, "pack_density": 0.2, "lr": 0.01,
                   "threads": 1, "timeout": 60, "train_samples": 200, "test_samples": 60}
        command = [jobs.PROGRAMS / "train_lora"] + [
            f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        with tempfile.TemporaryDirectory() as folder:
            log = pathlib.Path(folder) / "log.jsonl"
            job = jobs.start_by_hand([words + command + [f"--log-file={log}"]] * 2)
            self.assertEqual(job.code, 0, str(job))
            self.assertNotIn("fake GPU: ", "".join(rank.err for rank in job.ranks))
            return json.loads(log.read_text().splitlines()[-1])

    def test_adapters_are_those_of_the_cpu(self):
        found, expected = self.train_on("cuda"), self.train_on("cpu")
        self.assertEqual((found["backend"], expected["backend"]), ("nccl", "gloo"))
        self.assertEqual(found["compression"], "ternary(density=0.05)")
        for key in ("parameters_crc32c", "test_accuracy", "packed_accuracy", "packed_bytes",
                    "outer_steps"):
            self.assertEqual(found[key], expected[key], key)


if __name__ == "__main__":
    unittest.main()
