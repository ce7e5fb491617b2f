#!/usr/bin/env python3
"""Accuracy of every codec at its usual setting, with and without error feedback.

    codecs.py [--build build/release] [--seeds 3] [--steps 600] [--batch-size 32]
              [--codecs "none;spectral"] [--model cnn] [--quick]

Trains the small CNN, or another model of the example, on Fashion-MNIST on four ranks of this machine. Sparse, one-bit and low-rank
codecs begin after a tenth of the steps, as their papers have it: PowerSGD, DGC and 1-bit SGD all
start dense. Every run's log is kept in results/codecs and is not repeated; the table also goes to
results/codecs/summary.json.
"""

import argparse
import json
import pathlib
import sys

import runs

PLAIN = ("none", "cast(bf16)", "cast(fp8_e4m3)", "quantize(bits=8)", "quantize(bits=4)",
         "terngrad", "ecsq(bits=2)", "spectral(bits=2)", "spectral(bits=1)")
LATE = ("topk(density=0.01)", "onebit", "powersgd(rank=4)", "ternary(density=0.01)",
        "randomk(density=0.1)", "topk(density=0.01, error_feedback=off)",
        "onebit(error_feedback=off)")
LATE_NAMES = {codec.split("(")[0] for codec in LATE}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, default=runs.ROOT / "build" / "release")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=32, help="images of one rank and step")
    parser.add_argument("--codecs", default=";".join(PLAIN + LATE), help="the first is the reference")
    parser.add_argument("--model", default="cnn", choices=("cnn", "mlp"))
    parser.add_argument("--quick", action="store_true", help="a few steps of one seed")
    options = parser.parse_args()
    folder = runs.ROOT / "results" / ("codecs-quick" if options.quick else "codecs")
    chosen = ({"steps": 20, "train_samples": 4000, "test_samples": 500} if options.quick else
              {"steps": options.steps})
    seeds = range(1, 2 if options.quick else 1 + options.seeds)
    table = [["codec", "accuracy %", "+-", "to dense %", "bytes, of dense"]]
    rows, dense = [], None
    try:
        for codec in options.codecs.split(";"):
            is_late = codec.split("(")[0] in LATE_NAMES
            late = {"warmup_steps": chosen["steps"] // 10} if is_late else {}
            group = [runs.summary(runs.train(options.build, folder, {
                "model": options.model, "compression": codec, "seed": seed,
                "batch_size": options.batch_size, "lr": 0.05, **chosen, **late}))
                for seed in seeds]
            accuracy, error = runs.mean_and_error([run["accuracy"] for run in group])
            dense = dense or accuracy
            share = sum(run["all_dense_bytes"] / run["all_bytes"] for run in group) / len(group)
            table.append([codec, f"{accuracy:.2f}", "-" if error is None else f"{error:.2f}",
                          f"{100 * (accuracy / dense - 1):+.2f}", f"1/{share:.1f}"])
            rows.append({"codec": codec, "runs": group})
    except runs.RunError as error:
        print(f"codecs: {error}", file=sys.stderr)
        return 1
    runs.print_table(table)
    print("+-: standard error over the seeds; to dense: relative; bytes: those of all layers")
    (folder / "summary.json").write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
