"""train_moe_lm as its users start it: under every launcher, with every way of sending rows."""

import json
import pathlib
import random
import tempfile
import unittest

import jobs

PROGRAM = jobs.PROGRAMS / "train_moe_lm"
LEGS = ("dispatch", "combine", "combine_backward", "dispatch_backward")
# What the backend must not change.
SAME = ("validation_bpc", "parameters_crc32c", "wire_bytes_per_step", "moe_rows_fraction")


def by_hand(size):
    return lambda command: jobs.start_by_hand([command] * size)


def mpirun(size):
    return lambda command: jobs.start_mpirun(size, command)


class LanguageModel(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.text = pathlib.Path(folder.name) / "text.txt"
        rng = random.Random(1)
        words = ["in", "the", "beginning", "was", "a", "word", "and", "another", "word"]
        cls.text.write_text(" ".join(rng.choice(words) for _ in range(4000)))

    def command(self, **options):
        chosen = {"data": self.text, "steps": 6, "layers": 1, "dim": 16, "heads": 2, "context": 16,
                  "tokens": 64, "experts": 5, "validation_tokens": 256, "threads": 1, "timeout": 20,
                  **options}
        return [str(PROGRAM)] + [f"--{name.replace('_', '-')}={value}"
                                 for name, value in chosen.items()]

    def train(self, start, **options):
        with tempfile.TemporaryDirectory() as folder:
            log = pathlib.Path(folder) / "log.jsonl"
            job = start(self.command(log=log, **options))
            self.assertEqual(job.code, 0, str(job))
            events = [json.loads(line) for line in log.read_text().splitlines()]
        self.assertIn("evaluation", [event["event"] for event in events])
        result = events[-1]
        self.assertEqual(result["event"], "result")
        self.assertTrue(result["replicas_equal"])
        return result

    def moe_bytes(self, result):
        return sum(result[f"moe_bytes_{leg}"] for leg in (*LEGS, "counts", "bases", "replicas"))

    def test_alone_learns_and_sends_nothing(self):
        result = self.train(jobs.start_alone, steps=60, lr=0.02)
        self.assertEqual(result["world_size"], 1)
        self.assertEqual(result["moe_passes"], 60)
        self.assertEqual(self.moe_bytes(result), 0)
        self.assertEqual(result["moe_rows"], 60 * 64 * 2)
        # Nine words of a small alphabet: far below the eight bits of a uniform guess.
        self.assertLess(result["validation_bpc"], 4)
        self.assertGreater(result["test_accuracy"], 0.2)

    def test_two_ranks_over_gloo_and_mpi(self):
        gloo = self.train(by_hand(2))
        for key in ("gate_seconds", "exchange_seconds", "expert_seconds"):
            part = gloo[key] / gloo["train_seconds"]
            self.assertTrue(1e-4 < part < 1, (key, part))
        # A median of all steps.
        self.assertTrue(0.1 < gloo["step_seconds"] * gloo["steps"] / gloo["train_seconds"] < 2, gloo)
        self.assertEqual(gloo["hash_seconds"], 0)
        # Bytes of the experts and of the gradients.
        self.assertGreater(gloo["wire_bytes_per_step"], self.moe_bytes(gloo) / gloo["steps"])
        again = self.train(by_hand(2))
        for key in SAME:
            self.assertEqual(gloo[key], again[key], key)
        if jobs.HAS_MPI:
            mpi = self.train(mpirun(2))
            for key in SAME:
                self.assertEqual(gloo[key], mpi[key], key)

    def test_torchrun(self):
        if not jobs.TORCHRUN:
            self.skipTest("this LibTorch has no torchrun")
        with tempfile.TemporaryDirectory() as folder:
            result = self.train(lambda command: jobs.start_torchrun(3, command, folder))
        self.assertEqual(result["world_size"], 3)

    def test_rows_cost_what_their_codec_says(self):
        plain = self.train(by_hand(2), share_rows="false")
        narrow = self.train(by_hand(2), rows="cast(bf16)", share_rows="false", chunks=2)
        for leg in LEGS:
            # A step or two may route a token elsewhere.
            ratio = plain[f"moe_bytes_{leg}"] / narrow[f"moe_bytes_{leg}"]
            self.assertAlmostEqual(ratio, 2, delta=0.1, msg=leg)
        spectral = self.train(by_hand(2), rows="spectral(bits=4, refresh=2, drift=1e30)")
        self.assertGreater(spectral["moe_bytes_bases"], 0)
        # The second basis, after four of six steps, is the first that may be used.
        self.assertAlmostEqual(spectral["moe_settled_fraction"], 1 / 3)
        self.assertLess(spectral["moe_bytes_combine"], narrow["moe_bytes_combine"])

    def test_merged_rows(self):
        result = self.train(by_hand(2), dedup="lsh(hashes=2, radius=0.9)", rows="quantize(bits=8)")
        self.assertLess(result["moe_rows_fraction"], 1)
        self.assertTrue(1e-5 < result["hash_seconds"] / result["train_seconds"] < 1, result)
        self.assertTrue(0 < result["moe_mean_radius"] <= result["moe_worst_radius"] <= 0.9)
        self.assertEqual(result["moe_merged_passes"], 6)
        fast = self.train(by_hand(2), dedup="lsh(hashes=2, radius=0.9, bandwidth=1e12)")
        self.assertEqual(fast["moe_refused_passes"], 6)

    def test_weights_are_saved_and_loaded_on_any_number_of_ranks(self):
        with tempfile.TemporaryDirectory() as folder:
            file = f"{folder}/weights"
            trained = self.train(by_hand(2), steps=20, lr=0.02, save=file)
            for start in (jobs.start_alone, by_hand(2)):
                again = self.train(start, steps=1, lr=1e-12, load=file)
                self.assertAlmostEqual(again["validation_bpc"], trained["validation_bpc"], 4)
            spectral = "spectral(bits=4, refresh=2, drift=1e30)"
            for other in (spectral, "spectral(bits=2, refresh=2, drift=1e30)"):
                self.train(by_hand(2), rows=spectral, save=file)
                again = self.train(by_hand(2), rows=other, load=file, steps=1)
                # The basis of the file is used at once; other bits wait for one of their own.
                self.assertEqual(again["moe_settled_fraction"], other == spectral)
            self.check_error("token", "[256, ", load=file, dim=24)
            pathlib.Path(file).write_bytes(b"no weights")
            self.check_error(file, "--save", load=file)
        self.check_error("/nowhere", load="/nowhere")
        # Known before the training, not after it.
        job = jobs.start_by_hand([self.command(save="/nowhere/weights", steps=1000000)] * 2)
        self.assertEqual([rank.code for rank in job.ranks], [1, 1], str(job))
        self.assertIn("/nowhere/weights", " ".join(job.ranks[0].errors()))

    def check_error(self, *words, **options):
        job = jobs.start_by_hand([self.command(**options)] * 2)
        for rank in job.ranks:
            self.assertEqual(rank.code, 1, str(job))
            errors = " ".join(rank.errors())
            for word in words:
                self.assertIn(word, errors)

    def test_mistakes_are_named(self):
        self.check_error("top_k", "5", "6", top_k=6)
        self.check_error("--tokens 60", "16", tokens=60)
        self.check_error("spectrol", "spectral", rows="spectrol(bits=2)")
        self.check_error("lhs", "lsh", dedup="lhs")
        self.check_error("/nowhere", data="/nowhere")


if __name__ == "__main__":
    unittest.main()
