"""The reader that was written from docs/peft-format.md against the files of `thinwire peft`."""

import json
import math
import os
import pathlib
import random
import struct
import tempfile
import unittest

import compeft_reader
from peft_program import PROGRAM, run, write

BLOCK = 262144


def pack_floats(values):
    values = list(values)
    return struct.pack(f"<{len(values)}f", *values)


def normal(seed, n):
    generator = random.Random(seed)
    return [generator.gauss(0, 1) for _ in range(n)]


class Format(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = pathlib.Path(folder.name)

    def unpacked(self, packed):
        run("unpack", packed, "-o", self.dir / "out", "--force")
        data = (self.dir / "out" / "adapter_model.safetensors").read_bytes()
        return compeft_reader.safetensors(data)[0]

    def check(self, packed):
        """Both readers give the same bytes; returns the file's description."""
        self.assertEqual(compeft_reader.read(packed), self.unpacked(packed))
        return json.loads(run("inspect", packed, "--json"))

    def write_lora(self, name, seed):
        (self.dir / name).mkdir()
        (self.dir / name / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
        write(self.dir / name / "adapter_model.safetensors", {
            "q.lora_A.weight": ("F32", [4, 60], pack_floats(normal(seed, 240))),
            "q.lora_B.weight": ("F32", [30, 4], pack_floats(normal(seed + 1, 120))),
            "score.weight": ("I64", [2], struct.pack("<2q", -3, 1 << 40)),
        }, {"format": "pt"})
        run("pack", self.dir / name, "-o", self.dir / f"{name}.peft", "--density", "0.2")
        return self.dir / f"{name}.peft"

    def test_the_program_has_the_command(self):
        packed = self.write_lora("a", 9)
        run("unpack", packed, "-o", self.dir / "out", program=PROGRAM)
        data = (self.dir / "out" / "adapter_model.safetensors").read_bytes()
        self.assertEqual(compeft_reader.safetensors(data)[0], self.unpacked(packed))
        packed.write_bytes(b"x")
        self.assertEqual(run("verify", packed, code=1, program=PROGRAM),
                         run("verify", packed, code=1))
        run("pack", code=2, program=PROGRAM)

    def test_every_mode_of_a_block(self):
        generator = random.Random(1)
        values = []
        # Zero entries are never kept: with density 1 each block has the density given here.
        for density in (0, 0.01, 0.2, 0.5):
            values += [generator.choice((-1, 1)) if generator.random() < density else 0
                       for _ in range(BLOCK)]
        write(self.dir / "in", {"w": ("F32", [4, BLOCK], pack_floats(values))})
        run("pack", self.dir / "in", "-o", self.dir / "p", "--density", "1")
        blocks = self.check(self.dir / "p")["blocks"]
        self.assertEqual(blocks, {"empty": 1, "rice": 1, "rans": 1, "mask+signs": 1, "planes": 0,
                                  "contexts": 0})
        # Rows and columns of unlike density, in one block and over two of them.
        for name, shapes in (("small", ([100, 80], [9, 5, 3, 3], [40])), ("large", ([1000, 300],))):
            tensors = {}
            for index, shape in enumerate(shapes):
                numel, width = math.prod(shape), math.prod(shape[1:])
                tensors[f"w{index}"] = ("F32", shape, pack_floats(
                    generator.choice((-1, 1)) if generator.random() < (
                        0.3 if i // width % 3 == 0 and i % width % 4 == 0 else 0.02) else 0
                    for i in range(numel)))
            write(self.dir / name, tensors)
            run("pack", self.dir / name, "-o", self.dir / f"{name}.p", "--density", "1")
            blocks = self.check(self.dir / f"{name}.p")["blocks"]
            self.assertEqual(blocks["contexts"], {"small": 1, "large": 2}[name])
        # Sixteen set entries: two planes of two bytes are the smallest there is.
        write(self.dir / "few", {"w": ("F32", [16], pack_floats([-1, 1] * 8))})
        run("pack", self.dir / "few", "-o", self.dir / "q", "--density", "1")
        self.assertEqual(self.check(self.dir / "q")["blocks"]["planes"], 1)

    def test_densities_that_change_within_a_block(self):
        generator = random.Random(2)
        values = [generator.choice((-1, 1)) if generator.random() < (0.3, 0, 0.01)[i // 512 % 3]
                  else 0 for i in range(50001)]
        write(self.dir / "in", {"w": ("F32", [50001], pack_floats(values))})
        run("pack", self.dir / "in", "-o", self.dir / "p", "--density", "1")
        self.assertEqual(self.check(self.dir / "p")["blocks"]["rans"], 1)

    def test_adapters_and_all_granularities(self):
        self.write_lora("a", 3)
        for granularity, parts in (("global", 1), ("group", 2), ("tensor", 2)):
            run("pack", self.dir / "a", "-o", self.dir / "p", "--density", "0.1", "--scale",
                "std:1.5", "--granularity", granularity, "--force")
            description = self.check(self.dir / "p")
            self.assertEqual(len(description["parts"]), parts)
            self.assertEqual(description["file_bytes"], (self.dir / "p").stat().st_size)

    def test_base_one_and_narrow_types(self):
        values = [1 + x / 100 for x in normal(4, 300)]
        write(self.dir / "in", {dtype: (dtype, [300], compeft_reader.rounded(dtype, values))
                                for dtype in ("F16", "BF16", "F64", "F32")})
        run("pack", self.dir / "in", "-o", self.dir / "p", "--base-one", "--target-error", "0.6")
        description = self.check(self.dir / "p")
        self.assertLessEqual(description["parts"][0]["relative_error"], 0.6)

    def test_merged_files(self):
        packed = [self.write_lora(name, 10 * i) for i, name in enumerate("abc")]
        for method in ("ties", "majority", "average", "task-arithmetic"):
            run("merge", *packed, "--method", method, "--weights", "1,0.5,2", "-o", self.dir / "m",
                "--force")
            self.check(self.dir / "m")

    def test_deltas_against_a_base_file(self):
        base = normal(5, 400)
        tuned = [x + d / 50 for x, d in zip(base, normal(6, 400))]
        for dtype in ("F32", "BF16"):
            for name, values in (("base", base), ("tuned", tuned)):
                write(self.dir / name, {"w": (dtype, [20, 20],
                                              compeft_reader.rounded(dtype, values))})
            run("pack", self.dir / "tuned", "--base", self.dir / "base", "-o", self.dir / "p",
                "--force")
            run("apply", self.dir / "p", "--base", self.dir / "base", "-o", self.dir / "out",
                "--force")
            expected = compeft_reader.safetensors((self.dir / "out").read_bytes())[0]
            self.assertEqual(
                compeft_reader.read(self.dir / "p", (self.dir / "base").read_bytes()), expected)
            run("verify", self.dir / "p", "--base", self.dir / "base")
            self.assertIn("wrong base", run("verify", self.dir / "p", "--base", self.dir / "tuned",
                                            code=1))

    def test_damage_is_an_error_of_one_line(self):
        packed = self.write_lora("a", 7)
        data = packed.read_bytes()
        for at in (0, 9, len(data) // 2, len(data) - 20, len(data) - 1):
            packed.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1:])
            message = run("verify", packed, code=1)
            self.assertTrue(message.startswith("thinwire: ") and message.count("\n") == 1, message)
            with self.assertRaises(Exception):
                compeft_reader.read(packed)

    def test_foreign_files_are_named(self):
        for content, kind in ((b"<!DOCTYPE html><p>", "an HTML page"),
                              (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
                              (b"PK\3\4" + bytes(40), "a pickle")):
            (self.dir / "in").write_bytes(content)
            message = run("pack", self.dir / "in", "-o", self.dir / "x", code=1)
            self.assertTrue(kind in message and message.count("\n") == 1, message)

    def test_names_reach_the_terminal_escaped(self):
        name = "\x1b[2J\u009b\u202ew"
        write(self.dir / "in", {name: ("F32", [64], pack_floats(normal(1, 64)))})
        run("pack", self.dir / "in", "-o", self.dir / "p", "--granularity", "tensor")
        shown = run("inspect", self.dir / "p")
        self.assertIn("\\x1b[2J\\xc2\\x9b\\xe2\\x80\\xaew", shown)
        self.assertFalse(set(shown) & set("\x1b\u009b\u202e"))
        write(self.dir / "in", {name: ("F32", [64], pack_floats([float("nan")] * 64))})
        message = run("pack", self.dir / "in", "-o", self.dir / "x", code=1)
        self.assertIn("not finite", message)
        self.assertFalse(set(message) & set("\x1b\u009b\u202e"))

    def test_what_is_no_regular_file_is_not_replaced(self):
        packed = self.write_lora("a", 11)
        os.mkfifo(self.dir / "pipe")
        for target in (self.dir / "pipe", "/dev/null"):
            for command in (("pack", self.dir / "a"),
                            ("merge", packed, packed, "--method", "average")):
                self.assertIn("no regular file", run(*command, "-o", target, "--force", code=1))
        self.assertTrue((self.dir / "pipe").is_fifo())
        self.assertTrue(pathlib.Path("/dev/null").is_char_device())

    def test_existing_files_stay_without_force(self):
        packed = self.write_lora("a", 8)
        before = packed.read_bytes()
        self.assertIn("exists", run("pack", self.dir / "a", "-o", packed, code=1))
        self.assertIn("exists", run("unpack", packed, "-o", self.dir / "a", code=1))
        self.assertEqual(packed.read_bytes(), before)

    def test_similarity_and_usage(self):
        packed = [self.write_lora(name, 20 * i) for i, name in enumerate("ab")]
        matrix = json.loads(run("similarity", *packed, packed[0], "--json"))["cosines"]
        self.assertEqual([matrix[i][i] for i in range(3)], [1, 1, 1])
        self.assertAlmostEqual(matrix[0][2], 1, 12)
        dense = [sum((compeft_reader.floats("F32", t[2]) for n, t in
                      compeft_reader.read(path).items() if "lora" in n), []) for path in packed]
        dot = [sum(x * y for x, y in zip(dense[i], dense[j])) for i, j in ((0, 1), (0, 0), (1, 1))]
        self.assertAlmostEqual(matrix[0][1], dot[0] / (dot[1] * dot[2])**0.5, 9)
        run("pack", self.dir / "a", "-o", self.dir / "x", "--density", "0.1", "--target-bytes", "9kB",
            code=2)
        self.assertIn("must be positive, got -1", run("pack", self.dir / "a", "-o", self.dir / "x",
                                                      "--target-bytes", "-1", code=2))
        run("merge", *packed, "-o", self.dir / "x", code=2)
        self.assertIn("granularity must be", run("pack", self.dir / "a", "-o", self.dir / "x",
                                                 "--granularity", "layer", code=1))
        self.assertFalse((self.dir / "x").exists())


if __name__ == "__main__":
    unittest.main()
