#!/usr/bin/env python3
"""Compares `thinwire advise` with measured steps on emulated hosts.

    step_model.py --build build/release [--hosts 2,4] [--rates 25mbit,100mbit,1gbit] [--steps 40]

Of every network one short uncompressed run is logged; from it advise foretells each setting's step,
and each setting is then trained and measured. Prints a table and the median and 90th percentile of the
errors, and the same for logs of one network that foretell another one's.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SETTINGS = ["none", "cast(bf16)", "quantize(bits=4)", "onebit", "topk(density=0.01)",
            "powersgd(rank=4)"]
# What the emulated links let through at once, see tests/support/emulated_hosts.py.
BURST = 131072


def train(options, hosts, rate, setting):
    name = "".join(c for c in f"{hosts}x{rate}-{setting}" if c.isalnum() or c == "-")
    log = options.out / f"{name}.jsonl"
    if not log.exists() or '"event":"result"' not in log.read_text():
        command = [sys.executable, "-B", str(ROOT / "tests/cluster/cluster.py"), "--hosts",
                   str(hosts), "--rate", rate, "--launch", "torchrun-env", "--no-prefix", "--",
                   str(options.build / "bin/train_fashion_mnist"), "--backend", "gloo", "--model",
                   options.model, "--steps", str(options.steps), "--test-samples", "100",
                   "--threads", "1", "--profile", "--compression", setting, "--log", str(log)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return log


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
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "results/step_model")
    options = parser.parse_args()
    options.build = options.build.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    within, across = [], []
    print(f"{'hosts':5} {'rate':8} {'setting':20} {'measured':>10} {'foretold':>10} {'error':>8}")
    for hosts in map(int, options.hosts.split(",")):
        rates = options.rates.split(",")
        logs = {rate: {each: train(options, hosts, rate, each) for each in SETTINGS}
                for rate in rates}
        for rate in rates:
            foretold = advise(options, logs[rate]["none"])
            for setting in SETTINGS:
                real = measured(logs[rate][setting])
                error = foretold[setting] / real - 1
                within.append(abs(error))
                print(f"{hosts:5} {rate:8} {setting:20} {1e3 * real:7.2f} ms "
                      f"{1e3 * foretold[setting]:7.2f} ms {100 * error:+6.1f} %")
            for other in rates:
                if other == rate:
                    continue
                foretold = advise(options, logs[rate]["none"], "--rate", other)
                across += [abs(foretold[each] / measured(logs[other][each]) - 1)
                           for each in SETTINGS]
    summary("\nfrom an uncompressed run on the same network", within)
    if across:
        summary("from an uncompressed run on a network of another rate", across)


if __name__ == "__main__":
    main()
