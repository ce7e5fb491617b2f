#!/usr/bin/env python3
"""Draws what `thinwire simulate --json` says of many ranks: a step, and what grows beside it.

    plot_scale.py SIMULATION.json [SIMULATION.json ...] -o SCALE.svg

One line a file, named by its setting and the file's name; the uncompressed step comes from the
first. The ending of the output (.svg or .png) says what is made. Needs matplotlib
(requirements-test.txt).
"""

import argparse
import json
import pathlib
import sys

# Field of a row, what it is called, and its unit.
PANELS = (("step_seconds", "a step, ms", 1e3), ("memory_bytes", "memory of a rank, MB", 1e-6),
          ("control_bytes", "control messages of a rank and step, kB", 1e-3),
          ("store_bytes", "from the store at start-up, for each rank, kB", 1e-3))
FIELDS = ("world", "uncompressed_step_seconds", *(field for field, _, _ in PANELS))


def read_simulation(path):
    """The document of a file; raises ValueError that says what is wrong with it."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = document["rows"]
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not what thinwire simulate --json writes: {error}") from error
    if not rows:
        raise ValueError(f"{path}: it has no rows")
    for row in rows:
        for field in FIELDS:
            if field not in row:
                raise ValueError(f"{path}: {field} missing")
    return document


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
    parser.add_argument("-o", "--output", required=True, type=pathlib.Path,
                        help="picture to write, .svg or .png")
    options = parser.parse_args()
    if options.output.suffix not in (".svg", ".png"):
        parser.error(f"--output {options.output}: expected a name that ends in .svg or .png")
    try:
        draw([(path.stem, read_simulation(path)) for path in options.files], options.output)
    except (ValueError, OSError) as error:
        print(f"plot_scale: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"plot_scale: {error}; pip install -r requirements-test.txt", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
