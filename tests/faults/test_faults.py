"""The short form of `make fault-matrix`: the faults that are noticed at once."""

import contextlib
import io
import sys
import unittest

import fault_matrix


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


if __name__ == "__main__":
    unittest.main()
