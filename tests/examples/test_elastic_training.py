"""train_fashion_mnist --elastic: a rank is killed, the others train to the end."""

import signal
import unittest

import training
from training import jobs


class ElasticTraining(training.TrainingTest):
    def test_a_rank_is_killed(self):
        with jobs.start_store() as store:
            try:
                address = store.stdout.readline().strip().split("=")[1]
                # Long enough for the kill to come in its midst; 10 steps an epoch of two ranks.
                command = self.command(epochs=80) + ["--elastic", "--min-ranks=1"]

                def kill_one(processes):
                    for line in processes[0].stderr:
                        if "step 100" in line:
                            break
                    processes[1].send_signal(signal.SIGKILL)

                job = jobs.start_by_hand([command, command], MASTER_ADDR=None, MASTER_PORT=None,
                                         THINWIRE_STORE=address, meanwhile=kill_one)
            finally:
                store.terminate()
        self.assertEqual([rank.code for rank in job.ranks], [0, -signal.SIGKILL], str(job))
        self.assertIn("world 2: rank 0 of 1; lost rank(s) 1 of 2", job.ranks[0].err)
        self.assertIn("(1 ranks over gloo)", job.ranks[0].out)
        # Ten patterns under noise are learnt by then.
        accuracy = float(job.ranks[0].out.split("test accuracy")[1].split("%")[0])
        self.assertGreater(accuracy, 95)

    def test_what_it_has_not_is_refused(self):
        job = jobs.start_alone(self.command() + ["--elastic"])
        self.assertEqual(job.code, 1)
        self.assertIn("start `thinwire store --port P`", "".join(job.ranks[0].errors()))


if __name__ == "__main__":
    unittest.main()
