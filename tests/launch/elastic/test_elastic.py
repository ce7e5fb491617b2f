"""Training whose ranks are killed, stopped and replaced: the others go on in the same processes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(os.environ["THINWIRE_SOURCE_DIR"]) / "tests" / "support"))
import jobs  # noqa: E402

RANK = jobs.PROGRAMS / "tests" / "elastic_rank"
STEPS = 60


class ElasticJob:
    """A store and the processes of a training, whose lines of JSON are read while it runs."""

    def __init__(self, folder, kind="ddp", steps=STEPS, timeout=20, command=(RANK,), **variables):
        self.folder, self.kind, self.steps = folder, kind, steps
        self.command, self.variables = command, {"THINWIRE_TIMEOUT": timeout, **variables}
        self.processes, self.files = [], []
        self.files.append(open(folder / "store.err", "w"))
        self.store = jobs.start_store(stderr=self.files[-1], start_new_session=True)
        self.address = self.store.stdout.readline().strip().split("=")[1]

    def _start(self, command, name, **variables):
        out, err = (open(self.folder / f"{name}.{kind}", "w") for kind in ("out", "err"))
        self.files += [out, err]
        return subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL,
                                stdout=out, stderr=err, text=True, start_new_session=True,
                                preexec_fn=jobs.die_with_parent,
                                env=jobs.environment(**variables))

    def add(self, *events, **variables):
        """Starts one more process; returns its number."""
        number = len(self.processes)
        self.processes.append(self._start([*self.command, self.kind, self.steps, *events],
                                          f"rank{number}", THINWIRE_STORE=self.address,
                                          **self.variables, **variables))
        return number

    def begin(self, *events_of_ranks):
        size = len(events_of_ranks)
        for rank, events in enumerate(events_of_ranks):
            self.add(*events, RANK=rank, WORLD_SIZE=size)

    def lines(self, number):
        text = (self.folder / f"rank{number}.out").read_text()
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def steps_of(self, number):
        return [line for line in self.lines(number) if "step" in line]

    def err(self, number):
        return (self.folder / f"rank{number}.err").read_text()

    def wait_for(self, condition, what, seconds=60):
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come\n{self}")
            time.sleep(0.05)

    def end(self, seconds=90):
        """Exit codes by number."""
        deadline = time.monotonic() + seconds
        try:
            return [process.wait(max(0.1, deadline - time.monotonic()))
                    for process in self.processes]
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"a rank did not end\n{self}") from error

    def close(self):
        for process in [*self.processes, self.store]:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.store.stdout.close()
        for file in self.files:
            file.close()

    def __str__(self):
        return "\n".join(f"--- {n}: {self.lines(n)[-3:]}\n{self.err(n)}"
                         for n in range(len(self.processes)))


class ElasticTest(unittest.TestCase):
    def job(self, *args, **options):
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        job = ElasticJob(folder, *args, **options)
        self.addCleanup(job.close)
        return job

    def assert_one_training(self, job, numbers):
        """The processes have come to the same end, and no image was left out or seen twice."""
        ends = [job.lines(n)[-1] for n in numbers]
        self.assertEqual(len({end.get("end") for end in ends}), 1, str(job))
        self.assertIn("end", ends[0], str(job))
        for n in numbers:
            steps = job.steps_of(n)
            self.assertEqual(steps[-1]["step"], STEPS, str(job))
            for before, after in zip(steps, steps[1:]):
                # A step whose end a rank has from another one has no line here.
                missed = after["step"] - before["step"] - 1
                self.assertIn(missed, [0, 1] if after["world"] > before["world"] else [0], str(job))
                self.assertEqual(after["finished"], after["step"], str(job))
                if job.kind.startswith("ddp"):
                    seen = 8 * (after["size"] + missed * before["size"])
                    self.assertEqual(after["seen"], before["seen"] + seen, str(job))
        return ends[0]


class Elastic(ElasticTest):
    def test_two_deaths_and_a_new_rank(self):
        calm = self.job()
        calm.begin([], [], [], [])
        self.assertEqual(calm.end(), [0, 0, 0, 0], str(calm))
        expected = self.assert_one_training(calm, range(4))
        job = self.job()
        # The new rank is waited for at step 25; it is there when rank 0 dies.
        hold = "hold:25:3"
        job.begin(["kill:40", hold], ["kill:15"], [hold], [hold])
        job.wait_for(lambda: any(line["world"] == 2 for line in job.steps_of(2)), "world 2")
        new = job.add()
        codes = job.end()
        self.assertEqual(codes, [-9, -9, 0, 0, 0], str(job))
        end = self.assert_one_training(job, [2, 3, new])
        self.assertEqual(end["size"], 3)
        # Rank 0, which was first, and another one, are gone; the step of the kill was made again.
        worlds = [(line["world"], line["size"]) for line in job.steps_of(2)]
        self.assertEqual([size for _, size in sorted(set(worlds))], [4, 3, 4, 3], str(job))
        self.assertLess(end["loss"], 1.5 * expected["loss"] + 0.02)
        self.assertIn("lost rank(s) 1 of 4", job.err(2))
        self.assertIn("1 new", job.err(2))

    def test_deaths_while_a_new_rank_is_received(self):
        job = self.job()
        # The state is given in the first world, to the new rank that dies, and to the next one.
        holds = ["hold:10:2", "hold:30:4"]
        job.begin(["kill-giving:3", *holds], holds, holds, holds)
        job.wait_for(lambda: job.steps_of(1), "a step")
        job.add("kill-joining:1")
        job.wait_for(lambda: job.steps_of(1)[-1]["world"] >= 3, "world 3")
        new = job.add()
        codes = job.end()
        self.assertEqual(codes, [-9, 0, 0, 0, -9, 0], str(job))
        self.assert_one_training(job, [1, 2, 3, new])
        self.assertEqual(job.lines(1)[-1]["size"], 4)

    def test_all_who_have_finished_a_step_die_once_the_others_have_its_end(self):
        job = self.job()
        job.begin(["kill-arriving:2"], ["behind:20"], ["behind:20"])
        self.assertEqual(job.end(), [-9, 0, 0], str(job))
        self.assert_one_training(job, [1, 2])
        self.assertEqual(job.steps_of(1)[-1]["world"], 3, str(job))

    def test_who_got_a_steps_end_before_its_giver_died_gives_it_to_who_did_not(self):
        job = self.job()
        job.begin(["kill-leaving:3"], ["behind:20"], ["behind:20", "fail-taking:2"])
        self.assertEqual(job.end(), [-9, 0, 0], str(job))
        self.assert_one_training(job, [1, 2])
        self.assertEqual(job.steps_of(1)[-1]["world"], 4, str(job))

    def test_a_rank_that_was_stopped_comes_back_as_a_new_one(self):
        job = self.job(timeout=60)
        hold = "hold:11:3"
        job.begin([hold], [hold], ["stop:10"], [hold])
        job.wait_for(lambda: any(line["world"] == 2 for line in job.steps_of(0)), "world 2")
        gone = [line for line in job.lines(2) if "signal" in line]
        os.kill(job.processes[2].pid, signal.SIGCONT)
        self.assertEqual(job.end(), [0, 0, 0, 0], str(job))
        self.assert_one_training(job, [0, 1, 3])
        self.assertEqual(len(gone), 1)
        self.assertIn("the others have gone on without this rank", job.err(2))
        back = [line for line in job.steps_of(2) if line["world"] >= 3]
        self.assertTrue(back, str(job))
        self.assertEqual(job.lines(2)[-1]["end"], job.lines(0)[-1]["end"])

    def test_the_smaller_part_does_not_go_on(self):
        job = self.job()
        job.begin(["patience:2"], ["patience:2"], ["kill:10"], ["kill:10"])
        codes = job.end()
        self.assertEqual(codes, [1, 1, -9, -9], str(job))
        self.assertIn("rank(s) 2, 3 of 4 are missing, and at least 3, more than half, must go on",
                      job.err(0))
        self.assertEqual({line["world"] for line in job.steps_of(0)}, {1})

    def test_a_step_that_fails_in_every_world_ends_the_job(self):
        job = self.job()
        job.begin(["behind:5"], ["behind:5"])
        self.assertEqual(job.end(), [1, 1], str(job))
        self.assertIn("a step without its end", job.err(0).splitlines()[-1])
        self.assertIn("world 10: ", job.err(0))
        self.assertNotIn("world 11: ", job.err(0))

    def test_outer_steps(self):
        job = self.job(kind="outer")
        hold = "hold:32:3"
        job.begin([hold], ["kill:18"], [hold], [hold])
        job.wait_for(lambda: any(line["world"] == 2 for line in job.steps_of(2)), "world 2")
        new = job.add()
        self.assertEqual(job.end(), [0, -9, 0, 0, 0], str(job))
        ends = {job.lines(n)[-1]["end"] for n in (0, 2, 3, new)}
        self.assertEqual(len(ends), 1, str(job))
        self.assertEqual(job.lines(0)[-1]["size"], 4)


if __name__ == "__main__":
    unittest.main()
