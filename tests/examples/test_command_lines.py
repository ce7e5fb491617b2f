"""The command line of the training examples: what all of them have, and what is wrong is told."""

import re
import unittest

from training import jobs

COMMON = ["--backend", "--compression", "--seed", "--threads", "--timeout", "--data", "--log",
          "--log-file", "--timeline", "--record-gradients", "--record-from", "--record-steps"]


def run(program, *arguments):
    """(exit code, standard output, standard error)"""
    job = jobs.start_alone([jobs.PROGRAMS / program, *arguments])
    return job.code, job.ranks[0].out, job.ranks[0].err


class CommandLines(unittest.TestCase):
    PROGRAMS = ["train_fashion_mnist", "train_lora", "train_moe_lm"]

    def test_all_have_the_common_options(self):
        for program in self.PROGRAMS:
            code, text, errors = run(program, "--help")
            self.assertEqual(code, 0, errors)
            options = set(re.findall(r"--[a-z-]+", text))
            for option in COMMON:
                self.assertIn(option, options, program)

    def test_a_wrong_command_line_ends_with_2(self):
        for program in [*self.PROGRAMS, "thinwire"]:
            for wrong in ("--no-such-option", "--threads=many", "left over"):
                code, _, errors = run(program, wrong)
                self.assertEqual(code, 2, f"{program} {wrong}: {errors}")
                self.assertNotEqual(errors, "")

    def test_other_errors_end_with_1(self):
        for program in self.PROGRAMS:
            code, _, errors = run(program, "--data=/nowhere")
            self.assertEqual(code, 1, f"{program}: {errors}")
            self.assertIn("/nowhere", errors)


if __name__ == "__main__":
    unittest.main()
