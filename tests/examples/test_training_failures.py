"""What goes wrong in training: every rank that can says why, and none hangs."""

import re
import signal
import unittest

import training
from training import jobs


class Failures(training.TrainingTest):
    def check(self, job, *words, ranks=(0, 1)):
        """Each of the ranks printed one error with all the words and exited with 1."""
        for rank in ranks:
            with self.subTest(rank=rank):
                self.assertEqual(job.ranks[rank].code, 1, str(job))
                errors = job.ranks[rank].errors()
                self.assertEqual(len(errors), 1, str(job))
                for word in words:
                    self.assertIn(word, errors[0])

    def start(self, *options):
        """A rank for every dictionary of options."""
        return jobs.start_by_hand([self.command(**one) for one in options])

    def test_unknown_codec(self):
        wrong = {"compression": "quantise(bits=4)"}
        self.check(self.start(wrong, wrong), "quantise", "did you mean 'quantize'?")

    def test_unknown_codec_of_one_rank(self):
        self.check(self.start({}, {"compression": "quantise(bits=4)"}), "quantise", "'quantize'")

    def test_codecs_that_differ(self):
        self.check(self.start({}, {"compression": "quantize(bits=5)"}), "bits=4", "bits=5")

    def test_models_that_differ(self):
        self.check(self.start({}, {"model": "cnn"}), "rank 0", "rank 1", "parameter")

    def test_unknown_model(self):
        job = jobs.start_alone(self.command(model="resnet"))
        self.check(job, "unknown model 'resnet'", "did you mean resnet20?", ranks=[0])

    def test_no_data(self):
        nowhere = {"data": "/nowhere"}
        self.check(self.start(nowhere, nowhere), "/nowhere", "train-images-idx3-ubyte", "--data")

    def test_no_data_on_one_rank(self):
        job = self.start({"timeout": 8}, {"timeout": 8, "data": "/nowhere"}, {"timeout": 8})
        self.check(job, "/nowhere", ranks=[1])
        self.check(job, "rank 1", ranks=[0, 2])

    def test_too_few_images(self):
        few = {"train_samples": 40}
        self.check(self.start(few, few), "40 images", "batch of 32", "2 ranks")

    def test_sizes_that_differ(self):
        job = jobs.start_by_hand([self.command()] * 2, {1: {"WORLD_SIZE": 3}})
        self.check(job, "disagree on the size", "WORLD_SIZE")

    def kill_in_training(self, victim, text):
        def kill(processes):
            for line in processes[0].stdout:
                if re.match(r"step 1/", line):
                    break
            processes[victim].send_signal(signal.SIGKILL)

        # More steps than there is time for.
        job = jobs.start_by_hand([self.command(epochs=100000)] * 3, meanwhile=kill)
        self.assertEqual(job.ranks[victim].code, -signal.SIGKILL, str(job))
        self.check(job, text, f"rank {victim} is at fault", ranks={0, 1, 2} - {victim})

    def test_killed_rank_is_named(self):
        self.kill_in_training(2, "rank(s) 2 of 3 are dead or hung")

    def test_killed_rank_0_is_named(self):
        # It serves the store.
        self.kill_in_training(0, "the store does not answer, so the rank that hosts it is gone too")


if __name__ == "__main__":
    unittest.main()
