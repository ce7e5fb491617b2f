"""Trainings that are killed, stopped and started again, on other ranks too: --checkpoint."""

import json
import os
import pathlib
import random
import re
import signal
import tempfile
import time
import unittest

import training
from training import jobs

STOPPED = 75
PROGRAMS = {
    # Ten steps an epoch for two ranks, a line an epoch.
    "train_fashion_mnist": {"model": "mlp", "epochs": 8, "batch_size": 32},
    "train_lora": {"hidden": 96, "rank": 6, "outer_steps": 12, "inner_steps": 5, "base_steps": 20,
                   "lr": 0.01},
    "train_moe_lm": {"steps": 30, "layers": 1, "dim": 16, "heads": 2, "context": 16, "tokens": 64,
                     "experts": 5, "validation_tokens": 256, "log_every": 1},
}
# What every run prints as it goes on.
PROGRESS = re.compile(r"(epoch|outer step|step) \d+/")
SAME = ("test_accuracy", "parameters_crc32c")


class Restart(training.TrainingTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.results = {}  # of undisturbed()
        rng = random.Random(1)
        words = ["in", "the", "beginning", "was", "a", "word", "and", "another", "word"]
        cls.text = cls.folder / "text.txt"
        cls.text.write_text(" ".join(rng.choice(words) for _ in range(4000)))

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.work = pathlib.Path(folder.name)
        # Printed where a test fails, so that its moments can be had again.
        self.seed = int(os.environ.get("THINWIRE_TEST_SEED", time.time_ns() % 1_000_000))
        self.random = random.Random(self.seed)
        self.lines = (1, 6)  # of progress, after which a run is disturbed: when it has saved twice

    def command(self, program="train_fashion_mnist", checkpoint="state", **options):
        data = self.text if program == "train_moe_lm" else self.folder
        chosen = {"data": data, "threads": 1, "timeout": 20, "log-file": self.work / "log.jsonl",
                  "checkpoint": checkpoint and self.work / checkpoint, "checkpoint_every": 3,
                  **PROGRAMS[program], **options}
        return [str(jobs.PROGRAMS / program)] + [
            f"--{name.replace('_', '-')}={value}" for name, value in chosen.items()
            if value is not None]

    def result(self):
        return json.loads((self.work / "log.jsonl").read_text().splitlines()[-1])

    def finish(self, job):
        """The result of a job that ended well."""
        self.assertEqual(job.code, 0, f"seed {self.seed}\n{job}")
        return self.result()

    def assert_same(self, first, second):
        for key in (*SAME, "packed_bytes", "validation_bpc"):
            self.assertEqual(first.get(key), second.get(key), f"{key}; seed {self.seed}")

    def disturb(self, send, lines=None, after_save=False):
        """For start_by_hand(): after a random line of progress and a moment more, send(processes)."""
        lines = lines or self.random.randrange(*self.lines)
        moment = 0.03 * self.random.random()

        def watch(processes):
            for line in processes[0].stdout:
                lines_left[0] -= bool(PROGRESS.search(line))
                if lines_left[0] <= 0:
                    break
            time.sleep(moment)
            deadline = time.monotonic() + 20
            while after_save and not self.has_saved() and time.monotonic() < deadline:
                time.sleep(0.005)
            send(processes)

        lines_left = [lines]
        return watch

    def has_saved(self):
        """Whether a step is complete on both ranks."""
        return any(len(list(step.glob("rank-*.json"))) == 2
                   for step in (self.work / "state").glob("step-*"))

    def resumed_at(self, output):
        match = re.search(r"going on after step (\d+)", output)
        self.assertIsNotNone(match, f"seed {self.seed}\n{output}")
        return int(match[1])

    def undisturbed(self, program="train_fashion_mnist", **options):
        """The result of two ranks that nothing happens to."""
        case = json.dumps([program, options], sort_keys=True)
        if case not in self.results:
            self.results[case] = self.finish(jobs.start_by_hand(
                [self.command(program, checkpoint=None, **options)] * 2))
        return self.results[case]

    def killed_and_started_again(self, program, **options):
        whole = self.undisturbed(program, **options)
        victim = self.random.randrange(2)
        job = jobs.start_by_hand(
            [self.command(program, **options)] * 2,
            meanwhile=self.disturb(lambda ranks: ranks[victim].send_signal(signal.SIGKILL),
                                  after_save=True))
        self.assertEqual(job.ranks[victim].code, -signal.SIGKILL, f"seed {self.seed}\n{job}")
        self.assertEqual(job.ranks[1 - victim].code, 1, f"seed {self.seed}\n{job}")
        again = jobs.start_by_hand([self.command(program, **options)] * 2)
        self.assert_same(self.finish(again), whole)
        self.assertGreater(self.resumed_at(again.ranks[0].err), 0)

    def has_nothing_left_to_do(self, program, **options):
        self.assert_same(self.finish(jobs.start_by_hand([self.command(program, **options)] * 2)),
                         self.undisturbed(program, **options))

    def test_data_parallel(self):
        options = {"compression": "topk(density=0.05)"}
        self.killed_and_started_again("train_fashion_mnist", **options)
        self.has_nothing_left_to_do("train_fashion_mnist", **options)

    def test_stochastic_rounding(self):
        self.killed_and_started_again("train_fashion_mnist", compression="quantize(bits=4)")

    def test_lora(self):
        self.lines = (7, 11)
        self.killed_and_started_again("train_lora", outer_momentum=0.5)
        self.has_nothing_left_to_do("train_lora", outer_momentum=0.5)

    def test_mixture_of_experts(self):
        self.lines = (7, 20)
        self.killed_and_started_again(
            "train_moe_lm", compression="topk(density=0.1)",
            rows="spectral(bits=4, refresh=5, drift=1e30)")

    def test_mixture_of_experts_that_merges_rows(self):
        self.lines = (7, 20)
        options = {"dedup": "lsh(hashes=2, radius=0.9)", "rows": "quantize(bits=8)"}
        self.killed_and_started_again("train_moe_lm", **options)
        self.has_nothing_left_to_do("train_moe_lm", **options)

    def test_a_signal_to_one_rank_saves_and_ends_all(self):
        for name in (signal.SIGUSR1, signal.SIGTERM):
            with self.subTest(signal=name):
                options = {"compression": "topk(density=0.05)"}
                whole = self.undisturbed(**options)
                options |= {"checkpoint": name.name, "checkpoint_every": 0}
                victim = self.random.randrange(2)
                job = jobs.start_by_hand(
                    [self.command(**options)] * 2,
                    meanwhile=self.disturb(lambda ranks: ranks[victim].send_signal(name)))
                self.assertEqual([rank.code for rank in job.ranks], [STOPPED] * 2,
                                 f"seed {self.seed}\n{job}")
                again = jobs.start_by_hand([self.command(**options)] * 2)
                self.assert_same(self.finish(again), whole)
                saved = re.search(r"asked to stop; step (\d+) is saved", job.ranks[0].err)
                self.assertEqual(self.resumed_at(again.ranks[0].err), int(saved[1]))

    @unittest.skipUnless(jobs.TORCHRUN, "this LibTorch has no torchrun")
    def test_torchrun_starts_the_ranks_again(self):
        options = {"compression": "topk(density=0.05)"}
        whole = self.undisturbed(**options)
        # The first process of rank 1 kills itself as soon as there is something to go on from.
        script = self.work / "rank.sh"
        script.write_text(f"""#!/bin/bash
if [ "$RANK" = 1 ] && mkdir {self.work}/killed 2>/dev/null; then
  "$@" & rank=$!
  until ls {self.work}/state/step-*/rank-1-*.json >/dev/null 2>&1; do sleep 0.02; done
  sleep {0.1 * self.random.random():.3f}
  kill -9 $rank
  wait $rank
  exit
fi
exec "$@"
""")
        script.chmod(0o755)
        job = jobs.start_torchrun(2, [script, *self.command(**options)], self.work / "logs",
                                  options=["--max-restarts", "1"])
        self.assert_same(self.finish(job), whole)
        second = next((self.work / "logs").glob("**/attempt_1/0/stderr.log")).read_text()
        self.assertGreater(self.resumed_at(second), 0)

    @unittest.skipUnless(jobs.HAS_MPI, "this build has no MPI")
    def test_mpirun_twice(self):
        options = {"compression": "topk(density=0.05)"}
        whole = self.undisturbed(**options)
        script = self.work / "rank.sh"
        script.write_text(f"""#!/bin/bash
if [ "$OMPI_COMM_WORLD_RANK" = 1 ]; then
  (until ls {self.work}/state/step-*/rank-1-*.json >/dev/null 2>&1; do sleep 0.02; done
   sleep {0.1 * self.random.random():.3f}; kill -9 $$) &
fi
exec "$@"
""")
        script.chmod(0o755)
        job = jobs.start_mpirun(2, [script, *self.command(**options)])
        self.assertNotEqual(job.code, 0, str(job))
        again = jobs.start_mpirun(2, self.command(**options))
        self.assert_same(self.finish(again), whole)
        self.assertGreater(self.resumed_at(again.ranks[0].err), 0)

    def test_another_number_of_ranks_goes_on(self):
        for program in PROGRAMS:
            with self.subTest(program=program):
                options = {"checkpoint": program, "checkpoint_every": 1}
                job = jobs.start_by_hand([self.command(program, **options)] * 2, meanwhile=self.disturb(
                    lambda ranks: ranks[1].send_signal(signal.SIGKILL), lines=4))
                self.assertEqual(job.ranks[1].code, -signal.SIGKILL, str(job))
                for size in (3, 1):
                    # Files of ranks that left nobody behind are cleared away as well.
                    job = jobs.start_by_hand([self.command(program, **options)] * size,
                                             meanwhile=size == 3 and self.disturb(
                                                 lambda ranks: ranks[2].send_signal(signal.SIGUSR1),
                                                 lines=1))
                    self.assertIn(job.code, (0, STOPPED) if size == 3 else (0,), str(job))
                    self.resumed_at(job.ranks[0].err)
                self.assertEqual(self.result()["world_size"], 1)
                self.assertTrue(self.result()["replicas_equal"])
                left = {int(path.name.split("-of-")[1].split(".")[0])
                        for path in (self.work / program).glob("step-*/*.json")}
                self.assertLessEqual(left, {1, 3})

    def test_a_checkpoint_of_other_settings_is_refused(self):
        options = {"epochs": 1, "checkpoint_every": 5}
        self.finish(jobs.start_by_hand([self.command(seed=1, **options)] * 2))
        job = jobs.start_by_hand([self.command(seed=2, **options)] * 2)
        for rank in job.ranks:
            self.assertEqual(rank.code, 1, str(job))
            self.assertIn("--seed=1", rank.errors()[0])
            self.assertIn("--seed=2", rank.errors()[0])


if __name__ == "__main__":
    unittest.main()
