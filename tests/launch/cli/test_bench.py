"""`thinwire bench` and `thinwire link`: their tables and JSON alone, under mpirun and by hand, and
their complaints. How fast anything is does not matter here."""

import json
import os
import pathlib
import random
import tempfile
import unittest

import jobs
import recordings

THINWIRE = jobs.PROGRAMS / "thinwire"
ROW = {"collective", "size", "count", "dtype", "codec", "strategy", "wire_bytes", "ratio",
       "time_us", "algbw", "wirebw", "rel_err"}
BRIEF = ["-b", "64K", "-e", "64K", "-n", "2", "-w", "0"]
CODECS = "quantize(bits=4);topk(density=0.01);powersgd(rank=2)"


class BenchTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def rows_of(self, start, *arguments):
        """The JSON rows of a job that `start` starts with a command."""
        file = self.folder / "rows.json"
        job = start([THINWIRE, "bench", *arguments, "--json", file])
        self.assertEqual(job.code, 0, str(job))
        found = json.loads(file.read_text())
        self.assertEqual(set(found), {"context", "rows"})
        for row in found["rows"]:
            self.assertEqual(set(row), ROW)
            times = row["time_us"]
            self.assertEqual(list(times), ["min", "p50", "p99", "max"])
            self.assertTrue(0 < times["min"] <= times["p50"] <= times["p99"] <= times["max"], row)
            width = {"float32": 4, "bfloat16": 2}[row["dtype"]]
            self.assertEqual(row["size"], width * row["count"])
            seconds = times["p50"] * 1e-6
            self.assertAlmostEqual(row["algbw"], row["size"] / seconds / 1e9)
            self.assertAlmostEqual(row["wirebw"], row["wire_bytes"] / seconds / 1e9)
        return job, found["context"], found["rows"]

    def complaint(self, code, *arguments):
        job = jobs.start_alone([THINWIRE, *arguments])
        self.assertEqual((job.code, job.ranks[0].out), (code, ""), str(job))
        return job.ranks[0].err


def by_hand(size):
    return lambda command: jobs.start_by_hand([command] * size)


class Codec(BenchTest):
    def test_rows(self):
        job, context, rows = self.rows_of(jobs.start_alone, "codec", *BRIEF, "-e", "128K",
                                          "--codec", CODECS)
        self.assertEqual(context["world"], 1)
        self.assertEqual([row["codec"] for row in rows],
                         2 * [codec for codec in ["none", *CODECS.split(";")] for _ in range(2)])
        self.assertEqual({row["collective"] for row in rows}, {"compress", "decompress"})
        self.assertEqual(rows[0]["rel_err"], 0)
        self.assertAlmostEqual(rows[2]["ratio"], 7.8, delta=0.3)
        self.assertEqual(rows[6]["count"], 128 * 128)
        self.assertIn("128 x 128", job.ranks[0].out)
        self.assertIn("wire(B)", job.ranks[0].out)


