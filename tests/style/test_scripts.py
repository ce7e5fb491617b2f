"""The count of tests and the comparison of runs, on small made inputs."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import source_tree

SCRIPTS = source_tree.root_folder() / "scripts"

GTEST = """<testsuites><testsuite name="A">
<testcase name="good" status="run" result="completed" classname="A"/>
<testcase name="off" status="notrun" result="suppressed" classname="A"/>
<testcase name="no_gpu" status="run" result="skipped" classname="A">
<skipped message="/x/a.cpp:3&#x0A;no driver"/></testcase>{}</testsuite></testsuites>"""
BAD = """<testcase name="bad" status="run" result="completed" classname="A">
<failure message="a.cpp:9&#x0A;1 != 2"/></testcase>"""


def run(script, *arguments):
    return subprocess.run([sys.executable, "-B", str(SCRIPTS / script), *map(str, arguments)],
                          capture_output=True, text=True, check=False)


class Summary(unittest.TestCase):
    def summarize(self, entries, files, again=None):
        """Runs the summary on ctest `entries` (name -> XML attributes and inner text); on those of
        `again`, too, as a second run."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder)
            (path / "first").mkdir()
            second = []
            for name, these in (("ctest.xml", entries), ("again.xml", again)):
                if these is not None:
                    cases = "".join(f'<testcase name="{name}" {rest}</testcase>'
                                    for name, rest in these.items())
                    (path / name).write_text(f"<testsuite>{cases}</testsuite>")
            if again is not None:
                second = ["--again", path / "again.xml", "--first", path / "first"]
            for name, text in files.items():
                (path / name).write_text(text)
            result = run("test_summary.py", "--ctest", path / "ctest.xml", *second, path)
        return result.stdout, result.stdout.splitlines()[-1], result.returncode

    def test_cases_are_added(self):
        text, last, code = self.summarize(
            {"a": 'status="run">', "plain": 'status="run">'}, {"a.xml": GTEST.format("")})
        self.assertEqual((last, code), ("2 passed, 0 failed, 2 skipped", 0))
        self.assertIn("a: A.no_gpu: no driver", text)
        self.assertIn("a: A.off: disabled in the source", text)

    def test_failure_is_counted_once(self):
        text, last, code = self.summarize({"a": 'status="fail"><failure message="Failed"/>'},
                                          {"a.xml": GTEST.format(BAD)})
        self.assertEqual((last, code), ("1 passed, 1 failed, 2 skipped", 1))
        self.assertIn("a: A.bad: a.cpp:9", text)

    def test_crash_without_a_file_fails(self):
        _, last, code = self.summarize(
            {"a": 'status="fail"><failure message="SEGFAULT"/>', "b": 'status="run">'}, {})
        self.assertEqual((last, code), ("1 passed, 1 failed, 0 skipped", 1))

    def test_crash_after_a_good_file_fails(self):
        _, last, code = self.summarize({"a": 'status="fail"><failure message="Timeout"/>'},
                                       {"a.xml": GTEST.format("")})
        self.assertEqual((last, code), ("1 passed, 1 failed, 2 skipped", 1))

    def test_truncated_file_fails(self):
        _, last, code = self.summarize({"a": 'status="run">'}, {"a.xml": GTEST[:80]})
        self.assertEqual((last, code), ("0 passed, 1 failed, 0 skipped", 1))

    def test_missing_program_fails(self):
        _, last, code = self.summarize(
            {"a": 'status="notrun"><skipped message="Unable to find executable"/>'}, {})
        self.assertEqual((last, code), ("0 passed, 1 failed, 0 skipped", 1))

    def test_skipped_program_is_skipped(self):
        text, last, code = self.summarize(
            {"a": 'status="notrun"><skipped message="SKIP_RETURN_CODE=77"/>'
                  '<system-out>start\nno network</system-out>',
             "b": 'status="run">'}, {})
        self.assertEqual((last, code), ("1 passed, 0 failed, 1 skipped", 0))
        self.assertIn("a: no network", text)

    def test_what_passes_the_second_time_is_named(self):
        text, last, code = self.summarize(
            {"a": 'status="fail"><failure message="Failed"/>', "b": 'status="run">'},
            {"first/a.xml": GTEST.format(BAD), "a.xml": GTEST.format("")},
            again={"a": 'status="run">'})
        self.assertEqual((last, code), ("2 passed, 0 failed, 2 skipped", 0))
        self.assertIn("passed alone:\n  a: A.bad: a.cpp:9", text)

    def test_what_fails_twice_fails(self):
        text, last, code = self.summarize(
            {"a": 'status="fail"><failure message="SEGFAULT"/>', "b": 'status="run">'}, {},
            again={"a": 'status="fail"><failure message="SEGFAULT"/>'})
        self.assertEqual((last, code), ("1 passed, 1 failed, 0 skipped", 1))
        self.assertNotIn("passed alone", text)

    def test_nothing_is_a_failure(self):
        _, last, code = self.summarize({}, {})
        self.assertEqual((last, code), ("0 passed, 1 failed, 0 skipped", 1))


