#!/usr/bin/env python3
"""Time to a fixed test accuracy on four emulated hosts: L-GreCo against what else there is.

    lgreco_cluster.py [--rates 1gbit 100mbit] [--seeds N] [--rounds N] [--quick]

Trains the MLP on Fashion-MNIST. How many steps a row needs does not depend on the network, but on
chance: several seeds are trained to the target on this machine. What a step takes is measured on
tests/cluster's hosts, in rounds in which every row trains a while, so that a machine that is slow for
some time does not favour a row. The table has the median number of steps times the median time of a
step; the picture shows the first seed. Logs, table (JSON) and picture go to results/lgreco-cluster;
finished runs are not repeated.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

import runs

HOSTS = runs.RANKS
TRAINING = {"batch_size": 32, "lr": 0.05}
PACE = {"steps": 60, "eval_every": 60}
PYTORCH = "PyTorch DDP, PowerSGD rank 4"
ADAPTIVE = "period=150, warmup=0, first=5, window=5"
TIMED = "L-GreCo mixed, for 4 bits, least time"
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
    "L-GreCo mixed, for rank 4": f"lgreco(family=mixed, reference=powersgd(rank=4), {ADAPTIVE})",
    "L-GreCo mixed, for 4 bits": f"lgreco(family=mixed, reference=quantize(bits=4), {ADAPTIVE})",
    TIMED: f"lgreco(family=mixed, reference=quantize(bits=4), objective=time, {ADAPTIVE})",
}


class Bench:
    def __init__(self, build, folder):
        self.build, self.folder = build, folder

    def command(self, name, rate, seed, log, options):
        options = {**TRAINING, **options, "seed": seed, "log": log}
        if ROWS[name] is None:
            python = runs.ROOT / ".venv" / "bin" / "python"
            return [str(python), str(runs.ROOT / "scripts" / "experiments" / "powersgd_ddp.py"),
                    *runs.arguments_of(options)]
        if name == TIMED:
            options["link_model"] = self.link_model(rate)
        return [str(self.build / "bin" / "train_fashion_mnist"), "--backend=gloo", "--threads=1",
                "--model=mlp", "--schedule=constant", f"--compression={ROWS[name]}",
                *runs.arguments_of(options)]

    def on_hosts(self, rate, command, what):
        cluster = [sys.executable, "-B", str(runs.ROOT / "tests" / "cluster" / "cluster.py"),
                   "--hosts", str(HOSTS), "--rate", rate, "--launch", "torchrun-env", "--timeout",
                   "600", "--", *command]
        result = subprocess.run(
            cluster, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "THINWIRE_LOG_LEVEL": "warn"})
        if result.returncode:
            raise runs.RunError(f"{what} at {rate}: exit code {result.returncode}: "
                                f"{(result.stdout + result.stderr)[-3000:]}")

    def link_model(self, rate):
        """What `thinwire link` measures on the emulated network."""
        codecs = [f"quantize(bits={bits})" for bits in range(2, 9)]
        codecs += [f"topk(density={density}, values=bf16)" for density in (0.001, 0.01, 0.1)]
        codecs += [f"ternary(density={density})" for density in (0.003, 0.03, 0.3)]
        codecs += [f"powersgd(rank={rank})" for rank in (1, 2, 4, 8, 16)]
        path = self.folder / f"{runs.slug({'model': f'link {rate}', 'codecs': codecs})}.json"
        if not path.exists():
            self.on_hosts(rate, [str(self.build / "bin" / "thinwire"), "link", "--backend=gloo",
                                 "--no-pairs", f"--codec={';'.join(codecs)}", f"--output={path}"],
                          "thinwire link")
        return path

    def tests(self, name, rate, seed, options, network):
        """The tests of one run, on the network or on this machine without."""
        depends = {"rate": rate} if network or name == TIMED else {}
        words = runs.slug({"compression": name, "spec": ROWS[name], "seed": seed, **depends,
                           **TRAINING, **options})
        log = self.folder / f"{words}-{'hosts' if network else 'local'}.jsonl"

        def run(partial):
            command = self.command(name, rate, seed, partial, options)
            if network:
                self.on_hosts(rate, command, name)
            else:
                runs.start_ranks(command, name)

        return [line for line in runs.kept(log, run) if line["event"] in ("test", "epoch")]

    def pace(self, name, rate, which):
        """Seconds of a step on the network; `which` tells the rounds apart."""
        last = self.tests(name, rate, which, PACE, True)[-1]
        return last["train_seconds"] / last["step"]


def steps_to(tests, target):
    """Steps to the first test that reaches the target; infinite if none does."""
    return next((test["step"] for test in tests if test["test_accuracy"] >= target), float("inf"))


def draw(curves, path):
    import matplotlib  # pylint: disable=import-outside-toplevel
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "thinwire"})
    from matplotlib import pyplot  # pylint: disable=import-outside-toplevel
    figure, axes = pyplot.subplots(1, len(curves), figsize=(6 * len(curves), 4.5), squeeze=False)
    for axis, (rate, rows) in zip(axes[0], curves.items()):
        for name, (pace, tests) in rows.items():
            axis.plot([pace * test["step"] for test in tests],
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
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a few steps of every row")
    options = parser.parse_args()
    folder = runs.ROOT / "results" / ("lgreco-cluster-quick" if options.quick else "lgreco-cluster")
    folder.mkdir(parents=True, exist_ok=True)
    seeds = range(1, 1 + (2 if options.quick else options.seeds))
    rounds = range(1, 1 + (1 if options.quick else options.rounds))
    training = ({"steps": 20, "eval_every": 10} if options.quick else
                {"steps": options.steps, "eval_every": 10, "target_accuracy": options.target})
    bench = Bench(options.build, folder)
    curves, rows = {}, []
    try:
        for rate in options.rates:
            print(f"\n== {HOSTS} hosts, {rate}: seconds to {100 * options.target:.0f} %", flush=True)
            paces = {name: [] for name in ROWS}
            for which in rounds:
                for name, found in paces.items():
                    found.append(bench.pace(name, rate, which))
            table = [["compression", "ms/step", "steps", "of each seed", "seconds", "to fp32"]]
            base = None
            curves[rate] = {}
            for name, found in paces.items():
                pace = statistics.median(found)
                tests = [bench.tests(name, rate, seed, training, False) for seed in seeds]
                steps = [steps_to(each, options.target) for each in tests]
                middle = statistics.median(steps)
                seconds = pace * middle if middle < float("inf") else None
                if name == "Gloo fp32":
                    base = seconds
                curves[rate][name] = (pace, tests[0])
                rows.append({"rate": rate, "row": name, "ms_per_step": [1e3 * s for s in found],
                             "steps": [step if step < float("inf") else None for step in steps],
                             "seconds": seconds})
                table.append([name, f"{1e3 * pace:.1f}", f"{middle:g}",
                              " ".join(f"{step:g}" for step in steps),
                              "-" if seconds is None else f"{seconds:.2f}",
                              f"{base / seconds:.2f}x" if seconds and base else "-"])
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
