"""`make gpu-test`: what it says without a driver, and that its checks run, on fake devices."""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import jobs

SCRIPT = pathlib.Path(os.environ["THINWIRE_SOURCE_DIR"]) / "scripts" / "gpu_test.py"
BUILD = pathlib.Path(os.environ["THINWIRE_BINARY_DIR"])


class GpuTest(unittest.TestCase):
    def run_script(self, *arguments, before=()):
        return subprocess.run([*before, sys.executable, "-B", SCRIPT, *arguments], text=True,
                              env=jobs.environment(), capture_output=True, check=False)

    def test_without_a_driver_it_says_so_in_one_sentence(self):
        result = self.run_script("--driver")
        if result.returncode == 0:
            self.skipTest("this host has a GPU")
        self.assertEqual(result.returncode, 77, result.stderr)
        self.assertRegex(result.stderr, r"^gpu-test: .* driver .*, so nothing was run\n$")

    def test_its_checks_and_its_report_on_fake_devices(self):
        before = ["env", *map(str, jobs.fake_gpu(FAKE_GPU_SCHEDULE="eager"))]
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "report.md"
            result = self.run_script("--build", BUILD, "--report", path, "--elements", "201",
                                     "--repeats", "1", before=before)
            self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
            text = path.read_text()
        self.assertIn("0 not as they should be", result.stdout)
        self.assertIn("| quantize(bits=4), bfloat16, 2 rank(s) over nccl | equal bits |", text)
        self.assertRegex(text, r"train_fashion_mnist, 2 ranks over nccl \| .*; equal parameters")
        self.assertRegex(text, r"\| copy \| 201 \|")
        self.assertRegex(text, r"\| quantize\(bits=4\) on 2 rank\(s\) \| 200 \|( [\d.-]+ \|){3} ")


if __name__ == "__main__":
    unittest.main()
