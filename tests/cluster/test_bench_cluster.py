"""`make bench-cluster` in short: a slow link, Gloo and MPI, right results and bytes that the link
really carried. It skips with a reason where namespaces are not allowed."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import emulated_hosts

SOURCE = pathlib.Path(os.environ["THINWIRE_SOURCE_DIR"])
BUILD = pathlib.Path(os.environ["THINWIRE_BINARY_DIR"])
CODECS = ["cast(bf16)", "quantize(bits=4)", "topk(density=0.01)", "powersgd(rank=4)", "onebit"]
BYTES_PER_SECOND = 50e6 / 8


class BenchCluster(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        reason = emulated_hosts.why_impossible()
        if reason:
            raise unittest.SkipTest(reason)

    def run_script(self, backends, rates):
        with tempfile.TemporaryDirectory() as folder:
            # The script writes to results/ beside itself: a tree of links keeps the real one clean.
            tree = pathlib.Path(folder)
            for name in ("scripts", "tests"):
                (tree / name).mkdir()
            for name in ("scripts/bench_cluster.sh", "scripts/bench_ratios.py"):
                shutil.copy2(SOURCE / name, tree / name)
            (tree / "tests/cluster").symlink_to(SOURCE / "tests/cluster")
            environment = {**os.environ, "THINWIRE_BENCH_HOSTS": "2",
                           "THINWIRE_BENCH_RATES": " ".join(rates),
                           "THINWIRE_BENCH_BACKENDS": " ".join(backends)}
            result = subprocess.run(
                ["bash", str(tree / "scripts/bench_cluster.sh"), str(BUILD), "-b", "1M", "-e", "1M",
                 "-n", "2", "-w", "1"], env=environment, capture_output=True, text=True,
                stdin=subprocess.DEVNULL, timeout=240, check=False)
            self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
            found = {}
            for file in (tree / "results").glob("*.json"):
                found[file.stem] = json.loads(file.read_text())["rows"]
            return result.stdout, found

    def test_slow_link(self):
        backends = ["gloo", "mpi"] if self.has_mpi() else ["gloo"]
        text, found = self.run_script(backends, ["50mbit"])
        self.assertEqual(set(found), {f"all_reduce_2x50mbit_{name}" for name in backends})
        for rows in found.values():
            self.assertEqual([row["codec"] for row in rows], ["none"] * 3 + CODECS)
            for row in rows:
                # Each direction of the link lets 128 KB through at once and keeps its rate then.
                shortest = max(row["wire_bytes"] - 4 * 131072, 0) / BYTES_PER_SECOND
                self.assertGreaterEqual(row["time_us"]["min"] * 1e-6, shortest, row)
        comparison = text[text.index("# 50mbit: medians"):].splitlines()
        quantized = next(line for line in comparison if "quantize(bits=4)" in line)
        self.assertEqual(quantized.split()[1:3], ["scatter_reduce", "gloo"])

    def test_automatic_choice_without_a_limit(self):
        _, found = self.run_script(["gloo"], ["local"])
        rows = found["all_reduce_2xlocal_gloo"]
        self.assertEqual(len(rows), 8)
        for row in rows[3:]:
            self.assertTrue(row["strategy"].startswith("auto:"), row)

    @staticmethod
    def has_mpi():
        return os.environ.get("THINWIRE_HAS_MPI") == "1" and shutil.which("mpirun") is not None


if __name__ == "__main__":
    unittest.main()
