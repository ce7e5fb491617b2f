#!/usr/bin/env python3
"""Compares `thinwire advise` with measured steps on emulated hosts.

    step_model.py --build build/release [--hosts 2,4] [--rates 25mbit,100mbit,1gbit]
                  [--models mlp,cnn] [--steps 40] [--minutes 20]

Every setting is trained for a few steps on every network, each host pinned to a core. From the log
of the uncompressed run advise foretells each setting's step. Prints a table and the median and 90th
percentile of the errors, and the same for what the log of the run with 4 bits foretells, and for
logs of one network that foretell another one's.

Runs whose logs are in --out are not made again, so what was interrupted goes on where it was. With
--minutes no run is begun after that time, and the tables are of the networks that are complete; they
are taken in the order of the arguments, so that a first call with --minutes gives a subset.
"""

import argparse
import itertools
import json
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SETTINGS = ["none", "cast(bf16)", "quantize(bits=4)", "onebit", "topk(density=0.01)",
            "powersgd(rank=4)"]
# What the emulated links let through at once, see tests/support/emulated_hosts.py.
BURST = 131072


class OutOfTime(Exception):
    """No further run is begun."""


def train(options, model, hosts, rate, setting):
    name = f"{model}-{hosts}x{rate}-{options.steps}-{setting}"
    log = options.out / f"{''.join(c for c in name if c.isalnum() or c == '-')}.jsonl"
    if not log.exists() or '"event":"result"' not in log.read_text():
        if time.monotonic() > options.end:
            raise OutOfTime
        begin = time.monotonic()
        command = [sys.executable, "-B", str(ROOT / "tests/cluster/cluster.py"), "--hosts",
                   str(hosts), "--pin", "--rate", rate, "--launch", "torchrun-env", "--no-prefix",
                   "--", str(options.build / "bin/train_fashion_mnist"), "--backend", "gloo",
                   "--model", model, "--steps", str(options.steps), "--test-samples", "100",
                   "--threads", "1", "--profile", "--compression", setting, "--log", str(log)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr)
    return log


def train_all(options, model, hosts, rates):
    """The logs by rate and setting, of the rates of which there are all."""
    logs = {}
    try:
        for rate in rates:
            logs[rate] = {each: train(options, model, hosts, rate, each) for each in SETTINGS}
    except OutOfTime:
        print(f"{model} on {hosts} hosts: {len(logs)} of {len(rates)} networks, for want of time",
              file=sys.stderr)
    return logs


def measured(log):
    events = [json.loads(line) for line in log.read_text().splitlines()]
    return [event for event in events if event["event"] == "profile"][-1]["step_seconds"]


def advise(options, log, *more):
    command = [str(options.build / "bin/thinwire"), "advise", str(log), "--json", "--burst",
               str(BURST), "--cores", "1", "--setting", ";".join(SETTINGS), *more]
    document = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {row["setting"]: row["step_seconds"] for row in document["settings"]}


def summary(name, errors):
    errors = sorted(errors)
    print(f"{name}: median {100 * statistics.median(errors):.1f} %, "
          f"p90 {100 * errors[min(len(errors) - 1, int(0.9 * len(errors)))]:.1f} %, "
          f"largest {100 * errors[-1]:.1f} % of {len(errors)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--hosts", default="2,4")
    parser.add_argument("--rates", default="25mbit,100mbit,1gbit")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--models", default="mlp")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "results/step_model")
    options = parser.parse_args()
    options.build = options.build.resolve()
    options.end = time.monotonic() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    errors = {"an uncompressed run on the same network": [],
              "a run with 4 bits on the same network": [],
              "an uncompressed run on a network of another rate": []}
    uncompressed, four_bits, another = errors.values()
    rates = options.rates.split(",")
    print(f"{'model':8} {'hosts':5} {'rate':8} {'setting':20} {'measured':>10} {'foretold':>10} "
          f"{'error':>8}")
    for hosts, model in itertools.product(map(int, options.hosts.split(",")),
                                          options.models.split(",")):
        logs = train_all(options, model, hosts, rates)
        for rate in logs:
            foretold = advise(options, logs[rate]["none"])
            from_four_bits = advise(options, logs[rate]["quantize(bits=4)"])
            for setting in SETTINGS:
                real = measured(logs[rate][setting])
                error = foretold[setting] / real - 1
                uncompressed.append(abs(error))
                four_bits.append(abs(from_four_bits[setting] / real - 1))
                print(f"{model:8} {hosts:5} {rate:8} {setting:20} {1e3 * real:7.2f} ms "
                      f"{1e3 * foretold[setting]:7.2f} ms {100 * error:+6.1f} %")
            for other in logs:
                if other == rate:
                    continue
                foretold = advise(options, logs[rate]["none"], "--rate", other)
                another += [abs(foretold[each] / measured(logs[other][each]) - 1)
                            for each in SETTINGS]
    print()
    for name, found in errors.items():
        if found:
            summary(f"from {name}", found)


if __name__ == "__main__":
    main()
