#!/usr/bin/env python3
"""Draws what `thinwire replay --json` found: error against bits, a point for each spec.

    plot_replay.py REPLAY.json [REPLAY.json ...] -o REPLAY.svg

Specs of one codec are joined in order of their bits; the ending of the output (.svg or .png) says
what is made. Needs matplotlib (requirements-test.txt).
"""

import argparse
import collections
import pathlib
import sys

import plotting

FIELDS = ("spec", "bits_up", "bits_down", "rel_error")


def pareto(points):
    """Those (bits, error) with less error than everything of fewer bits."""
    best, front = float("inf"), []
    for bits, error in sorted(points):
        if error < best:
            best = error
            front.append((bits, error))
    return front


def draw(rows, path):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    families = collections.defaultdict(list)
    for row in rows:
        bits = (row["bits_up"] + row["bits_down"]) / 2
        families[row["spec"].partition("(")[0]].append((bits, row["rel_error"] ** 2))
    figure, axes = pyplot.subplots(figsize=(7, 5))
    for name, points in sorted(families.items()):
        points.sort()
        axes.plot([p[0] for p in points], [p[1] for p in points], "o-", label=name)
    front = pareto([p for points in families.values() for p in points])
    axes.plot([p[0] for p in front], [p[1] for p in front], color="black", linewidth=0.5,
              linestyle="--", label="best")
    axes.set(xscale="log", yscale="log", xlabel="bits an element, mean of both ways",
             ylabel="squared error, relative")
    axes.grid(True, which="both", linewidth=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    parser.add_argument("-o", "--output", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    try:
        rows = [row for path in arguments.files
                for row in plotting.read_document(path, FIELDS, "thinwire replay --json")["rows"]]
    except ValueError as error:
        print(f"plot_replay.py: {error}", file=sys.stderr)
        return 1
    draw(rows, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
