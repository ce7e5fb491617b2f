"""A short selection of torch's own distributed tests; `make torch-suite` runs them all."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
# Those that fail where an all_reduce is wrong by 1 %, and one for every other kind of call.
SELECTION = [
    "test_DistributedDataParallelCPU", "test_DistributedDataParallelCPU_grad_is_view",
    "test_DistributedDataParallel_requires_grad", "test_get_future", "test_all_reduce_sum_async",
    "test_all_reduce_coalesced_sum", "test_reduce_scatter_tensor_cuda", "test_all_gather",
    "test_all_to_all_single_equal_split", "test_all_to_all_single_unequal_split", "test_barrier",
    "test_broadcast", "test_gather", "test_scatter", "test_send_recv", "test_isend",
    "test_all_gather_object_default_pg", "test_monitored_barrier_gloo",
]


def run_suite(*arguments):
    paths = os.pathsep.join([str(pathlib.Path(os.environ["THINWIRE_BINARY_DIR"]) / "python"),
                             os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-B", str(HERE / "torch_suite" / "run_suite.py"), *arguments],
        capture_output=True, text=True, timeout=280, check=False,
        env={**os.environ, "PYTHONPATH": paths})


class TorchSuite(unittest.TestCase):
    def test_a_selection_passes_as_on_gloo(self):
        done = run_suite(*SELECTION)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        gloo, ours = (line.split()[1:] for line in done.stdout.splitlines()[2:4])
        self.assertEqual(gloo, ours)
        self.assertGreaterEqual(int(gloo[1]), 15, done.stdout)

    def test_any_backend_from_outside_fails_the_one_that_is_known(self):
        """It reads ProcessGroup::getBackendName(), which is "custom" for all of them: Gloo itself,
        registered as a plug-in, fails it and passes another one."""
        with tempfile.TemporaryDirectory() as folder:
            for name in ("barrier", "test_dir", "init_dir"):
                os.makedirs(os.path.join(folder, name))
            results = os.path.join(folder, "results.json")
            subprocess.run(
                [sys.executable, "-B", str(HERE / "torch_suite" / "one_backend.py"), "plug_in",
                 results, "", "test_ddp_logging_data_cpu", "test_all_reduce_sum"],
                capture_output=True, text=True, timeout=280, check=False,
                env={**os.environ, "BACKEND": "gloo", "WORLD_SIZE": "2", "TEMP_DIR": folder,
                     "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"})
            with open(results, encoding="utf-8") as file:
                outcomes = {name: outcome for name, (outcome, _) in json.load(file).items()}
        self.assertEqual(outcomes, {"test_ddp_logging_data_cpu": "failed",
                                    "test_all_reduce_sum": "passed"})

    def test_what_only_gloo_passes_is_counted(self):
        sys.path.insert(0, str(HERE / "torch_suite"))
        import run_suite as driver
        gloo = {"a": ["passed", ""], "b": ["skipped", ""], "test_ddp_logging_data_cpu": ["passed", ""]}
        ours = {"a": ["failed", "x"], "b": ["passed", ""],
                "test_ddp_logging_data_cpu": ["failed", ""]}
        lines, lost = driver.compare(gloo, ours)
        self.assertEqual(lost, ["a"])
        self.assertEqual(len(lines), 3)
        self.assertEqual(driver.counts(ours), {"run": 3, "passed": 1, "failed": 2, "skipped": 0})


if __name__ == "__main__":
    unittest.main()
