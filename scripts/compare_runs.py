#!/usr/bin/env python3
"""Prints a table of training runs side by side, from the result lines of their logs.

    compare_runs.py BASELINE.jsonl RUN.jsonl...

The last line of a log is {"event": "result", ...}; ratios and differences are against the first
log. With --json the rows are written to a file as well.
"""

import argparse
import json
import pathlib
import sys

KEYS = ("backend", "compression", "world_size", "model", "epochs", "test_accuracy",
        "train_seconds", "wire_bytes_per_step", "dense_bytes_per_step", "parameters_crc32c")


def read_result(path):
    """The result of a log; raises ValueError that says what is wrong with it."""
    try:
        lines = [line for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    for line in reversed(lines):
        try:
            event = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: a line is not JSON: {error}") from error
        if event.get("event") == "result":
            missing = [key for key in KEYS if key not in event]
            if missing:
                raise ValueError(f"{path}: its result lacks {', '.join(missing)}")
            return event
    raise ValueError(f"{path}: has no result line; the run did not finish")


def readable_bytes(count):
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def columns(run, baseline):
    """Label and text of every cell of a row."""
    points = 100 * (run["test_accuracy"] - baseline["test_accuracy"])
    wire = run["wire_bytes_per_step"]
    ratio = f"{run['dense_bytes_per_step'] / wire:.2f}x" if wire > 0 else "-"
    return {
        "compression": run["compression"],
        "backend": run["backend"],
        "ranks": str(run["world_size"]),
        "epochs": str(run["epochs"]),
        "test accuracy": f"{100 * run['test_accuracy']:.2f} %",
        "difference": "" if run is baseline else f"{points:+.2f} points",
        "sent/step/rank": readable_bytes(wire),
        "ratio": ratio,
        "seconds": f"{run['train_seconds']:.1f}",
        "parameters": f"{run['parameters_crc32c']}",
    }


def print_table(rows):
    header = list(rows[0])
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in header]
    left = {"compression", "backend"}
    for cells in (dict(zip(header, header)), *rows):
        print("  ".join(
            cells[name].ljust(width) if name in left else cells[name].rjust(width)
            for name, width in zip(header, widths)).rstrip())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=pathlib.Path, help="also write the results to this file")
    parser.add_argument("logs", nargs="+", type=pathlib.Path)
    options = parser.parse_args()
    try:
        runs = [read_result(path) for path in options.logs]
    except ValueError as error:
        print(f"compare_runs: {error}", file=sys.stderr)
        return 1
    if len({(run["model"], run["world_size"], run["epochs"]) for run in runs}) > 1:
        print("note: the runs differ in model, ranks or epochs")
    print_table([columns(run, runs[0]) for run in runs])
    print("parameters: checksum of the trained weights, equal on all ranks of a run")
    if options.json:
        options.json.write_text(json.dumps(runs, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
