#!/usr/bin/env python3
"""Adds up a test run and prints `N passed, N failed, N skipped` as its last line.

    test_summary.py --ctest CTEST_JUNIT [--again CTEST_JUNIT --first FOLDER] FOLDER

Every ctest entry `name` is counted by the cases of FOLDER/name.xml (and FOLDER/name.*.xml), as
GoogleTest, pytest and scripts/run_unittests.py write them. An entry without such a file counts as
one test. An entry that ctest saw failing although its file reports no failure (a crash, a time-out,
a bad exit code) counts as one failed test more.

Entries that are in --again were run a second time, and count as they went then. Those that pass are
named, with what their files in --first say; so that nobody takes them for sound.
"""

import argparse
import dataclasses
import pathlib
import sys
import xml.etree.ElementTree as ElementTree


@dataclasses.dataclass
class Totals:
    passed: int = 0
    failures: list = dataclasses.field(default_factory=list)
    skips: list = dataclasses.field(default_factory=list)
    unsteady: list = dataclasses.field(default_factory=list)  # passed the second time


def first_line(text):
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return lines[0] if lines else "no reason given"


def skip_reason(skipped):
    """GoogleTest puts `file:line` before the text of GTEST_SKIP, so the reason may be line two."""
    text = skipped.get("message") or skipped.text or ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("/"):
        lines = lines[1:]
    return lines[0] if lines else "no reason given"


def add_cases(path, entry, totals):
    """Adds the cases of one result file; returns how many of them failed."""
    failed_before = len(totals.failures)
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        totals.failures.append((entry, f"{path.name} is not valid XML: {error}"))
        return 1
    for case in root.iter("testcase"):
        name = f"{entry}: {case.get('classname', '')}.{case.get('name', '')}"
        bad = case.find("failure")
        bad = bad if bad is not None else case.find("error")
        skipped = case.find("skipped")
        if bad is not None:
            totals.failures.append((name, first_line(bad.get("message") or bad.text)))
        elif skipped is not None:
            totals.skips.append((name, skip_reason(skipped)))
        elif case.get("status") == "notrun":
            totals.skips.append((name, "disabled in the source"))
        else:
            totals.passed += 1
    return len(totals.failures) - failed_before


def add_entry(case, files, totals):
    entry = case.get("name")
    failed_cases = sum(add_cases(path, entry, totals) for path in files)
    status = case.get("status")
    if status == "fail":
        if failed_cases == 0:
            failure = case.find("failure")
            message = failure.get("message") if failure is not None else None
            totals.failures.append((entry, first_line(message or "ctest reports a failure")))
    elif status in ("notrun", "disabled"):
        skipped = case.find("skipped")
        message = skipped.get("message") if skipped is not None else None
        # ctest says "notrun" both for a skip and for a program that is not there.
        if message and message.startswith("SKIP_"):
            if not files:
                totals.skips.append((entry, skip_text(case)))
        elif status == "disabled":
            totals.skips.append((entry, "disabled in the source"))
        else:
            totals.failures.append((entry, first_line(message or "did not run")))
    elif not files:
        totals.passed += 1


def skip_text(case):
    """The last line that a skipped program printed is its reason."""
    output = (case.findtext("system-out") or "").strip().splitlines()
    return output[-1].strip() if output else "no reason given"


def cases_of(ctest_file):
    return {case.get("name"): case for case in ElementTree.parse(ctest_file).getroot().iter("testcase")}


def add_all(cases, folder, totals, but=()):
    """Adds the entries, and what is in the folder of none of them."""
    files = sorted(path for path in folder.glob("*.xml") if path not in but)
    for name, case in cases.items():
        own = [path for path in files if path.stem == name or path.name.startswith(name + ".")]
        files = [path for path in files if path not in own]
        add_entry(case, own, totals)
    for path in files:
        add_cases(path, path.stem, totals)


def summarize(options):
    totals = Totals()
    try:
        cases = cases_of(options.ctest)
        again = cases_of(options.again) if options.again else {}
    except (OSError, ElementTree.ParseError) as error:
        totals.failures.append(("ctest", f"left no readable result file: {error}"))
        return totals
    if again:
        before = Totals()
        add_all({name: cases[name] for name in again}, options.first, before)
        totals.unsteady = [(name, reason) for name, reason in before.failures
                           if again[name.partition(":")[0]].get("status") == "run"]
    add_all(cases | again, options.folder, totals, but=(options.ctest, options.again))
    return totals


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ctest", required=True, type=pathlib.Path, help="ctest's JUnit file")
    parser.add_argument("--again", type=pathlib.Path, help="ctest's JUnit file of a second run")
    parser.add_argument("--first", type=pathlib.Path,
                        help="folder of the result files that the second run would have replaced")
    parser.add_argument("folder", type=pathlib.Path, help="folder of the result files")
    options = parser.parse_args()
    totals = summarize(options)
    for title, cases in (("Skipped", totals.skips),
                         ("Failed beside other tests and passed alone", totals.unsteady),
                         ("Failed", totals.failures)):
        if cases:
            print(f"\n{title}:")
            for name, reason in cases:
                print(f"  {name}: {reason}")
    if not totals.passed and not totals.failures:
        totals.failures.append(("all", "no test ran"))
        print("\nNo test ran.")
    print(f"\n{totals.passed} passed, {len(totals.failures)} failed, {len(totals.skips)} skipped",
          flush=True)
    return 1 if totals.failures else 0


if __name__ == "__main__":
    sys.exit(main())
