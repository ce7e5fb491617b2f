#!/usr/bin/env python3
"""Time to an accuracy with `auto` and with each setting that it may choose, on emulated hosts.

    automatic.py --build build/release [--hosts 2] [--rate 100mbit] [--models mlp,cnn,resnet20]
                 [--seeds 1,2,3] [--settings 'quantize(bits=8);quantize(bits=4)'] [--minutes 15]

Every training runs alone, each host pinned to a core, until a test reaches the model's accuracy;
its clock stands still during tests. Prints for each model the median over the seeds of the seconds
that it took with each setting, and auto's beside those of the best fixed one, which is chosen after
the fact.

Without --settings all fixed ones are trained with; leaving out those that are plainly slow saves most
of the time.

Runs whose logs are in --out are not made again, so what was interrupted goes on where it was. With
--minutes no run is begun after that time, and the tables are of the models and seeds of which there
are all settings; one seed of all models comes first, then the next.
"""

import argparse
import itertools
import pathlib
import statistics
import subprocess
import sys
import time

import runs

FIXED = ["none", "cast(bf16)", "quantize(bits=8)", "quantize(bits=4)", "ecsq(as=quantize(bits=4))"]
# What a few hundred steps reach, of 2000 images.
ACCURACY = {"mlp": 0.86, "cnn": 0.87, "resnet20": 0.80}
MOST_STEPS = 1500
TIMEOUT_SECONDS = 600


class OutOfTime(Exception):
    """No further run is begun."""


def train(options, model, seed, setting):
    """The lines of the run's log, made now or earlier."""
    asked = {"model": model, "compression": setting, "seed": seed, "steps": MOST_STEPS,
             "epochs": 100, "schedule": "constant", "test_samples": 2000, "eval_every": 20,
             "target_accuracy": ACCURACY[model]}
    where = f"{options.hosts}x{options.rate}"
    name = runs.slug({**asked, "where": where})

    def run(partial):
        if time.monotonic() > options.end:
            raise OutOfTime
        begin = time.monotonic()
        subprocess.run(
            [sys.executable, "-B", str(runs.ROOT / "tests/cluster/cluster.py"), "--hosts",
             str(options.hosts), "--pin", "--rate", options.rate, "--launch", "torchrun-env",
             "--no-prefix", "--timeout", str(TIMEOUT_SECONDS), "--",
             str(options.build / "bin/train_fashion_mnist"), "--backend=gloo", "--threads=1",
             f"--log={partial}", *runs.arguments_of(asked)],
            check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        print(f"{where} {name}: {time.monotonic() - begin:.0f} s", file=sys.stderr)

    return runs.kept(options.out / f"{name}.jsonl", run)


def summary(model, lines):
    last = [line for line in lines if line["event"] in ("test", "epoch")][-1]
    profile = [line for line in lines if line["event"] == "profile"][-1]
    return {"seconds": lines[-1]["train_seconds"], "steps": last["step"],
            "step": profile["step_seconds"], "setting": lines[-1].get("setting", ""),
            "reached": lines[-1]["test_accuracy"] >= ACCURACY[model]}


def text_of(seconds, reached):
    return f"{seconds:.1f} s" if reached else f"not in {seconds:.0f} s"


def table_of(model, found):
    """Rows of the model's table, and auto's time over that of the best fixed setting; None where
    either has not come to the accuracy. `found`: by setting, a summary for each seed."""
    rows = [[model, "time to " + f"{100 * ACCURACY[model]:.0f} %", "steps", "a step", "chosen"]]
    medians = {}
    for setting, of_seeds in found.items():
        reached = all(run["reached"] for run in of_seeds)
        seconds = statistics.median(run["seconds"] for run in of_seeds)
        if reached:
            medians[setting] = seconds
        rows.append([setting, text_of(seconds, reached),
                     f"{statistics.median(run['steps'] for run in of_seeds):.0f}",
                     f"{1e3 * statistics.median(run['step'] for run in of_seeds):.1f} ms",
                     "; ".join(sorted({run["setting"] for run in of_seeds}))])
    fixed = [medians[setting] for setting in found if setting != "auto" and setting in medians]
    auto = medians.get("auto")
    return rows, auto / min(fixed) if auto and fixed else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--rate", default="100mbit")
    parser.add_argument("--models", default="mlp,cnn,resnet20")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--settings", default=";".join(FIXED))
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--out", type=pathlib.Path, default=runs.ROOT / "results/automatic")
    options = parser.parse_args()
    options.build = options.build.resolve()
    options.end = time.monotonic() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    models = options.models.split(",")
    unknown = [model for model in models if model not in ACCURACY]
    if unknown:
        parser.error(f"--models {unknown[0]}: there are {', '.join(ACCURACY)}")
    settings = [*options.settings.split(";"), "auto"]
    found = {model: {setting: [] for setting in settings} for model in models}
    try:
        for seed, model in itertools.product(options.seeds.split(","), models):
            made = {setting: summary(model, train(options, model, int(seed), setting))
                    for setting in settings}
            for setting, run in made.items():
                found[model][setting].append(run)
    except OutOfTime:
        print("the rest: for want of time", file=sys.stderr)
    for model in models:
        seeds = len(found[model]["auto"])
        if seeds == 0:
            continue
        rows, ratio = table_of(model, found[model])
        runs.print_table(rows)
        if ratio is None:
            print("  auto, or every other setting, did not come to the accuracy")
        else:
            print(f"  auto takes {ratio:.2f} of the best fixed setting's time, "
                  f"median of {seeds} seed{'s' if seeds > 1 else ''}")
        print()


if __name__ == "__main__":
    main()
