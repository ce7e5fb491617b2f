#!/usr/bin/env python3
"""Measures what the ways of sending expert rows cost and save, with train_moe_lm.

    moe.py [--build build/release] [--out results/moe] [--quick] [--seeds N]
           [--stages quality,time,trends] [--settings off,int8,...] [--rates 1gbit,100mbit]

quality  trains with every setting on four ranks of this machine, without a limit on their links:
         validation bits per character, rows and bytes. One run for every setting and seed.
time     a few steps with every setting on four emulated hosts at each rate, of a model that was
         trained before (rows of an untrained one are much alike): seconds a step. Skipped where
         this machine cannot emulate hosts.
trends   rows against the number of hashes, the compensation factor, and the tokens of a rank.

Every run keeps its log in --out; a run that has its result is not repeated, so an interrupted
experiment goes on where it stopped (delete a log to repeat its run). At the end, and after every
stage, table.md, summary.json and, with matplotlib, pareto.svg are written from all logs there are.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
from free_port import free_port  # noqa: E402, pylint: disable=wrong-import-position

ROOT = pathlib.Path(__file__).resolve().parents[2]
RANKS = 4
IMPOSSIBLE = 77  # exit code of cluster.py where there are no namespaces

# As published: full-dimension hashes, no bound on the radius, the whole residual added back.
PAPER = "lsh(hashes=6, hash_dim=0, radius=1e30, compensation=1)"
TUNED = "lsh(hashes=6, hash_dim=16, radius=0.3, compensation=calibrated)"
# Gradients need no subspace but an unbiased codec.
BACK = "quantize(bits=3, rounding=stochastic)"

# name: (--rows, --dedup)
SETTINGS = {
    "off": ("none", "off"),
    "bf16": ("cast(bf16)", "off"),
    "int8": ("quantize(bits=8)", "off"),
    "int4": ("quantize(bits=4)", "off"),
    "int4+int3-back": (f"quantize(bits=4); {BACK}", "off"),
    "lsh-paper": ("none", PAPER),
    "lsh-16": ("none", "lsh(hashes=6, hash_dim=16, radius=1e30, compensation=1)"),
    "lsh-tuned": ("none", TUNED),
    "spectral-3-all-legs": ("spectral(bits=3); spectral(bits=3)", "off"),
    "spectral-2.5+int3-back": (f"spectral(bits=2.5); {BACK}", "off"),
    "spectral-2+int3-back": (f"spectral(bits=2); {BACK}", "off"),
    "ecsq-1.75": ("ecsq(bits=1.75)", "off"),
    "spectral-coded-1.5": ("spectral(bits=1.5, start=ecsq(bits=3), coding=entropy)", "off"),
    "lsh-tuned+int8": ("quantize(bits=8)", TUNED),
    "lsh-tuned+spectral-2.5+int3-back": (f"spectral(bits=2.5); {BACK}", TUNED),
}
QUICK = ("off", "int8", "lsh-tuned", "spectral-2.5+int3-back")


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "release")
    parser.add_argument("--out", type=pathlib.Path, help="default results/moe, or results/moe-quick")
    parser.add_argument("--quick", action="store_true", help="four settings, a few steps each")
    parser.add_argument("--seeds", type=int, default=1, help="quality runs of each setting")
    parser.add_argument("--stages", default="quality,time,trends")
    parser.add_argument("--settings", help="some of: " + ", ".join(SETTINGS))
    parser.add_argument("--rates", default="1gbit,100mbit")
    parser.add_argument("--steps", type=int, help="of a quality run (default 400, quick 20)")
    parser.add_argument("--time-steps", type=int, help="of a time run (default 24, quick 6)")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=512, help="of one rank and step")
    parser.add_argument("--experts", type=int, default=8)
    options = parser.parse_args()
    options.steps = options.steps or (20 if options.quick else 400)
    options.time_steps = options.time_steps or (6 if options.quick else 24)
    options.out = options.out or ROOT / "results" / ("moe-quick" if options.quick else "moe")
    options.stages = options.stages.split(",")
    options.rates = options.rates.split(",")
    names = options.settings.split(",") if options.settings else QUICK if options.quick else SETTINGS
    unknown = set(names) - set(SETTINGS) | set(options.stages) - {"quality", "time", "trends"}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    options.settings = list(names)
    return options


def result_of(log):
    """The result line of a log, or None for a run that did not finish."""
    with contextlib.suppress(OSError, ValueError):
        events = [json.loads(line) for line in log.read_text().splitlines()]
        if events and events[-1].get("event") == "result":
            return events[-1]
    return None


def command(options, log, **chosen):
    chosen = {"dim": options.dim, "layers": options.layers, "experts": options.experts,
              "tokens": options.tokens, "threads": 1, "compression": "quantize(bits=8)",
              "log": log, **chosen}
    return [str(options.build / "bin" / "train_moe_lm"),
            *(f"--{name.replace('_', '-')}={value}" for name, value in chosen.items())]


def run_local(ranks, line):
    """The ranks as processes of this machine; the exit code of the first that failed."""
    common = {**os.environ, "OMP_NUM_THREADS": "1", "THINWIRE_GLOO_INTERFACE": "lo"}
    if ranks == 1:
        return subprocess.run(line, env=common, stdout=subprocess.DEVNULL, check=False).returncode
    common |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [subprocess.Popen(line, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                                  stdout=subprocess.DEVNULL) for rank in range(ranks)]
    try:
        codes = [process.wait() for process in processes]
    finally:
        for process in processes:
            process.kill()
    return next((code for code in codes if code), 0)


def run_cluster(rate, line):
    cluster = [sys.executable, "-B", str(ROOT / "tests" / "cluster" / "cluster.py"), "--hosts",
               str(RANKS), "--rate", rate, "--launch", "torchrun-env", "--timeout", "600", "--"]
    return subprocess.run([*cluster, *line], env={**os.environ, "OMP_NUM_THREADS": "1"},
                          stdout=subprocess.DEVNULL, check=False).returncode


def run(log, start):
    """Runs what has no result yet; returns the exit code."""
    if result_of(log):
        print(f"  {log.stem}: has its result")
        return 0
    print(f"  {log.stem} ...", end="", flush=True)
    code = start()
    result = result_of(log)
    print(f" {result['validation_bpc']:.4f} bpc, {1e3 * result['step_seconds']:.1f} ms a step"
          if result else f" failed with exit code {code}")
    return code


def quality(options):
    for seed in range(1, options.seeds + 1):
        for name in options.settings:
            rows, dedup = SETTINGS[name]
            log = options.out / f"quality_{name}_{seed}.jsonl"
            line = command(options, log, rows=rows, dedup=dedup, seed=seed, steps=options.steps)
            run(log, lambda line=line: run_local(RANKS, line))


def time(options):
    trained = options.out / "trained.weights"
    line = command(options, options.out / "trained.jsonl", steps=options.steps, save=trained)
    if run(options.out / "trained.jsonl", lambda: run_local(RANKS, line)):
        return
    for rate in options.rates:
        for name in options.settings:
            rows, dedup = SETTINGS[name]
            # The second basis is the first that is used: soon enough for the last third of the
            # steps, which is what counts.
            rows = rows.replace("spectral(", "spectral(refresh=4, ")
            log = options.out / f"time_{rate}_{name}.jsonl"
            line = command(options, log, rows=rows, dedup=dedup, steps=options.time_steps, lr=1e-5,
                           load=trained, validation_tokens=options.tokens * RANKS,
                           log_every=options.time_steps // 3)
            if run(log, lambda rate=rate, line=line: run_cluster(rate, line)) == IMPOSSIBLE:
                print("  this machine cannot emulate hosts: no step times")
                return


def trend_runs(options):
    """(kind, value, arguments) of every run of the stage; all on one rank."""
    steps = max(2, options.steps // 4)
    for hashes in (2, 4, 6, 8):
        yield "hashes", hashes, {
            "dedup": f"lsh(hashes={hashes}, hash_dim=16, radius=1e30)", "steps": steps}
    for factor in ("0", "1", "calibrated"):
        yield "compensation", factor, {
            "dedup": f"lsh(hashes=2, hash_dim=16, radius=1e30, compensation={factor})",
            "steps": steps}
    # Equally many tokens in all, so that the models are equally trained.
    for factor in (1, 4, 16):
        yield "tokens", 1024 * factor, {
            "dedup": TUNED, "tokens": 1024 * factor,
            "steps": max(2, 16 * (2 if options.quick else 20) // factor)}


def trends(options):
    for kind, value, arguments in trend_runs(options):
        log = options.out / f"trend_{kind}_{value}.jsonl"
        line = command(options, log, **arguments)
        run(log, lambda line=line: run_local(1, line))


def moe_bytes(result):
    legs = ("dispatch", "combine", "combine_backward", "dispatch_backward", "counts", "bases")
    return sum(result[f"moe_bytes_{leg}"] for leg in legs) / result["steps"]


def last_steps(log):
    """The last line about steps: what a run had come to at its end."""
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    return [event for event in steps if event["event"] == "step"][-1]


def collect(options):
    """Everything that the logs hold, as one dictionary."""
    summary = {"settings": {}, "trends": []}
    for name in SETTINGS:
        logs = {int(log.stem.rsplit("_", 1)[1]): log
                for log in options.out.glob(f"quality_{name}_*.jsonl")}
        by_seed = {seed: result for seed in sorted(logs) if (result := result_of(logs[seed]))}
        runs = list(by_seed.values())
        row = {"rows": SETTINGS[name][0], "dedup": SETTINGS[name][1], "step_seconds": {}}
        if runs:
            bits = [result["validation_bpc"] for result in runs]
            row |= {"seeds": len(runs), "validation_bpc": statistics.mean(bits),
                    "validation_bpc_by_seed": dict(zip(by_seed, bits)),
                    "bytes_per_step": statistics.mean(map(moe_bytes, runs)),
                    "uncompressed_bytes_per_step": statistics.mean(
                        result["moe_bytes_uncompressed"] / result["steps"] for result in runs),
                    "rows_fraction": statistics.mean(
                        result["moe_rows_fraction"] for result in runs),
                    "worst_radius": max(result["moe_worst_radius"] for result in runs),
                    "mean_radius": statistics.mean(result["moe_mean_radius"] for result in runs),
                    "settled_fraction": statistics.mean(
                        result["moe_settled_fraction"] for result in runs)}
        for log in sorted(options.out.glob(f"time_*_{name}.jsonl")):
            if result := result_of(log):
                rate = log.stem.split("_")[1]
                parts = {part: result[f"{part}_seconds"] / result["steps"]
                         for part in ("gate", "hash", "code", "exchange", "expert")}
                row["step_seconds"][rate] = {"median": last_steps(log)["step_seconds"], **parts}
        if runs or row["step_seconds"]:
            summary["settings"][name] = row
    for kind, value, _ in trend_runs(options):
        log = options.out / f"trend_{kind}_{value}.jsonl"
        if result := result_of(log):
            summary["trends"].append({
                "kind": kind, "value": value, "rows_fraction": result["moe_rows_fraction"],
                "last_rows_fraction": last_steps(log)["moe_rows_fraction"],
                "mean_radius": result["moe_mean_radius"],
                "validation_bpc": result["validation_bpc"]})
    return summary


def losses(row, base):
    """Mean loss in percent against the uncompressed runs of the same seeds, and its spread."""
    before = base.get("validation_bpc_by_seed", {})
    percent = [100 * (bits / before[seed] - 1)
               for seed, bits in row["validation_bpc_by_seed"].items() if seed in before]
    if not percent:
        return ["", ""]
    spread = f"{statistics.stdev(percent):.2f}" if len(percent) > 1 else ""
    return [f"{statistics.mean(percent):+.2f}", spread]


def table(summary, rates):
    settings = summary["settings"]
    base = settings.get("off", {})
    header = ["setting", "KB/step", "of off", "rows %", "bits/char", "loss %", "+- seeds",
              *(f"ms {rate}" for rate in rates), *(f"speed-up {rate}" for rate in rates)]
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for name, row in settings.items():
        cells = [name]
        if "validation_bpc" in row:
            share = row["bytes_per_step"] / row["uncompressed_bytes_per_step"]
            cells += [f"{row['bytes_per_step'] / 1e3:.1f}", f"{share:.3f}",
                      f"{100 * row['rows_fraction']:.1f}", f"{row['validation_bpc']:.4f}"]
            cells += losses(row, base)
        else:
            cells += [""] * 6
        seconds = [row["step_seconds"].get(rate, {}).get("median") for rate in rates]
        before = [base.get("step_seconds", {}).get(rate, {}).get("median") for rate in rates]
        cells += [f"{1e3 * s:.1f}" if s else "" for s in seconds]
        cells += [f"{b / s:.2f}x" if s and b else "" for s, b in zip(seconds, before)]
        lines.append("| " + " | ".join(cells) + " |")
    if summary["trends"]:
        lines += ["", "| trend | value | rows % | rows % at the end | mean radius | bits/char |",
                  "| --- | --- | --- | --- | --- | --- |"]
        lines += [f"| {t['kind']} | {t['value']} | {100 * t['rows_fraction']:.1f} | "
                  f"{100 * t['last_rows_fraction']:.1f} | {t['mean_radius']:.4f} | "
                  f"{t['validation_bpc']:.4f} |" for t in summary["trends"]]
    return "\n".join(lines) + "\n"


def plot(summary, path):
    try:
        import matplotlib  # pylint: disable=import-outside-toplevel
        matplotlib.use("Agg")
        from matplotlib import pyplot  # pylint: disable=import-outside-toplevel
    except ImportError:
        print("no matplotlib, so no plot")
        return
    rows = [(row["bytes_per_step"] / row["uncompressed_bytes_per_step"], row["validation_bpc"], name)
            for name, row in summary["settings"].items() if "validation_bpc" in row]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5))
    front, best = [], float("inf")
    for share, bits, name in sorted(rows):
        left.scatter(share, bits)
        left.annotate(name, (share, bits), textcoords="offset points", xytext=(4, 4), fontsize=7)
        if bits < best:
            best = bits
            front.append((share, bits))
    left.plot(*zip(*front), color="grey", linewidth=0.8, label="Pareto front")
    left.set(xscale="log", xlabel="expert bytes, share of uncompressed",
             ylabel="validation bits per character")
    left.legend()
    for kind, scale in (("hashes", 2), ("tokens", 1024)):
        points = [(t["value"] / scale, t["last_rows_fraction"]) for t in summary["trends"]
                  if t["kind"] == kind]
        if points:
            right.plot(*zip(*points), marker="o", label=f"{kind} / {scale}")
    right.set(xscale="log", xlabel="hashes, tokens of a rank", ylabel="share of rows sent",
              ylim=(0, 1.05))
    if right.lines:
        right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"plot: {path}")


def report(options):
    summary = collect(options)
    (options.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    text = table(summary, options.rates)
    (options.out / "table.md").write_text(text)
    return summary, text


def main():
    options = parse()
    program = options.build / "bin" / "train_moe_lm"
    if not program.exists():
        print(f"moe: {program} is missing: build it first", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    for stage in options.stages:
        print(f"== {stage}", flush=True)
        {"quality": quality, "time": time, "trends": trends}[stage](options)
        report(options)
    summary, text = report(options)
    print(text)
    if any("validation_bpc" in row for row in summary["settings"].values()):
        plot(summary, options.out / "pareto.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
