"""launch::init() under every launcher: rank_probe joins the job and adds up the ranks."""

import json
import os
import socket
import tempfile
import unittest

import jobs

PROBE = [jobs.PROGRAMS / "tests" / "rank_probe"]


def job_with_a_free_port(step):
    """The number of a Slurm job whose step gets a port that nobody uses; see rank_env.h."""
    for job in range(os.getpid(), os.getpid() + 1000):
        try:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 15000 + (31 * job + step) % 15000))
                return job
        except OSError:
            pass
    raise RuntimeError("no port is free")


class Launch(unittest.TestCase):
    def check(self, job, size, launcher, backend):
        """Every rank printed one line that fits; returns the lines as dictionaries."""
        self.assertEqual(job.code, 0, str(job))
        lines = [json.loads(rank.out) for rank in job.ranks]
        for rank, line in enumerate(lines):
            expected = {"rank": rank, "size": size, "launcher": launcher, "backend": backend,
                        "hosts": size, "local_rank": rank, "local_size": size,
                        # Three elements, each the sum of 1, 2, ..., size.
                        "sum": 3 * size * (size + 1) // 2,
                        "mean": (size - 1) / 2, "largest": size - 1,
                        # Ranks with this one's parity.
                        "parity_size": len(range(rank % 2, size, 2)),
                        "parity_sum": sum(range(rank % 2, size, 2))}
            self.assertEqual(line, line | expected)
        self.assertIn(f"rank 0 of {size}", job.ranks[0].err)
        return lines

    def test_alone(self):
        self.check(jobs.start_alone(PROBE), 1, "none", "gloo")

    def test_variables_by_hand(self):
        # LOCAL_RANK is not set: the ranks of a host are counted.
        self.check(jobs.start_by_hand([PROBE] * 3), 3, "torchrun", "gloo")

    def test_restart_counts_are_each_agents_own(self):
        counts = {rank: {"TORCHELASTIC_RESTART_COUNT": rank} for rank in range(2)}
        self.check(jobs.start_by_hand([PROBE] * 2, counts, TORCHELASTIC_RUN_ID="run"), 2,
                   "torchrun", "gloo")

    def test_locale_that_groups_digits(self):
        self.check(jobs.start_by_hand([[*PROBE, "auto", "grouping"], PROBE]), 2, "torchrun", "gloo")

    def test_locale_that_groups_digits_under_mpirun(self):
        if not jobs.HAS_MPI:
            self.skipTest("this build has no MPI")
        self.check(jobs.start_mpirun(2, [*PROBE, "auto", "grouping"]), 2, "mpirun", "mpi")

    def test_other_launchers_with_an_address(self):
        for launcher, rank, size in (("mpiexec", "PMI_RANK", "PMI_SIZE"),
                                     ("MVAPICH's mpirun", "MV2_COMM_WORLD_RANK",
                                      "MV2_COMM_WORLD_SIZE"),
                                     ("flux", "FLUX_TASK_RANK", "FLUX_JOB_SIZE")):
            with self.subTest(launcher):
                tasks = {number: {rank: number} for number in range(2)}
                job = jobs.start_by_hand([PROBE] * 2, tasks, RANK=None, WORLD_SIZE=None,
                                         **{size: 2})
                self.check(job, 2, launcher, "gloo")

    def test_torchrun(self):
        if not jobs.TORCHRUN:
            self.skipTest("this LibTorch has no torchrun")
        with tempfile.TemporaryDirectory() as folder:
            self.check(jobs.start_torchrun(2, PROBE, folder), 2, "torchrun", "gloo")

    def test_mpirun(self):
        if not jobs.HAS_MPI:
            self.skipTest("this build has no MPI")
        self.check(jobs.start_mpirun(4, PROBE), 4, "mpirun", "mpi")

    def test_mpirun_over_gloo(self):
        if not jobs.HAS_MPI:
            self.skipTest("this build has no MPI")
        self.check(jobs.start_mpirun(2, PROBE, THINWIRE_BACKEND="gloo"), 2, "mpirun", "gloo")

    def test_mpirun_with_an_address_given(self):
        if not jobs.HAS_MPI:
            self.skipTest("this build has no MPI")
        self.check(jobs.start_mpirun(2, PROBE, MASTER_ADDR="127.0.0.1",
                                     MASTER_PORT=jobs.free_port()), 2, "mpirun", "mpi")

    def test_srun_task(self):
        step = {"SLURM_STEP_NUM_TASKS": 2, "SLURM_STEP_TASKS_PER_NODE": 2, "SLURM_NODEID": 0,
                "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_STEP_ID": 3, "SLURM_NTASKS": 7,
                "SLURM_JOB_ID": job_with_a_free_port(3)}
        tasks = {rank: {"SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in range(2)}
        job = jobs.start_by_hand([PROBE] * 2, tasks, RANK=None, WORLD_SIZE=None, MASTER_ADDR=None,
                                 MASTER_PORT=None, **step)
        self.check(job, 2, "srun", "gloo")


if __name__ == "__main__":
    unittest.main()
