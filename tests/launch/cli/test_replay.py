"""`thinwire replay`, and the picture that scripts/plot_replay.py makes of it."""

import importlib.util
import json
import math
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import unittest

import jobs
import recordings

THINWIRE = jobs.PROGRAMS / "thinwire"
PLOT = pathlib.Path(os.environ["THINWIRE_SOURCE_DIR"], "scripts", "plot_replay.py")
STEPS, RANKS = 6, 2
LAYERS = {"a.weight": [64, 128], "b.weight": [32, 256], "b.bias": [32]}


def gradients(rank):
    generator = random.Random(rank)
    tensors = {}
    for step in range(STEPS):
        for name, shape in LAYERS.items():
            scale = 1.0 if name == "a.weight" else 0.1
            values = [generator.gauss(0, scale) for _ in range(math.prod(shape))]
            tensors[f"{step + 10}/{rank}/{name}"] = (shape, values)
    return tensors


class ReplayTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        cls.recording = cls.folder / "gradients"
        for rank in range(RANKS):
            recordings.save(cls.folder / f"gradients.{rank}", gradients(rank))

    def run_replay(self, *arguments):
        return subprocess.run([str(THINWIRE), "replay", *map(str, arguments)], capture_output=True,
                              text=True, env=jobs.environment(), check=False)

    def rows(self, codecs, *arguments):
        path = self.folder / "replay.json"
        result = self.run_replay(self.recording, "--codec", codecs, "--json", path, *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        found = json.loads(path.read_text())
        self.assertEqual((found["steps"], found["ranks"]), (STEPS, RANKS))
        return {row["spec"]: row for row in found["rows"]}

    def test_bits_and_errors_of_each_codec(self):
        rows = self.rows("quantize(bits=4);quantize(bits=8);ecsq(bits=3);topk(density=0.01)",
                         "--skip", 2)
        self.assertEqual(len(rows), 4)
        # 64 bits a bucket, and frames.
        self.assertAlmostEqual(rows["quantize(bits=4)"]["bits_up"], 4.06, delta=0.15)
        self.assertAlmostEqual(rows["quantize(bits=4)"]["bits_down"], 4.06, delta=0.15)
        self.assertLess(rows["quantize(bits=8)"]["rel_error"],
                        rows["quantize(bits=4)"]["rel_error"] / 8)
        ecsq = rows["ecsq(bits=3)"]
        self.assertAlmostEqual((ecsq["bits_up"] + ecsq["bits_down"]) / 2, 3, delta=0.25)
        self.assertLess(ecsq["rel_error"], rows["quantize(bits=4)"]["rel_error"])
        self.assertGreater(rows["topk(density=0.01)"]["rel_error"], 0.5)
        for row in rows.values():
            layers = {layer["name"]: layer for layer in row["layers"]}
            self.assertEqual(set(layers), set(LAYERS))
            self.assertEqual(layers["b.bias"]["spec"], "none")
            self.assertLess(layers["b.bias"]["rel_error"], 1e-6)

    def test_uncompressed_and_a_plan_for_every_layer(self):
        lgreco = "lgreco(window=2,period=4)"  # as it is written here
        rows = self.rows(f"none; {lgreco}")
        self.assertLess(rows["none"]["rel_error"], 1e-6)
        for leg in ("bits_up", "bits_down"):
            self.assertAlmostEqual(rows["none"][leg], 32, delta=0.2)
        specs = {layer["name"]: layer["spec"] for layer in rows[lgreco]["layers"]}
        self.assertRegex(specs["a.weight"], r"quantize\(bits=\d")
        self.assertNotEqual(specs["a.weight"], specs["b.weight"], "gradients of ten times the size")
        self.assertLess(rows[lgreco]["bits_up"], 4.2)

    def test_steps_that_are_not_finite_do_not_count(self):
        broken = self.folder / "broken"
        for rank in range(RANKS):
            tensors = gradients(rank)
            if rank == 1:
                tensors["12/1/a.weight"][1][7] = math.inf
            recordings.save(self.folder / f"broken.{rank}", tensors)
        path = self.folder / "broken.json"
        result = self.run_replay(broken, "--codec", "ecsq(bits=3)", "--json", path)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertLess(json.loads(path.read_text())["rows"][0]["rel_error"], 0.5)

    def test_feedback_makes_good_what_a_step_loses(self):
        rows = self.rows("ecsq(bits=2);ecsq(bits=2, error_feedback=off)")
        kept, lost = rows["ecsq(bits=2)"], rows["ecsq(bits=2, error_feedback=off)"]
        self.assertLess(kept["sum_rel_error"], 0.8 * lost["sum_rel_error"])

    def test_one_file_of_all_ranks_is_read_too(self):
        whole = self.folder / "whole.safetensors"
        recordings.save(whole, {**gradients(0), **gradients(1)})
        result = self.run_replay(whole, "--codec", "cast(bf16)")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("6 steps of 2 ranks, 3 layers", result.stdout)

    def test_what_is_no_recording_is_refused(self):
        torn = gradients(0)
        del torn["12/0/b.bias"]
        recordings.save(self.folder / "torn", torn)
        recordings.save(self.folder / "other", {"weight": ([1], [1.0])})
        for name, words in (("torn", "12/0/b.bias"), ("other", "STEP/RANK/LAYER"),
                            ("missing", "--record-gradients")):
            result = self.run_replay(self.folder / name, "--codec", "topk")
            self.assertEqual(result.returncode, 1)
            self.assertIn(words, result.stderr)

    def test_what_cannot_be_replayed_is_said_in_one_sentence(self):
        recordings.save(self.folder / "gap.0", gradients(0))
        recordings.save(self.folder / "gap.2", gradients(1))
        for name, codec, words, *more in (
                ("gap", "topk", "gap"), ("gradients", "tpok", "did you mean 'topk'"),
                ("gradients", "topk(", "bad spec"),
                ("gradients", "onebit", "scater_reduce", "--strategy", "scater_reduce"),
                ("gradients", "powersgd", "scatter_reduce", "--strategy", "scatter_reduce"),
                ("gradients", "topk", "skip", "--skip", "6")):
            result = self.run_replay(self.folder / name, "--codec", codec, *more)
            self.assertEqual(result.returncode, 1, words)
            self.assertIn(words, result.stderr)
            self.assertEqual(len(result.stderr.strip().splitlines()), 1, result.stderr)

    @unittest.skipUnless(importlib.util.find_spec("matplotlib"), "matplotlib is not installed")
    def test_the_picture(self):
        self.rows("quantize(bits=4);ecsq(bits=3)")
        picture = self.folder / "replay.svg"
        subprocess.run([sys.executable, str(PLOT), str(self.folder / "replay.json"), "-o",
                        str(picture)], check=True)
        self.assertIn("<svg", picture.read_text())


if __name__ == "__main__":
    unittest.main()
