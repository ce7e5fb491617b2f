"""The short form of `make soak`: one round, of two events."""

import contextlib
import io
import unittest

import slurm_cluster
import soak


class Soak(unittest.TestCase):
    def test_a_round(self):
        reason = slurm_cluster.why_impossible()
        if reason:
            self.skipTest(reason)
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            code = soak.main(["--rounds=1", "--events=2", "--epochs=60", "--hosts=2", "--seed=2312"])
        self.assertEqual(code, 0, output.getvalue())
        for event in ("event=preempt", "event=kill", "event=round number=1"):
            self.assertIn(event, output.getvalue())


if __name__ == "__main__":
    unittest.main()
