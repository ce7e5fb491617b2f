#!/usr/bin/env python3
"""Outer steps of LoRA with ternary deltas against dense ones, on emulated hosts of a slow network.

    compeft.py --build BUILD [--quick] [--seeds 1 2 3] [--hosts 4] [--rate 100mbit] [--folder FOLDER]

Adapts a wide classifier (784-2048-2048-10, LoRA of rank 256 on every layer: 2.3 M parameters that
are exchanged) to five classes that its base has not seen, on one rank a host, with outer steps
(DiLoCo) that send float32, bfloat16 or ternary deltas. Every run is kept as a log in FOLDER, and
one that has its result is not repeated, so a run that was interrupted goes on where it stopped.
The exchange is timed from the moment in which the last rank is there, encoding included.

At the end a table over all seeds and whether each bar is met:
  bytes      bfloat16 / ternary   at least 20
  exchange   bfloat16 / ternary   at least 10
  accuracy   the mean of the ternary runs within 1 point of the dense ones
  packed     the mean of the packed files within 1 point of their adapters
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SETTINGS = {"float32": "none", "bfloat16": "cast(bf16)", "ternary": "ternary(density=0.05)"}
MODEL = {"hidden": 2048, "rank": 256, "alpha": 256, "lr": 1e-3}
FULL = {"outer_steps": 60, "inner_steps": 10, "batch_size": 32}
QUICK = {"outer_steps": 3, "inner_steps": 2, "batch_size": 16, "test_samples": 2000}


def result_of(log):
    """The result line of a log, None where the run did not finish."""
    try:
        lines = log.read_text().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if event.get("event") == "result":
            return event
    return None


def command_of(options, log, base, seed, **changes):
    chosen = {**MODEL, **(QUICK if options.quick else FULL), "seed": seed, "threads": 1,
              "backend": "gloo", "base": base, "log": log, **changes}
    return [str(options.build / "bin" / "train_lora")] + [
        f"--{name.replace('_', '-')}={value}" for name, value in chosen.items()]


def run(command, timeout):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    code = subprocess.run(command, env=environment, timeout=timeout, check=False,
                          stdin=subprocess.DEVNULL).returncode
    if code:
        print(f"compeft: exit code {code} of {' '.join(map(str, command))}", file=sys.stderr)
        sys.exit(code)


def train(options, seed, name):
    """One run, unless its result is there."""
    log = options.folder / f"{name}-{seed}.jsonl"
    if result_of(log) is None:
        base = options.folder / f"base-{seed}.pt"
        if not base.exists():
            print(f"\n== the base of seed {seed}", flush=True)
            partial = base.with_suffix(".partial")
            run(command_of(options, options.folder / "base.jsonl", partial, seed, outer_steps=1,
                           inner_steps=1), 600)
            partial.rename(base)
        print(f"\n== seed {seed}, {name}: {SETTINGS[name]}", flush=True)
        cluster = [sys.executable, "-B", str(ROOT / "tests" / "cluster" / "cluster.py"), "--hosts",
                   str(options.hosts), "--rate", options.rate, "--launch", "torchrun-env", "--"]
        run(cluster + command_of(options, log, base, seed, outer_compression=SETTINGS[name]), 900)
    result = result_of(log)
    if result is None:
        sys.exit(f"compeft: {log} has no result")
    return result


def mean(runs, key):
    return statistics.mean(run[key] for run in runs)


def summarise(runs):
    """Rows of the table and the bars, from {setting: [result of each seed]}."""
    rows = {}
    for name, results in runs.items():
        steps = mean(results, "outer_steps")
        rows[name] = {
            "megabytes_per_step": mean(results, "wire_bytes_per_step") / 1e6,
            "exchange_ms": 1e3 * mean(results, "exchange_seconds") / steps,
            "accuracy": 100 * mean(results, "test_accuracy"),
            "packed": 100 * mean(results, "packed_accuracy"),
            "packed_ratio": mean(results, "adapter_bytes") / mean(results, "packed_bytes"),
            "seconds": mean(results, "train_seconds")}
    dense, ternary = rows["bfloat16"], rows["ternary"]
    bars = {
        "bytes": (dense["megabytes_per_step"] / ternary["megabytes_per_step"], ">=", 20),
        "exchange": (dense["exchange_ms"] / ternary["exchange_ms"], ">=", 10),
        "accuracy": (max(dense["accuracy"], rows["float32"]["accuracy"]) - ternary["accuracy"],
                     "<=", 1),
        "packed": (ternary["accuracy"] - ternary["packed"], "<=", 1)}
    return rows, bars


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "release",
                        help="build folder, default build/release")
    parser.add_argument("--quick", action="store_true",
                        help="a few steps of one seed: shows that it works, not how well")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--rate", default="100mbit")
    parser.add_argument("--folder", type=pathlib.Path, help="default: results/compeft")
    options = parser.parse_args()
    options.folder = options.folder or ROOT / "results" / (
        "compeft-quick" if options.quick else "compeft")
    if options.quick:
        options.seeds = options.seeds[:1]
    options.folder.mkdir(parents=True, exist_ok=True)

    runs = {name: [] for name in SETTINGS}
    for seed in options.seeds:
        for name, results in runs.items():
            results.append(train(options, seed, name))
    rows, bars = summarise(runs)
    first = runs["ternary"][0]
    print(f"\n{options.hosts} hosts at {options.rate}, {first['model']}, "
          f"{first['adapter_parameters']} parameters exchanged, seeds {options.seeds}, means")
    print(f"{'deltas':10} {'MB/step':>9} {'exchange':>11} {'accuracy':>10} {'packed':>9} "
          f"{'file':>7} {'seconds':>8}")
    for name, row in rows.items():
        print(f"{name:10} {row['megabytes_per_step']:9.3f} {row['exchange_ms']:8.1f} ms "
              f"{row['accuracy']:8.2f} % {row['packed']:7.2f} % {row['packed_ratio']:6.1f}x "
              f"{row['seconds']:8.1f}")
    for name, (value, relation, bar) in bars.items():
        met = value >= bar if relation == ">=" else value <= bar
        print(f"{name:10} {value:8.2f} {relation} {bar}: {'met' if met else 'MISSED'}")
    summary = options.folder / "summary.json"
    summary.write_text(json.dumps(
        {"hosts": options.hosts, "rate": options.rate, "seeds": options.seeds, "rows": rows,
         "bars": {name: value for name, (value, _, _) in bars.items()}, "runs": runs},
        indent=2) + "\n")
    print(f"kept in {summary}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
