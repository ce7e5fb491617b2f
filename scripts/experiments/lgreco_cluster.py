#!/usr/bin/env python3
"""Time to a fixed test accuracy on four emulated hosts: L-GreCo against what else there is.

    lgreco_cluster.py [--rates 1gbit 100mbit] [--quick]

Trains the MLP on Fashion-MNIST on tests/cluster's hosts. Logs, table (JSON) and the picture of
accuracy over seconds go to results/lgreco-cluster; finished runs are not repeated.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import runs

HOSTS = 4
TRAINING = {"batch_size": 32, "lr": 0.05, "seed": 1}
PYTORCH = "PyTorch DDP, PowerSGD rank 4"
ADAPTIVE = "period=150, warmup=0, window=5"
ROWS = {
    "Gloo fp32": "none",
    "Gloo bf16": "cast(bf16)",
    PYTORCH: None,
    "uniform quantize, 4 bits": "quantize(bits=4)",
    "uniform powersgd, rank 4": "powersgd(rank=4)",
    "uniform topk, 1 %": "topk(density=0.01)",
    "L-GreCo quantize": f"lgreco(family=quantize, reference=4, {ADAPTIVE})",
    "L-GreCo powersgd": f"lgreco(family=powersgd, reference=4, {ADAPTIVE})",
    "L-GreCo topk": f"lgreco(family=topk, reference=0.01, {ADAPTIVE})",
    "L-GreCo mixed": f"lgreco(family=mixed, reference=powersgd(rank=4), {ADAPTIVE})",
}


def command_of(name, build, log, options):
    arguments = runs.arguments_of({**TRAINING, **options, "log": f"{log}.partial"})
    if ROWS[name] is None:
        python = runs.ROOT / ".venv" / "bin" / "python"
        return [str(python), str(runs.ROOT / "scripts" / "experiments" / "powersgd_ddp.py"),
                *arguments]
    return [str(build / "bin" / "train_fashion_mnist"), "--backend=gloo", "--threads=1",
            "--model=mlp", "--schedule=constant", f"--compression={ROWS[name]}", *arguments]


def train(name, rate, build, folder, options):
    log = folder / f"{runs.slug({'compression': name, 'rate': rate, **TRAINING, **options})}.jsonl"
    lines = runs.read_log(log)
    if lines is None:
        command = [sys.executable, "-B", str(runs.ROOT / "tests" / "cluster" / "cluster.py"),
                   "--hosts", str(HOSTS), "--rate", rate, "--launch", "torchrun-env", "--timeout",
                   "600", "--", *command_of(name, build, log, options)]
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "THINWIRE_LOG_LEVEL": "warn"})
        if result.returncode:
            raise runs.RunError(f"{name} at {rate}: exit code {result.returncode}: "
                                f"{(result.stdout + result.stderr)[-3000:]}")
        os.replace(f"{log}.partial", log)
        lines = runs.read_log(log)
    return [line for line in lines if line["event"] in ("test", "epoch")]


def seconds_to(tests, target):
    """Seconds of training at the first test that reaches the target, or None."""
    return next((test["train_seconds"] for test in tests if test["test_accuracy"] >= target), None)


def draw(curves, path):
    import matplotlib  # pylint: disable=import-outside-toplevel
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "thinwire"})
    from matplotlib import pyplot  # pylint: disable=import-outside-toplevel
    figure, axes = pyplot.subplots(1, len(curves), figsize=(6 * len(curves), 4.5), squeeze=False)
    for axis, (rate, rows) in zip(axes[0], curves.items()):
        for name, tests in rows.items():
            axis.plot([test["train_seconds"] for test in tests],
                      [100 * test["test_accuracy"] for test in tests], label=name, linewidth=1.2,
                      linestyle="-" if name.startswith("L-GreCo") else "--")
        axis.set(title=f"{HOSTS} hosts, {rate}", xlabel="seconds of training",
                 ylabel="test accuracy (%)", xscale="log")
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, default=runs.ROOT / "build" / "release")
    parser.add_argument("--rates", nargs="+", default=["1gbit", "100mbit"])
    parser.add_argument("--target", type=float, default=0.84, help="test accuracy (default 0.84)")
    parser.add_argument("--steps", type=int, default=600, help="most steps of a run")
    parser.add_argument("--quick", action="store_true", help="a few steps of every row")
    options = parser.parse_args()
    folder = runs.ROOT / "results" / ("lgreco-cluster-quick" if options.quick else "lgreco-cluster")
    folder.mkdir(parents=True, exist_ok=True)
    steps = ({"steps": 20, "eval_every": 10} if options.quick else
             {"steps": options.steps, "eval_every": 25, "target_accuracy": options.target})
    curves, rows = {}, []
    try:
        for rate in options.rates:
            curves[rate] = {name: train(name, rate, options.build, folder, steps) for name in ROWS}
            base = seconds_to(curves[rate]["Gloo fp32"], options.target)
            print(f"\n== {HOSTS} hosts, {rate}: seconds to {100 * options.target:.0f} %")
            table = [["compression", "seconds", "faster than fp32", "steps", "ms/step"]]
            for name, tests in curves[rate].items():
                seconds = seconds_to(tests, options.target)
                last = tests[-1]
                rows.append({"rate": rate, "row": name, "seconds": seconds, "steps": last["step"],
                             "accuracy": last["test_accuracy"],
                             "train_seconds": last["train_seconds"]})
                table.append([name, "-" if seconds is None else f"{seconds:.2f}",
                              f"{base / seconds:.2f}x" if seconds and base else "-",
                              str(last["step"]), f"{1e3 * last['train_seconds'] / last['step']:.1f}"])
            runs.print_table(table)
    except runs.RunError as error:
        print(f"lgreco_cluster: {error}", file=sys.stderr)
        return 1
    (folder / "time-to-accuracy.json").write_text(json.dumps(rows, indent=1) + "\n")
    draw(curves, folder / "time-to-accuracy.svg")
    print(f"\npicture: {folder / 'time-to-accuracy.svg'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
