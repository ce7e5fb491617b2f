#!/usr/bin/env python3
"""Draws what `thinwire simulate --json` says of many ranks: a step, and what grows beside it.

    plot_scale.py SIMULATION.json [SIMULATION.json ...] -o SCALE.svg

One line a file, named by its setting and the file's name; the uncompressed step comes from the
first. The ending of the output (.svg or .png) says what is made. Needs matplotlib
(requirements-test.txt).
"""

import argparse
import pathlib
import sys

import plotting

# Field of a row, what it is called, and its unit.
PANELS = (("step_seconds", "a step, ms", 1e3), ("memory_bytes", "memory of a rank, MB", 1e-6),
          ("control_bytes", "control messages of a rank and step, kB", 1e-3),
          ("store_bytes", "from the store at start-up, for each rank, kB", 1e-3))
FIELDS = ("world", "uncompressed_step_seconds", *(field for field, _, _ in PANELS))


def draw(simulations, path):
    import matplotlib  # pylint: disable=import-outside-toplevel
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "thinwire"})
    from matplotlib import pyplot  # pylint: disable=import-outside-toplevel

    figure, axes = pyplot.subplots(2, 2, figsize=(9, 7))
    for axis, (field, label, scale) in zip(axes.flat, PANELS):
        for name, document in simulations:
            rows = document["rows"]
            values = [scale * row[field] / (row["world"] if field == "store_bytes" else 1)
                      for row in rows]
            axis.plot([row["world"] for row in rows], values, "o-",
                      label=f"{document['setting']}, {name}")
        if field == "step_seconds":
            rows = simulations[0][1]["rows"]
            axis.plot([row["world"] for row in rows],
                      [scale * row["uncompressed_step_seconds"] for row in rows], "--",
                      color="black", linewidth=0.8, label="none")
            axis.legend(fontsize=8)
        axis.set(xscale="log", yscale="log", xlabel="ranks", ylabel=label)
        axis.grid(True, which="major", linewidth=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    plotting.add_output(parser)
    options = plotting.parse(parser)
    return plotting.exit_code("plot_scale", lambda: draw(
        [(path.stem, plotting.read_document(path, FIELDS, "thinwire simulate --json"))
         for path in options.files], options.output))


if __name__ == "__main__":
    sys.exit(main())
