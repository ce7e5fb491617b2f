"""The short form of `make fault-matrix`: the faults that are noticed at once."""

import contextlib
import dataclasses
import io
import subprocess
import sys
import tempfile
import unittest

import emulated_hosts
import fault_matrix
import jobs


class Faults(unittest.TestCase):
    def test_every_rank_ends_as_it_should(self):
        arguments, sys.argv = sys.argv, ["fault_matrix.py", "--short", "--launcher", "plain"]
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                code = fault_matrix.main()
        finally:
            sys.argv = arguments
        self.assertEqual(code, 0, output.getvalue())
        self.assertNotIn("\n0 cases", output.getvalue())


class Network(unittest.TestCase):
    def test_hosts_that_lose_their_cables(self):
        reason = emulated_hosts.why_impossible()
        if reason:
            self.skipTest(reason)
        # The second loses nothing: its ranks go on.
        for name in ("network-store-unplugged", "network-gone-for-a-second"):
            case = next(case for case in fault_matrix.CASES if case.name == name)
            outcome, exits = fault_matrix.run(case, "plain", [fault_matrix.PROGRAM])
            self.assertEqual(fault_matrix.faults_of(case, "plain", outcome, exits), [],
                             "".join(outcome.texts))


class Postmortem(unittest.TestCase):
    def postmortem_of(self, name):
        case = next(case for case in fault_matrix.CASES if case.name == name)
        with tempfile.TemporaryDirectory(prefix="thinwire-postmortem-") as folder:
            case = dataclasses.replace(case, everybody={"THINWIRE_POSTMORTEM": folder})
            fault_matrix.run(case, "plain", [fault_matrix.PROGRAM])
            return subprocess.run([jobs.PROGRAMS / "thinwire", "doctor", "--postmortem", folder],
                                  env=jobs.environment(), text=True, check=True,
                                  stdout=subprocess.PIPE).stdout

    def test_of_a_rank_that_was_killed(self):
        text = self.postmortem_of("kill")
        self.assertIn("A job of 3 ranks, of which 2 left a record", text)
        self.assertIn("rank(s) 1 left none", text)
        self.assertRegex(text, r"under way for [\d.]+ s: \w+")

    def test_of_a_rank_that_failed_alone(self):
        text = self.postmortem_of("throw-backward")
        self.assertIn("of which 2 left a record", text)
        self.assertIn("rank 1 has left: an exception ended its training after 20 steps", text)


if __name__ == "__main__":
    unittest.main()