class Runner(unittest.TestCase):
    def test_results_reach_the_file(self):
        source = ("import unittest\n"
                  "class A(unittest.TestCase):\n"
                  "    def test_good(self): pass\n"
                  "    def test_bad(self): self.assertEqual(1, 2)\n"
                  "    def test_broken(self): raise KeyError('k')\n"
                  "    @unittest.skip('no reason to run')\n"
                  "    def test_skipped(self): pass\n"
                  "    def test_parts(self):\n"
                  "        for part in range(3):\n"
                  "            with self.subTest(part=part): self.assertNotEqual(part, 1)\n")
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder)
            (path / "test_a.py").write_text(source)
            result = run("run_unittests.py", "--xml", path / "results/a.xml", path / "test_a.py")
            text = (path / "results/a.xml").read_text()
        self.assertEqual(result.returncode, 1)
        self.assertEqual(text.count("<testcase"), 5)
        self.assertEqual(text.count("<failure"), 2)
        self.assertEqual(text.count("<error"), 1)
        self.assertIn('message="no reason to run"', text)
        self.assertIn('name="test_parts (part=1)"', text)


class CompareRuns(unittest.TestCase):
    def compare(self, *logs):
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for number, lines in enumerate(logs):
                paths.append(os.path.join(folder, f"{number}.jsonl"))
                pathlib.Path(paths[-1]).write_text("".join(line + "\n" for line in lines))
            return run("compare_runs.py", *paths)

    def result(self, **changes):
        event = {"event": "result", "backend": "mpi", "compression": "identity", "world_size": 2,
                 "model": "cnn", "epochs": 3, "test_accuracy": 0.9, "train_seconds": 10.04,
                 "wire_bytes_per_step": 8e6, "dense_bytes_per_step": 8e6,
                 "parameters_crc32c": "12ab34cd"}
        event.update(changes)
        return json.dumps(event)

    def test_table(self):
        result = self.compare(
            ['{"event": "step"}', self.result()],
            [self.result(compression="quantize(bits=4)", test_accuracy=0.8951,
                         wire_bytes_per_step=1e6)])
        self.assertEqual(result.returncode, 0, result.stderr)
        rows = result.stdout.splitlines()
        self.assertRegex(rows[1], r"^identity +mpi +2 +3 +90.00 % +8.0 MB +1.00x +10.0 +12ab34cd$")
        self.assertRegex(rows[2], r"^quantize\(bits=4\) .* 89.51 % +-0.49 points +1.0 MB +8.00x ")

    def test_unfinished_run_is_an_error(self):
        result = self.compare([self.result()], ['{"event": "step"}'])
        self.assertEqual(result.returncode, 1)
        self.assertIn("no result line", result.stderr)

    def test_incomplete_result_is_an_error(self):
        result = self.compare(['{"event": "result", "backend": "mpi"}'])
        self.assertEqual(result.returncode, 1)
        self.assertIn("lacks compression", result.stderr)


if __name__ == "__main__":
    unittest.main()
