#!/usr/bin/env python3
"""Runs files of Python's unittest and writes their results as JUnit XML.

    run_unittests.py --xml RESULT.xml TEST_FILE...

Needs nothing beyond Python's own library, so that the tests of the tree run without .venv. What
the tests need to know of the build comes in environment variables; see ThinwirePythonTest.cmake.
"""

import argparse
import importlib.util
import pathlib
import sys
import time
import unittest
import xml.etree.ElementTree as ElementTree


class Recorder(unittest.TextTestResult):
    """Prints as unittest does and keeps (test, kind, text, seconds) of every case."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.cases = []
        self.started = 0.0

    def startTest(self, test):
        super().startTest(test)
        self.started = time.monotonic()

    def record(self, test, kind, text=""):
        self.cases.append((test, kind, text, time.monotonic() - self.started))

    def addSuccess(self, test):
        super().addSuccess(test)
        self.record(test, "passed")

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.record(test, "failure", self._exc_info_to_string(err, test))

    def addError(self, test, err):
        super().addError(test, err)
        self.record(test, "error", self._exc_info_to_string(err, test))

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.record(test, "skipped", reason)

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.record(subtest, "failure", self._exc_info_to_string(err, test))


def message_of(kind, text):
    """A traceback ends with the message; the reason of a skip is its first line."""
    lines = text.strip().splitlines() or [""]
    return lines[0] if kind == "skipped" else lines[-1]


def write_xml(path, suite_name, cases):
    suite = ElementTree.Element("testsuite", name=suite_name, tests=str(len(cases)))
    for test, kind, text, seconds in cases:
        # The id ends in Class.method, for a subtest followed by its parameters.
        name, _, parameters = test.id().partition(" ")
        class_name, _, method = name.rpartition(".")
        case = ElementTree.SubElement(
            suite, "testcase", classname=class_name.rpartition(".")[2],
            name=f"{method} {parameters}".strip(), time=f"{seconds:.3f}")
        if kind != "passed":
            detail = ElementTree.SubElement(case, kind, message=message_of(kind, text))
            detail.text = text
    root = ElementTree.Element("testsuites")
    root.append(suite)
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--xml", required=True, type=pathlib.Path)
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    options = parser.parse_args()
    suite = unittest.TestSuite()
    # What several folders of tests share, and what stands beside a test.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "support"))
    for path in options.files:
        sys.path.insert(0, str(path.resolve().parent))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        suite.addTests(unittest.defaultTestLoader.loadTestsFromModule(module))
    runner = unittest.TextTestRunner(verbosity=2, resultclass=Recorder)
    result = runner.run(suite)
    write_xml(options.xml, options.files[0].stem, result.cases)
    if not result.cases:
        print("no test was found", file=sys.stderr)
        return 1
    return 0 if result.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