class AllReduce(BenchTest):
    def check_rows(self, context, rows, world):
        self.assertEqual((context["world"], len(context["hosts"])), (world, world))
        self.assertEqual([(row["codec"], row["strategy"], row["dtype"]) for row in rows[:3]],
                         [("none", "backend", "float32"), ("none", "backend", "bfloat16"),
                          ("none", "dense", "float32")])
        self.assertEqual([row["codec"] for row in rows[3:]], CODECS.split(";"))
        # Sparse entries go by owners where that sends less than all to all.
        strategies = ["scatter_reduce", "sparse" if world > 2 else "gather_reduce", "low_rank"]
        self.assertEqual([row["strategy"] for row in rows[3:]], strategies)
        self.assertEqual(rows[0]["wire_bytes"], 2 * (world - 1) * 65536 // world)
        self.assertLess(rows[0]["rel_err"], 1e-6)
        for row in rows[3:]:
            self.assertTrue(1e-3 < row["rel_err"] < 1, row)
            self.assertGreater(row["ratio"], 2)

    def test_ranks_started_by_hand(self):
        _, context, rows = self.rows_of(by_hand(2), "all_reduce", *BRIEF, "--codec", CODECS)
        self.check_rows(context, rows, 2)
        self.assertEqual(context["backend"], "gloo")

    def test_mpirun(self):
        if not jobs.HAS_MPI:
            self.skipTest("this build has no MPI")
        _, context, rows = self.rows_of(lambda command: jobs.start_mpirun(3, command),
                                        "all_reduce", *BRIEF, "--codec", CODECS)
        self.check_rows(context, rows, 3)
        self.assertEqual((context["backend"], context["launcher"]), ("mpi", "mpirun"))

    def test_alone_nothing_is_sent(self):
        _, _, rows = self.rows_of(jobs.start_alone, "all_reduce", *BRIEF, "--codec",
                                  "quantize(bits=4)")
        self.assertEqual({(row["wire_bytes"], row["ratio"]) for row in rows}, {(0, 1)})

    def test_shared_steps_are_right(self):
        # Slots are filled with finer steps than an encoding of the whole tensor takes.
        specs = ["ecsq(bits=2)", "spectral(bits=1)"]
        _, _, rows = self.rows_of(by_hand(3), "all_reduce", *BRIEF, "--codec", ";".join(specs))
        self.assertEqual([row["codec"] for row in rows[3:]], specs)

    def test_forced_strategy(self):
        _, _, rows = self.rows_of(by_hand(2), "all_reduce", *BRIEF, "--codec", "quantize(bits=4)",
                                  "--strategy", "gather_reduce")
        self.assertEqual(rows[3]["strategy"], "gather_reduce")

    def test_automatic_strategy_follows_the_link(self):
        model = self.folder / "link.json"
        job = by_hand(2)([THINWIRE, "link", "--repeats", "1", "--codec", CODECS, "-o", model])
        self.assertEqual(job.code, 0, str(job))
        link = json.loads(model.read_text())
        self.assertEqual((link["format"], link["world"]), ("thinwire.link", 2))
        self.assertEqual(len(link["codecs"]), 3)
        self.assertIn("all_reduce", job.ranks[0].out)
        for collective in link["backends"]["gloo"]["collectives"].values():
            self.assertGreater(collective["alpha"] + collective["beta"], 0)
        # The same model with a network a million times slower, and as much faster.
        for factor, compresses in ((1e6, True), (1e-6, False)):
            changed = json.loads(model.read_text())
            for costs in changed["backends"]["gloo"]["collectives"].values():
                costs["alpha"] = 0
                costs["beta"] = 1e-9 * factor
            model.with_suffix(".changed").write_text(json.dumps(changed))
            _, context, rows = self.rows_of(
                by_hand(2), "all_reduce", *BRIEF, "--codec", CODECS, "--strategy", "auto",
                "--link", model.with_suffix(".changed"))
            self.assertEqual(context["link"]["world"], 2)
            for row in rows[3:]:
                self.assertEqual(row["strategy"] != "auto:none", compresses, row)
                self.assertEqual(row["ratio"] > 1.5, compresses, row)

    def test_automatic_strategy_measures_where_no_model_is_given(self):
        _, context, rows = self.rows_of(by_hand(2), "all_reduce", *BRIEF, "--codec", "onebit",
                                        "--strategy", "auto")
        self.assertIn("gloo", context["link"]["backends"])
        self.assertTrue(rows[3]["strategy"].startswith("auto:"), rows[3])


class RecordedGradients(BenchTest):
    STEPS = 5
    LAYERS = {"a.weight": [32, 64], "a.bias": [32], "b.weight": [64, 32]}

    def record(self, ranks, factor=1.0):
        for rank in range(ranks):
            generator = random.Random(rank)
            scales = {"a.weight": 1, "a.bias": 1, "b.weight": 0.1}
            recordings.save(self.folder / f"gradients.{rank}", {
                f"{step}/{rank}/{name}": (shape, [factor * generator.gauss(0, scales[name]) for _ in
                                                  range(recordings.numel(shape))])
                for step in range(self.STEPS) for name, shape in self.LAYERS.items()})
        return self.folder / "gradients"

    def test_rows(self):
        data = self.record(2)
        codecs = ["quantize(bits=4)", "ecsq(bits=2)", "topk(density=0.1)", "powersgd(rank=4)"]
        job, context, rows = self.rows_of(
            by_hand(2), "all_reduce", "-b", "64K", "-n", "3", "-w", "4", "-c", "3", "-e", "64K",
            "--data", data, "--codec", ";".join(codecs))
        self.assertEqual(context["data"], {"file": str(data), "steps": 5, "ranks": 2,
                                           "numel": 4128})
        self.assertIn("5 steps of 4128 elements", job.ranks[0].out)
        self.assertEqual([row["codec"] for row in rows], ["none"] * 3 + codecs)
        # Three copies of the model fit into 64 KiB.
        self.assertEqual({row["count"] for row in rows}, {3 * 4128})
        self.assertLess(rows[0]["rel_err"], 1e-6)
        self.assertLess(rows[2]["rel_err"], 1e-6)
        errors = {row["codec"]: row["rel_err"] for row in rows[3:]}
        self.assertTrue(0.05 < errors["quantize(bits=4)"] < errors["ecsq(bits=2)"] < 0.8, errors)
        self.assertTrue(errors["ecsq(bits=2)"] < errors["topk(density=0.1)"], errors)
        ratios = {row["codec"]: row["ratio"] for row in rows[3:]}
        self.assertTrue(7 < ratios["quantize(bits=4)"] < 8.1, ratios)
        self.assertTrue(12 < ratios["ecsq(bits=2)"] < 17, ratios)

    def test_at_least_one_copy_and_no_more_ranks_than_recorded(self):
        data = self.record(2)
        _, _, rows = self.rows_of(jobs.start_alone, "all_reduce", "-b", "1K", "-e", "1K", "-n", "1",
                                  "-w", "0", "--data", data)
        self.assertEqual({row["count"] for row in rows}, {4128})
        job = by_hand(3)([THINWIRE, "bench", "all_reduce", *BRIEF, "--data", data])
        for rank in job.ranks:
            self.assertEqual(rank.code, 1, str(job))
            self.assertIn("recorded by 2 ranks, this job has 3", rank.err)

    def test_recording_that_only_one_rank_has(self):
        data = self.record(2)
        other = self.folder / "other"
        job = jobs.start_by_hand([[THINWIRE, "bench", "all_reduce", *BRIEF, "--data", file]
                                  for file in (data, other)])
        for rank in job.ranks:
            self.assertEqual(rank.code, 1, str(job))
            self.assertIn(f"there is neither '{other}' nor '{other}.0'", rank.err)

    def test_values_that_are_not_finite_are_found(self):
        data = self.record(2, factor=float("inf"))
        job = by_hand(2)([THINWIRE, "bench", "all_reduce", "-b", "1K", "-e", "1K", "-n", "1", "-w",
                          "0", "--data", data])
        self.assertEqual(job.code, 1, str(job))
        self.assertIn("not finite", job.ranks[0].err)


class AllToAll(BenchTest):
    def test_rows(self):
        _, context, rows = self.rows_of(by_hand(2), "all_to_all", *BRIEF, "--codec",
                                        "quantize(bits=8);quantize(bits=4, rounding=stochastic)")
        self.assertEqual(context["world"], 2)
        self.assertEqual([row["strategy"] for row in rows], ["backend", "backend", "rows", "rows"])
        self.assertEqual(rows[0]["wire_bytes"], 32768)
        self.assertEqual(rows[0]["rel_err"], 0)
        self.assertAlmostEqual(rows[2]["ratio"], 3.97, delta=0.1)
        self.assertTrue(rows[2]["rel_err"] < rows[3]["rel_err"] < 0.3)


class Complaints(BenchTest):
    def test_wrong_flags(self):
        for flags, word in ((["-b", "many"], "--minbytes"), (["-f", "0.5"], "--stepfactor"),
                            (["-n", "0"], "--iters"), (["--codec", "topk("], "--codec"),
                            (["--frob"], "--frob")):
            with self.subTest(flags=flags):
                self.assertIn(word, self.complaint(2, "bench", "all_reduce", *flags))
        self.assertIn("--maxbytes", self.complaint(1, "bench", "codec", "-b", "2K", "-e", "1K"))
        self.assertIn("subcommand", self.complaint(2, "bench"))

    def test_unknown_names(self):
        self.assertIn("did you mean scatter_reduce",
                      self.complaint(1, "bench", "all_reduce", "--strategy", "scater_reduce"))
        self.assertIn("did you mean gloo",
                      self.complaint(1, "bench", "all_reduce", "--backend", "glo"))
        self.assertIn("did you mean 'quantize'",
                      self.complaint(1, "bench", "codec", "--codec", "quantise"))

    def test_strategy_that_the_codec_forbids(self):
        job = by_hand(2)([THINWIRE, "bench", "all_reduce", *BRIEF, "--codec", "topk(density=0.01)",
                          "--strategy", "scatter_reduce"])
        for rank in job.ranks:
            self.assertEqual(rank.code, 1, str(job))
            self.assertIn("possible are gather_reduce, sparse", rank.err)

    def test_link_model_of_another_job(self):
        model = self.folder / "link.json"
        model.write_text(json.dumps({"format": "thinwire.link", "version": 1, "world": 3,
                                     "hosts": ["a", "b", "c"], "backends": {}, "codecs": []}))
        job = by_hand(2)([THINWIRE, "bench", "all_reduce", *BRIEF, "--strategy", "auto", "--link",
                          model])
        self.assertEqual(job.code, 1, str(job))
        self.assertIn("measured with 3 ranks, this job has 2", job.ranks[0].err)

    def test_file_that_cannot_be_written(self):
        missing = self.folder / "no" / "such" / "file.json"
        for command in (["bench", "codec", *BRIEF, "--json", missing], ["link", "-o", missing]):
            job = by_hand(2)([THINWIRE, *command])
            for rank in job.ranks:
                self.assertEqual(rank.code, 1, str(job))
                self.assertIn("cannot write", rank.err)

    def test_link_of_one_rank(self):
        self.assertIn("at least two ranks", self.complaint(1, "link"))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    unittest.main()
