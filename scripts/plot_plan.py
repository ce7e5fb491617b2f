#!/usr/bin/env python3
"""Draws a plan of L-GreCo: bytes and errors of every layer, uniform setting against choice.

    plot_plan.py PLAN.json -o PLAN.svg

The plan is a file of `thinwire plan` or of a training example's --plan; the ending of the output
(.svg or .png) says what is made. Needs matplotlib (requirements-test.txt).
"""

import argparse
import json
import math
import pathlib
import sys

import plotting

FIELDS = ("name", "spec", "bytes", "error", "reference_spec", "reference_bytes", "reference_error")
TEXTS = ("name", "spec", "reference_spec")
TOTALS = ("total_bytes", "total_error", "reference_bytes", "reference_error")
# Names and bars stay readable up to here; more layers make a wider picture.
INCHES_PER_LAYER = 0.32


def expect_fields(value, fields, place):
    if not isinstance(value, dict):
        raise ValueError(f"{place}: expected an object, found {value!r}")
    for key in fields:
        kind = str if key in TEXTS else (int, float)
        if key not in value:
            raise ValueError(f"{place}: {key} missing")
        if not isinstance(value[key], kind):
            raise ValueError(f"{place}: {key}: expected a {'text' if kind is str else 'number'}, "
                             f"found {value[key]!r}")


def read_plan(path):
    """The plan as a dictionary; raises ValueError that says what is wrong with it."""
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(plan, dict) or not isinstance(plan.get("layers"), list):
        raise ValueError(f"{path}: not a plan: it has no list of layers")
    expect_fields(plan, TOTALS, f"{path}: not a plan")
    for index, layer in enumerate(plan["layers"]):
        expect_fields(layer, FIELDS, f"{path}: layers[{index}]")
    if not plan["layers"]:
        raise ValueError(f"{path}: the plan has no layers")
    return plan


def brief(spec):
    """The codec with its first parameter's value: what tells candidates of a plan apart."""
    name, _, arguments = spec.partition("(")
    first = arguments.rstrip(")").partition(",")[0].partition("=")[2]
    return f"{name} {first}".strip()


def draw(plan, path):
    import matplotlib  # pylint: disable=import-outside-toplevel
    matplotlib.use("Agg")
    # Text stays text, and equal plans give equal files.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "thinwire"})
    from matplotlib import pyplot  # pylint: disable=import-outside-toplevel

    layers = plan["layers"]
    places = range(len(layers))
    figure, axes = pyplot.subplots(
        2, 1, sharex=True, figsize=(max(7, INCHES_PER_LAYER * len(layers) + 2), 7))
    for axis, key, label in ((axes[0], "bytes", "bytes a step"), (axes[1], "error", "error")):
        for shift, field, name, colour in ((-0.2, f"reference_{key}", "uniform", "#9aa5b1"),
                                           (0.2, key, "chosen", "#1f6f8b")):
            axis.bar([place + shift for place in places], [layer[field] for layer in layers], 0.4,
                     label=name, color=colour)
        axis.set_ylabel(label)
        values = [layer[field] for layer in layers for field in (key, f"reference_{key}")
                  if layer[field] > 0]
        if values and max(values) > 100 * min(values):
            axis.set_yscale("log")
        axis.legend()
    for place, layer in zip(places, layers):
        axes[0].annotate(brief(layer["spec"]), (place + 0.2, layer["bytes"]), rotation=90,
                         ha="center", va="bottom", fontsize=6)
    saving = (plan["reference_bytes"] / plan["total_bytes"] if plan["total_bytes"] > 0
              else math.inf)
    axes[0].set_title(f"{plan['total_bytes']:,.0f} bytes instead of "
                      f"{plan['reference_bytes']:,.0f} ({saving:.2f}x less), error "
                      f"{plan['total_error']:.4g} instead of {plan['reference_error']:.4g}")
    axes[1].set_xticks(list(places), [layer["name"] for layer in layers], rotation=90, fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=pathlib.Path)
    plotting.add_output(parser)
    options = plotting.parse(parser)
    return plotting.exit_code("plot_plan", lambda: draw(read_plan(options.plan), options.output))


if __name__ == "__main__":
    sys.exit(main())
