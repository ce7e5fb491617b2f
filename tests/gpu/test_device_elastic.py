"""Trainings over NCCL, on fake devices, that go on without a rank that is killed, for whose device the
others' devices wait, and take in a new one."""

import os
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(os.environ["THINWIRE_SOURCE_DIR"]) / "tests/launch/elastic"))
import jobs  # noqa: E402, pylint: disable=wrong-import-position
import test_elastic  # noqa: E402, pylint: disable=wrong-import-position

COMMAND = ["env", *jobs.fake_gpu(FAKE_GPU_SCHEDULE="eager", FAKE_GPU_DEVICES=1), test_elastic.RANK]


class DeviceElastic(test_elastic.ElasticTest):
    def end_of_one_with_a_death_and_a_new_rank(self, kind, kill, hold):
        job = self.job(kind=kind, command=COMMAND, THINWIRE_BACKEND="nccl")
        job.begin([hold], [kill], [hold])
        job.wait_for(lambda: any(line["world"] == 2 for line in job.steps_of(2)), "world 2")
        new = job.add()
        self.assertEqual(job.end(), [0, -9, 0, 0], str(job))
        end = self.assert_one_training(job, [0, 2, new])
        self.assertEqual(end["size"], 3)
        for rank in (0, 2, new):
            self.assertNotIn("fake GPU: ", job.err(rank), str(job))

    def test_gradients(self):
        self.end_of_one_with_a_death_and_a_new_rank("ddp-device", "kill:15", "hold:25:3")

    def test_outer_steps(self):
        self.end_of_one_with_a_death_and_a_new_rank("outer-device", "kill:18", "hold:32:3")


if __name__ == "__main__":
    unittest.main()
