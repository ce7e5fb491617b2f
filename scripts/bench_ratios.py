#!/usr/bin/env python3
"""Compares the rows that bench_cluster.sh measured on one kind of link.

    bench_ratios.py RATE FILE...     RATE as tc writes it, or "local"; FILE from --json

Every row's median time and 99th percentile, how many times faster it is than the plain all_reduce of the first file's
backend in float32 and in bfloat16, and which share of the link its bytes fill.
"""

import json
import re
import sys

UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}


def bytes_per_second(rate):
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)bit", rate)
    return float(match[1]) * UNITS[match[2]] / 8 if match else None


def median(row):
    return row["time_us"]["p50"] * 1e-6


def baseline(rows, dtype):
    return next(median(row) for row in rows
                if row["strategy"] == "backend" and row["dtype"] == dtype)


def main(arguments):
    if len(arguments) < 2:
        sys.exit(__doc__)
    rate, files = arguments[0], arguments[1:]
    runs = []
    for name in files:
        with open(name, encoding="utf-8") as file:
            runs.append(json.load(file))
    link = bytes_per_second(rate)
    wide, narrow = (baseline(runs[0]["rows"], dtype) for dtype in ("float32", "bfloat16"))
    first = runs[0]["context"]["backend"]
    print(f"# {rate}: medians; times faster than {first}'s own all_reduce in float32 "
          f"({wide * 1e3:.1f} ms) and bfloat16 ({narrow * 1e3:.1f} ms)")
    print(f"# {'codec':<24} {'strategy':<20} {'backend':<8} {'ms':>9} {'p99':>9} {'x f32':>7} {'x bf16':>7} "
          f"{'of link':>8} {'ratio':>7}")
    for run in runs:
        for row in run["rows"]:
            seconds = median(row)
            share = f"{row['wire_bytes'] / seconds / link:8.2f}" if link else f"{'-':>8}"
            codec = row["codec"] if row["dtype"] == "float32" else f"none, {row['dtype']}"
            print(f"  {codec:<24} {row['strategy']:<20} {run['context']['backend']:<8} "
                  f"{seconds * 1e3:9.1f} {row['time_us']['p99'] / 1e3:9.1f} {wide / seconds:7.2f} {narrow / seconds:7.2f} {share} "
                  f"{row['ratio']:7.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
