"""The backend "thinwire_mpi" under mpirun."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

import test_collectives

HERE = pathlib.Path(__file__).resolve().parent


@unittest.skipUnless(shutil.which("mpirun"), "there is no mpirun")
class Mpi(unittest.TestCase):
    def test_collectives_a_smaller_group_and_ddp(self):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                ["mpirun", "-np", "3", "--oversubscribe", "--bind-to", "none", sys.executable, "-B",
                 str(HERE / "mpi_job.py"), f"file://{folder}/store", folder],
                capture_output=True, text=True, timeout=150, check=False,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1",
                     "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_btl": "self,vader",
                     "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
                     "OMPI_MCA_oob_tcp_if_include": "lo", "OMPI_MCA_mpi_yield_when_idle": "1"})
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            found = [json.loads(pathlib.Path(folder, f"{rank}.json").read_text())
                     for rank in range(3)]
        for rank, one in enumerate(found):
            self.assertEqual(one["exact"], [6] * 5)
            self.assertAlmostEqual(one["coded"][0], 6, places=1)
            self.assertAlmostEqual(one["coded"][1], 6, places=1)
            self.assertEqual(one["calls"], 1)
            self.assertEqual(one.get("pair"), [4.0] * 3 if rank != 1 else None)
            self.assertTrue(one["equal"])
            self.assertGreater(one["ratio"], 4)
            self.assertEqual(set(one["ways"]), set(test_collectives.CALLS) - {"sparse"})
            for name, (error, coded, same_shape) in one["ways"].items():
                with self.subTest(name):
                    exact = name in test_collectives.NEVER_CODED
                    self.assertTrue(same_shape)
                    self.assertLess(error, 1e-5 if exact else 0.15)
                    if name not in test_collectives.ELSEWHERE:
                        self.assertEqual(coded > 0, not exact)


if __name__ == "__main__":
    unittest.main()
