"""How an MPI job ends: every rank comes to an end by itself or by mpirun, and says why."""

import os
import unittest

import jobs

PROGRAM = jobs.PROGRAMS / "tests" / "mpi_endings"


class Endings(unittest.TestCase):
    def run_job(self, ending, size=3):
        """The job, which start_mpirun() fails where it takes longer than a minute."""
        job = jobs.start_mpirun(size, [PROGRAM, ending])
        for word in ("terminate called", "Segmentation", "Aborted"):
            self.assertNotIn(word, str(job))
        return job

    def test_all_is_well(self):
        job = self.run_job("")
        self.assertEqual(job.code, 0, str(job))
        self.assertEqual([rank.out for rank in job.ranks], ["survived\n"] * 3)

    def test_operations_pending_at_the_end(self):
        job = self.run_job("pending")
        self.assertEqual([rank.out for rank in job.ranks], ["left\n"] * 3, str(job))
        self.assertEqual(job.code, 0, str(job))

    def test_killed_peer(self):
        # mpirun ends the others before they can say anything, and names the rank itself.
        job = self.run_job("killed")
        self.assertNotEqual(job.code, 0)
        self.assertRegex(job.rest, r"process rank 2 .*on signal 9")
        self.assertNotIn("survived", str(job))

    def check_named(self, job):
        self.assertNotEqual(job.code, 0, str(job))
        said = [error for rank in job.ranks[:2] for error in rank.errors()]
        self.assertTrue(said, str(job))
        for error in said:
            self.assertIn("mpi allreduce #1 failed, rank 2 is at fault", error)
            self.assertIn("within the timeout of 2000 ms", error)

    def test_stopped_peer_is_named(self):
        self.check_named(self.run_job("stopped"))

    def test_absent_peer_is_named(self):
        self.check_named(self.run_job("absent"))

    def test_too_little_support_for_threads_is_refused(self):
        job = self.run_job("serialized", size=1)
        self.assertIn("initialised MPI with MPI_THREAD_SERIALIZED", str(job))
        self.assertIn("needs MPI_Init_thread with MPI_THREAD_MULTIPLE", str(job))
        self.assertNotEqual(job.code, 0)

    def test_exception_of_one_rank(self):
        job = self.run_job("exception")
        self.assertNotEqual(job.code, 0, str(job))
        self.assertEqual(job.ranks[2].errors(), ["one rank gives up"], str(job))


if __name__ == "__main__":
    unittest.main()
