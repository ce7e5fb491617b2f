"""Jobs that cannot start: every rank says why, exits with 1, and does so in time."""

import json
import socket
import tempfile
import unittest

import jobs

PROBE = [jobs.PROGRAMS / "tests" / "rank_probe"]


class Failures(unittest.TestCase):
    def check(self, job, *words, ranks=None):
        """Every rank that was started printed one error with all the words, and nothing else."""
        self.assertNotEqual(job.code, 0, str(job))
        for rank, output in enumerate(job.ranks):
            if ranks is not None and rank not in ranks:
                continue
            with self.subTest(rank=rank):
                self.assertEqual(output.out, "", str(job))
                self.assertIn(output.code, (1, None), str(job))
                errors = output.errors()
                self.assertEqual(len(errors), 1, str(job))
                for word in words:
                    self.assertIn(word, errors[0])

    def test_port_in_use(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            job = jobs.start_by_hand([PROBE] * 2, MASTER_PORT=port, THINWIRE_TIMEOUT=2)
        self.check(job, f"port {port} is in use", "set MASTER_PORT to a free port", ranks=[0])
        # The stranger that holds the port accepts rank 1's connection, and never answers.
        self.check(job, "no store answers at", str(port), "within 2 s", ranks=[1])

    def test_sizes_that_differ(self):
        job = jobs.start_by_hand([PROBE] * 2, {1: {"WORLD_SIZE": 3}})
        self.check(job, "disagree on the size", "told 2", "told 3", "WORLD_SIZE")

    def test_missing_rank_is_named(self):
        job = jobs.start_by_hand([PROBE, None, PROBE], THINWIRE_TIMEOUT=2)
        self.check(job, "rank 1 of 3 did not come within 2 s", ranks=[0, 2])

    def test_missing_rank_0(self):
        port = jobs.free_port()
        job = jobs.start_by_hand([None, PROBE], MASTER_PORT=port, THINWIRE_TIMEOUT=2)
        self.check(job, "rank 0", f"127.0.0.1:{port}", "within 2 s", ranks=[1])

    def test_host_that_does_not_exist(self):
        job = jobs.start_by_hand([None, PROBE], MASTER_ADDR="no-such-host.invalid",
                                 THINWIRE_TIMEOUT=2)
        self.check(job, "no-such-host.invalid", "Host not found", ranks=[1])

    def test_unknown_backend(self):
        job = jobs.start_alone([*PROBE, "glo"])
        self.check(job, "unknown backend 'glo'", "auto, mpi, gloo and nccl", "did you mean gloo?")

    def test_unknown_backend_of_one_rank(self):
        job = jobs.start_by_hand([PROBE, [*PROBE, "mpy"]])
        self.check(job, "rank 1: unknown backend 'mpy'", "did you mean mpi?")

    def test_backends_that_differ(self):
        job = jobs.start_by_hand([[*PROBE, "gloo"], [*PROBE, "mpi"]])
        self.check(job, "disagree on the backend", "'gloo'", "'mpi'")

    def test_backends_that_the_environments_name_differ(self):
        job = jobs.start_by_hand([PROBE] * 2, {0: {"THINWIRE_BACKEND": "gloo"},
                                               1: {"THINWIRE_BACKEND": "mpi"}})
        self.check(job, "disagree on the backend", "'gloo'", "'mpi'")

    def test_malformed_variable_of_one_rank(self):
        job = jobs.start_by_hand([PROBE] * 2, {0: {"THINWIRE_TIMEOUT": "soon"}})
        self.check(job, "THINWIRE_TIMEOUT='soon'", "rank 0")

    def test_variables_that_differ(self):
        for name, one, other in (("THINWIRE_CHECK_REPLICAS", "100", None),
                                 ("THINWIRE_COMPRESSION", "onebit", "topk(density=0.01)")):
            with self.subTest(name):
                job = jobs.start_by_hand([PROBE] * 3, {0: {name: one}, 1: {name: one},
                                                       2: {name: other}})
                default = {"THINWIRE_CHECK_REPLICAS": "0"}.get(name, other)
                self.check(job, f"the ranks disagree on {name}", "rank 2 has", f"'{one}'",
                           f"'{default}'")

    def test_variable_that_differs_where_the_program_makes_its_group(self):
        job = jobs.start_by_hand([[*PROBE, "ddp"]] * 2, {0: {"THINWIRE_CHECK_REPLICAS": "100"}})
        self.check(job, "is 'THINWIRE_CHECK_REPLICAS=100' on rank 0 and "
                        "'THINWIRE_CHECK_REPLICAS=0' on rank 1", ranks=[0, 1])

    def test_link_model_of_one_rank(self):
        cost = {"alpha": 1e-4, "beta": 1e-9}
        collectives = {name: cost for name in ("all_reduce", "all_to_all", "all_gather",
                                               "broadcast")}
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump({"format": "thinwire.link", "version": 1, "world": 2, "hosts": ["a", "b"],
                       "backends": {"gloo": {"collectives": collectives, "pairs": []}},
                       "codecs": []}, file)
            file.flush()
            job = jobs.start_by_hand([[*PROBE, "ddp"]] * 2,
                                     {0: {"THINWIRE_LINK_MODEL": file.name}})
            self.check(job, "the ranks disagree on the link model", "on rank 0 and 'none' on rank 1",
                       ranks=[0, 1])
            job = jobs.start_by_hand([[*PROBE, "ddp"]] * 2,
                                     {1: {"THINWIRE_LINK_MODEL": "/nowhere.json"}})
            self.check(job, "rank 1: ", "/nowhere.json", ranks=[0, 1])

    def test_timeouts_that_differ(self):
        job = jobs.start_by_hand([PROBE] * 2, {1: {"THINWIRE_TIMEOUT": "30"}})
        self.check(job, "the ranks disagree on the timeout", "THINWIRE_TIMEOUT", "'60000 ms'",
                   "'30000 ms'")

    def test_variable_that_mpirun_passes_to_one_host_alone(self):
        if not jobs.HAS_MPI:
            self.skipTest("this build has no MPI")
        job = jobs.start_mpirun(1, ["env", "THINWIRE_CHECK_REPLICAS=100", *PROBE, ":", "-np", 1,
                                    *PROBE], ranks=2)
        self.check(job, "the ranks disagree on THINWIRE_CHECK_REPLICAS", "has '100'", "has '0'")

    def test_launchers_that_do_not_tell_where_rank_0_is(self):
        for name, variables in (("mpiexec", {"PMI_RANK": 1, "PMI_SIZE": 4}),
                                ("MVAPICH", {"MV2_COMM_WORLD_RANK": 1, "MV2_COMM_WORLD_SIZE": 4}),
                                ("jsrun", {"JSM_NAMESPACE_RANK": 1, "JSM_NAMESPACE_SIZE": 4}),
                                ("flux", {"FLUX_TASK_RANK": 1, "FLUX_JOB_SIZE": 4})):
            with self.subTest(name):
                self.check(jobs.start_alone(PROBE, **variables), name, "rank 1 of 4",
                           "set MASTER_ADDR and MASTER_PORT")

    def test_launchers_that_tell_the_rank_alone(self):
        self.check(jobs.start_alone(PROBE, PALS_RANKID=1), "PALS_RANKID=1", "set RANK")
        self.check(jobs.start_alone(PROBE, PMI_RANK=1), "PMI_RANK is set", "PMI_SIZE is not")

    def test_mpi_without_mpirun(self):
        job = jobs.start_by_hand([[*PROBE, "mpi"]] * 2)
        self.check(job, "mpirun" if jobs.HAS_MPI else "has no MPI")

    def test_rank_without_size(self):
        self.check(jobs.start_alone(PROBE, RANK=0), "RANK is set", "WORLD_SIZE is not")

    def test_size_without_rank(self):
        self.check(jobs.start_alone(PROBE, WORLD_SIZE=2), "WORLD_SIZE=2", "without RANK")

    def test_mpirun_ranks_all_say_why(self):
        if not jobs.HAS_MPI:
            self.skipTest("this build has no MPI")
        self.check(jobs.start_mpirun(3, [*PROBE, "mpu"]), "unknown backend 'mpu'",
                   "did you mean mpi?")

    def test_mpirun_with_another_jobs_variables(self):
        if not jobs.HAS_MPI:
            self.skipTest("this build has no MPI")
        self.check(jobs.start_mpirun(2, PROBE, WORLD_SIZE=4), "WORLD_SIZE=4",
                   "mpirun started 2 rank(s)")


if __name__ == "__main__":
    unittest.main()
