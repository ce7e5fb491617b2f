"""`thinwire plan`, and the picture that scripts/plot_plan.py makes of its plans."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import jobs

THINWIRE = jobs.PROGRAMS / "thinwire"
PLOT = pathlib.Path(os.environ["THINWIRE_SOURCE_DIR"], "scripts", "plot_plan.py")


def candidate(spec, size, error, **more):
    return {"spec": spec, "bytes": size, "error": error, **more}


# The first layer bears much, the second nothing: 4 bits for both cost 100 + 100.
def curves():
    return {"layers": [
        {"name": "bears", "numel": 200, "reference": 1, "candidates": [
            candidate("identity", 800, 0), candidate("quantize(bits=4)", 100, 1),
            candidate("quantize(bits=2)", 50, 1.25)]},
        {"name": "suffers", "numel": 200, "reference": 1, "candidates": [
            candidate("identity", 800, 0), candidate("quantize(bits=4)", 100, 8),
            candidate("quantize(bits=5)", 125, 4)]}]}


def link(beta, codecs=()):
    cost = {"alpha": 1e-4, "beta": beta}
    collectives = {name: cost for name in ("all_reduce", "all_to_all", "all_gather", "broadcast")}
    return {"format": "thinwire.link", "version": 1, "world": 2, "hosts": ["a", "b"],
            "backends": {"gloo": {"collectives": collectives, "pairs": []}},
            "codecs": [{"spec": spec, "compress": each, "decompress": each, "accumulate": each}
                       for spec, each in codecs]}


class PlanTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def write(self, name, document):
        path = self.folder / name
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    def run_plan(self, *arguments):
        return subprocess.run([str(THINWIRE), "plan", *map(str, arguments)], capture_output=True,
                              text=True, env=jobs.environment(), check=False)

    def plan(self, document, *arguments):
        path = self.folder / "plan.json"
        result = self.run_plan("--curves", self.write("curves.json", document), *arguments, "-o",
                               path)
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(path.read_text())

    def complaint(self, code, *arguments):
        result = self.run_plan(*arguments)
        self.assertEqual((result.returncode, result.stdout), (code, ""), result.stderr)
        return result.stderr


class Plan(PlanTest):
    def choices(self, plan):
        return [layer["spec"] for layer in plan["layers"]]

    def test_least_bytes_at_the_references_error(self):
        plan = self.plan(curves())
        self.assertEqual(plan["constraint"], "error")
        self.assertEqual((plan["reference_bytes"], plan["reference_error"]), (200, 9))
        self.assertEqual((plan["total_bytes"], plan["total_error"]), (175, 5.25))
        self.assertEqual(self.choices(plan), ["quantize(bits=2)", "quantize(bits=5)"])
        self.assertEqual([layer["choice"] for layer in plan["layers"]], [2, 2])
        self.assertEqual([layer["name"] for layer in plan["layers"]], ["bears", "suffers"])

    def test_least_error_at_the_references_bytes(self):
        plan = self.plan(curves(), "--constraint", "bytes")
        self.assertLessEqual(plan["total_bytes"], 200)
        self.assertEqual(plan["total_error"], 5.25)

    def test_budget(self):
        # Half of the error allows what half of 9 is; no error at all only identity.
        self.assertLessEqual(self.plan(curves(), "--budget", "0.5")["total_error"], 4.5)
        tight = self.plan(curves(), "--budget", "1e-9")
        self.assertEqual(self.choices(tight), ["identity", "identity"])

    def test_time_on_networks_of_different_speed(self):
        document = curves()
        for layer in document["layers"]:
            for each in layer["candidates"]:
                each["seconds"] = 0 if each["spec"] == "identity" else 1e-6
        slow = self.plan(document, "--objective", "time", "--link",
                         self.write("slow.json", link(1e-6)))
        fast = self.plan(document, "--objective", "time", "--link",
                         self.write("fast.json", link(1e-10)))
        self.assertEqual(self.choices(fast), ["identity", "identity"])
        self.assertEqual(self.choices(slow), ["quantize(bits=2)", "quantize(bits=5)"])
        self.assertLess(slow["total_seconds"], slow["reference_seconds"])
        self.assertAlmostEqual(slow["total_seconds"], 175e-6 + 2e-6)

    def test_time_with_the_codecs_speed_from_the_link_file(self):
        quick, lame = ("quantize(bits=2, bucket=1024, norm=minmax, rounding=nearest)", 1e-12), (
            "quantize(bits=5, bucket=1024, norm=minmax, rounding=nearest)", 1e-3)
        plan = self.plan(curves(), "--objective", "time", "--link",
                         self.write("link.json", link(1e-7, [quick, lame])))
        self.assertEqual(self.choices(plan), ["quantize(bits=2)", "identity"])

    def test_standard_output(self):
        result = self.run_plan("--curves", self.write("c.json", curves()))
        self.assertEqual(json.loads(result.stdout)["total_bytes"], 175)

    def test_same_input_same_plan(self):
        self.assertEqual(self.plan(curves()), self.plan(curves()))

    def test_show(self):
        self.plan(curves())
        result = self.run_plan("--show", self.folder / "plan.json")
        self.assertEqual(result.returncode, 0, result.stderr)
        for word in ("bears", "suffers", "quantize(bits=2)", "175", "1.14x", "instead of 200"):
            self.assertIn(word, result.stdout)

    def test_names_reach_the_terminal_escaped(self):
        document = curves()
        name = "\x1b[2J\u009b\u202ew"
        document["layers"][1]["name"] = name  # a warning tells that it has most of the error
        path = self.write("c.json", document)
        made = self.run_plan("--curves", path, "-o", self.folder / "p.json")
        self.assertIn("\\x1b[2J", made.stderr)
        on_terminal = self.run_plan("--curves", path)
        self.assertEqual(json.loads(on_terminal.stdout)["layers"][1]["name"], name)
        shown = self.run_plan("--show", self.folder / "p.json")
        self.assertIn("\\x1b[2J\\xc2\\x9b\\xe2\\x80\\xaew  ", shown.stdout)
        for text in (made.stdout, made.stderr, on_terminal.stdout, shown.stdout):
            self.assertFalse(set(text) & set("\x1b\u009b\u202e"), text)


class BadInput(PlanTest):
    def check(self, change, *words):
        document = curves()
        change(document)
        path = self.write("bad.json", document)
        text = self.complaint(1, "--curves", path, "-o", self.folder / "none.json")
        for word in ("bad.json", *words):
            self.assertIn(word, text)
        self.assertFalse((self.folder / "none.json").exists())

    def test_curves_are_refused_with_the_place(self):
        def last(document):
            return document["layers"][1]["candidates"][2]
        self.check(lambda d: last(d).update(error=-1), "layers[1].candidates[2].error", "-1")
        self.check(lambda d: last(d).update(bytes=None), "layers[1].candidates[2].bytes")
        self.check(lambda d: last(d).update(error=float("nan")), "JSON")
        self.check(lambda d: last(d).update(eror=1), "layers[1].candidates[2]", "eror", "error")
        self.check(lambda d: d["layers"][0].update(candidates=[]), "layers[0].candidates")
        self.check(lambda d: d["layers"][0].update(reference=3), "layers[0].reference", "3")
        self.check(lambda d: d["layers"][0].pop("numel"), "layers[0]", "numel")
        self.check(lambda d: d.update(layer=[]), "layer")

    def test_time_without_seconds(self):
        document = curves()
        document["layers"][0]["candidates"][0]["seconds"] = 1
        path = self.write("c.json", document)
        text = self.complaint(1, "--curves", path, "--objective", "time")
        self.assertIn("layers[0].candidates[1].seconds", text)
        self.assertIn("--link", text)

    def test_wrong_command_lines(self):
        path = self.write("c.json", curves())
        self.complaint(2)
        self.complaint(2, "--curves", path, "--show", path)
        self.complaint(2, "--curves", path, "--budget", "0")
        self.complaint(2, "--curves", path, "--constraint", "size")
        self.complaint(2, "--curves", path, "--link", path)
        text = self.complaint(1, "--curves", path, "--objective", "bytes", "--link", path)
        self.assertIn("--objective bytes", text)
        text = self.complaint(1, "--curves", path, "--budget", "1e308")
        self.assertIn("is not finite", text)
        self.assertIn(str(self.folder), self.complaint(1, "--curves", self.folder))
        self.assertIn("no.json", self.complaint(1, "--curves", self.folder / "no.json"))
        self.assertIn("c.json", self.complaint(1, "--show", path))


class Picture(PlanTest):
    def plot(self, *arguments):
        return subprocess.run([sys.executable, str(PLOT), *map(str, arguments)],
                              capture_output=True, text=True, check=False)

    @unittest.skipUnless(importlib.util.find_spec("matplotlib"),
                         "matplotlib is missing; pip install -r requirements-test.txt")
    def test_svg_and_png(self):
        self.plan(curves())
        plan, svg, png = (self.folder / name for name in ("plan.json", "p.svg", "p.png"))
        for picture in (svg, png):
            result = self.plot(plan, "-o", picture)
            self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(png.read_bytes()[:8], b"\x89PNG\r\n\x1a\n")
        text = svg.read_text()
        for word in ("bears", "suffers", "uniform", "chosen", "quantize 2", "175 bytes"):
            self.assertIn(word, text)

    def test_refuses_what_is_no_plan(self):
        path = self.write("c.json", curves())
        result = self.plot(path, "-o", self.folder / "p.svg")
        self.assertEqual(result.returncode, 1)
        self.assertIn("total_bytes", result.stderr)
        totals = dict.fromkeys(("total_bytes", "total_error", "reference_bytes",
                                "reference_error"), 1)
        for layers, complaint in (([1], "layers[0]: expected an object"),
                                  ([{"name": 1}], "layers[0]: name: expected a text, found 1")):
            path = self.write("p.json", {**totals, "layers": layers})
            result = self.plot(path, "-o", self.folder / "p.svg")
            self.assertEqual(result.returncode, 1)
            self.assertIn(complaint, result.stderr)
        self.assertEqual(self.plot(path, "-o", self.folder / "p.gif").returncode, 2)


if __name__ == "__main__":
    unittest.main()
