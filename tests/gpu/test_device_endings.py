"""Jobs over NCCL, on fake devices, in which one rank ends: the others' devices wait for it, and their
hosts for the devices. Every survivor ends with the named error, and none hangs."""

import dataclasses
import os
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(os.environ["THINWIRE_SOURCE_DIR"]) / "tests" / "faults"))
import fault_matrix  # noqa: E402, pylint: disable=wrong-import-position
import jobs  # noqa: E402, pylint: disable=wrong-import-position

COMMAND = ["env", *jobs.fake_gpu(FAKE_GPU_SCHEDULE="eager"), fault_matrix.PROGRAM]


class Endings(unittest.TestCase):
    def end_of(self, name, size):
        case = next(case for case in fault_matrix.CASES if case.name == name)
        other = {"spec": "bits=5"}.get(name)
        case = dataclasses.replace(
            case, size=size, everybody={"THINWIRE_BACKEND": "nccl"},
            victim=(1, other) if other else case.victim, others=(1, other) if other else case.others)
        outcome, _ = fault_matrix.run(case, "plain", COMMAND)
        self.assertEqual(fault_matrix.faults_of(case, "plain", outcome, []), [],
                         "\n".join(outcome.texts))
        for text in outcome.texts:
            for word in ("terminate called", "Segmentation", "fake GPU: "):
                self.assertNotIn(word, text)
        return outcome

    def test_a_rank_that_is_killed(self):
        for size in (2, 3):
            with self.subTest(size=size):
                self.end_of("kill", size)

    def test_a_rank_that_hangs(self):
        self.end_of("stop", 2)

    def test_an_exception_in_backward(self):
        for size in (2, 3):
            with self.subTest(size=size):
                self.end_of("throw-layer", size)

    def test_a_rank_that_makes_fewer_steps(self):
        outcome = self.end_of("fewer-steps", 3)
        self.assertIn("it ended its training after 6 steps", outcome.message(0))

    def test_ranks_with_different_compressions(self):
        self.end_of("spec", 3)


if __name__ == "__main__":
    unittest.main()
