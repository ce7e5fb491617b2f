"""--compression auto where the network decides: two emulated hosts with a slow link."""

import dataclasses
import pathlib
import re
import subprocess
import sys
import unittest

import training
from training import jobs

import emulated_hosts

CLUSTER = pathlib.Path(__file__).resolve().parents[1] / "cluster" / "cluster.py"


@dataclasses.dataclass
class Ended:
    code: int
    output: str


class Automatic(training.TrainingTest):
    def test_a_slow_link_is_sent_little(self):
        reason = emulated_hosts.why_impossible()
        if reason:
            self.skipTest(reason)
        ended = []

        def start(command):
            done = subprocess.run(
                [sys.executable, "-B", str(CLUSTER), "--hosts", "2", "--rate", "64mbit", "--launch",
                 "torchrun-env", "--timeout", "100", "--", *command],
                capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False)
            ended.append(Ended(done.returncode, done.stdout + done.stderr))
            return ended[-1]

        # An uncompressed step waits for 2.1 MB at 8 MB/s; computing takes a few milliseconds.
        result = self.train(start, compression="auto", epochs=10, timeout=60)
        self.assertTrue(result["replicas_equal"])
        lines = [line for line in ended[0].output.splitlines() if "auto: " in line]
        self.assertTrue(lines, ended[0].output)
        # The first choice. On busy cores steps may change so much that there is another search.
        choice = re.search(r"auto: (.*) from step (\d+): (.*)", lines[0])
        # Of all layers, or of some of them.
        self.assertIn("quantize(bits=4)", choice[1])
        for tried in ("none", "cast(bf16)", "quantize(bits=8)"):
            self.assertIn(f"with {tried}", choice[3])
        # Five windows and the steps between, as many for settings that are close, two more for
        # settings by layer; sooner where a step takes 80 ms.
        self.assertLess(int(choice[2]), 90, lines[0])
        if len(lines) == 1 and result["setting"] == choice[1]:
            self.assertEqual(result["reason"], choice[3])

    def test_one_rank_has_nothing_to_choose(self):
        result = self.train(jobs.start_alone, compression="auto")
        self.assertEqual(result["wire_bytes_per_step"], 0)
        self.assertEqual(result["setting"], "none")
        self.assertEqual(result["reason"], "")


if __name__ == "__main__":
    unittest.main()
