#!/usr/bin/env python3
"""L-GreCo against uniform settings, trained on Fashion-MNIST on four ranks of this machine.

    lgreco.py [--part saving|equal-bytes|all] [--quick] [--seeds N] [--full]

saving       dense, uniform, adaptive at the uniform setting's error, and uniform at the bytes of
             the adaptive run: what is saved, and what the saving is worth.
equal-bytes  uniform and adaptive at equal bytes, paired over seeds; beside them the uniform setting
             with the rule that leaves small matrices uncompressed.

All matrices are compressed, as in the paper; vectors are not.

Every run's log is kept in results/lgreco and is not repeated; the tables also go to
results/lgreco/*.json. --quick: a few steps of everything, to see that it works.
"""

import argparse
import dataclasses
import json
import pathlib
import sys

import runs

FAMILIES = {
    # name: (uniform spec, arguments of lgreco)
    "quantize": ("quantize(bits=4)", "family=quantize, reference=4"),
    "powersgd": ("powersgd(rank=4)", "family=powersgd, reference=4"),
    "topk": ("topk(density=0.01)", "family=topk, reference=0.01"),
    "topk without cap": ("topk(density=0.01)", "family=topk, reference=0.01, cap=0"),
    "mixed to quantize": ("quantize(bits=4)", "family=mixed, reference=quantize(bits=4)"),
    "mixed to powersgd": ("powersgd(rank=4)", "family=mixed, reference=powersgd(rank=4)"),
}
# Enough for a first table; --full has every model with every family and three seeds.
CORE = {"mlp": tuple(FAMILIES),
        "resnet20": ("quantize", "topk", "topk without cap", "mixed to quantize"),
        "resnet_wide": ("powersgd", "mixed to powersgd")}
STEPS = 400


@dataclasses.dataclass
class Setting:
    build: pathlib.Path
    folder: pathlib.Path
    quick: bool

    def train(self, model, compression, seed, period=100, min_numel=1, eval_every=None):
        """A run's summary."""
        steps = STEPS
        if self.quick:
            steps, period, eval_every = 24, 8, eval_every and 12
        schedule = f"period={period}, warmup=0, window={min(10, period // 2)}"
        if compression.startswith("lgreco("):
            compression = f"{compression[:-1]}, {schedule})"
        options = {"model": model, "compression": compression, "seed": seed, "steps": steps,
                   "batch_size": 16, "lr": 0.05, "min_numel": min_numel}
        if eval_every:
            options["eval_every"] = eval_every
        if self.quick:
            options |= {"train_samples": 2000, "test_samples": 500}
        return runs.summary(runs.train(self.build, self.folder, options))


def uniform_of_size(spec, ratio):
    """The uniform setting with about `ratio` times the bytes of `spec`; bits and ranks are whole."""
    codec, value = spec[:-1].split("(")
    key, number = value.split("=")
    if key == "density":
        return f"{codec}({key}={float(number) * ratio:.4g})"
    least, most = (1, 8) if key == "bits" else (1, 1024)
    return f"{codec}({key}={min(most, max(least, round(float(number) * ratio)))})"


def kilobytes(count):
    return f"{count / 1000:.1f}"


def times(numerator, denominator):
    return f"{numerator / denominator:.2f}x" if denominator else "-"


def saving(setting, seeds, full):
    table = [["model and setting", "KB/step", "saved", "second half", "with all layers",
              "accuracy %", "+-", "to dense", "overhead %"]]
    results = []
    for model, families in CORE.items():
        families = tuple(FAMILIES) if full else families

        def train(compression):
            return [setting.train(model, compression, seed, period=50, eval_every=STEPS // 2)
                    for seed in seeds]  # pylint: disable=cell-var-from-loop

        def add(label, group, base):
            def mean(key, of=group):
                return runs.mean_and_error([run[key] for run in of])[0]

            accuracy, error = runs.mean_and_error([run["accuracy"] for run in group])
            size = mean("bytes")
            table.append([
                f"{model} {label}", kilobytes(size),
                *(times(mean(key, base), mean(key)) if base else ""
                  for key in ("bytes", "late_bytes")),
                times(mean("all_dense_bytes"), mean("all_bytes")), f"{accuracy:.2f}",
                "-" if error is None else f"{error:.2f}",
                f"{accuracy - dense_accuracy:+.2f}",
                f"{100 * max(run['overhead'] for run in group):.2f}" if group[0]["plans"] else ""])
            results.append({"model": model, "setting": label, "runs": group})
            return size

        dense = train("none")
        dense_accuracy = runs.mean_and_error([run["accuracy"] for run in dense])[0]
        add("dense", dense, None)
        for family in families:
            uniform, arguments = FAMILIES[family]
            base = train(uniform)
            adaptive = train(f"lgreco({arguments}, constraint=error)")
            add(f"uniform {uniform}", base, base)
            size = add(f"adaptive, {family}", adaptive, base)
            ratio = size / runs.mean_and_error([run["bytes"] for run in base])[0]
            same = uniform_of_size(uniform, ratio)
            add(f"uniform at its bytes {same}", train(same), base)
    runs.print_table(table)
    print("KB/step: sent by one rank for the layers that may be compressed; saved: against the "
          "uniform\nsetting above, in the whole training and in its second half; with all layers: "
          "uncompressed\nover sent bytes, biases and statistics included")
    return results


def equal_bytes(setting, seeds):
    table = [["setting", "KB", "KB, all layers", "accuracy %", "to uniform", "+-", "better in",
              "test loss", "to uniform", "+-", "better in"]]
    results = []

    def add(name, group, base):
        def mean(key):
            return runs.mean_and_error([run[key] for run in group])[0]

        row = [name, kilobytes(mean("bytes")), kilobytes(mean("all_bytes"))]
        for key, digits, sign in (("accuracy", 2, 1), ("loss", 4, -1)):
            gains = [run[key] - plain[key] for run, plain in zip(group, base)]
            gain, error = runs.mean_and_error(gains)
            row.append(f"{mean(key):.{digits}f}")
            row += ["", "", ""] if group is base else [
                f"{gain:+.{digits}f}", "-" if error is None else f"{error:.{digits}f}",
                f"{sum(sign * value > 0 for value in gains)} of {len(gains)}"]
        table.append(row)
        results.append({"setting": name, "runs": group})

    for uniform, arguments in (("topk(density=0.0026)", "family=topk, reference=0.0026"),
                               ("powersgd(rank=2)", "family=powersgd, reference=2")):
        base = [setting.train("resnet20", uniform, seed) for seed in seeds]
        add(uniform, base, base)
        for measure in ("l2", "l2_squared"):
            spec = f"lgreco({arguments}, constraint=bytes, error={measure})"
            add(f"  L-GreCo, {measure}",
                [setting.train("resnet20", spec, seed) for seed in seeds], base)
        add("  uniform, small matrices uncompressed",
            [setting.train("resnet20", uniform, seed, min_numel=1024) for seed in seeds],
            base)
    runs.print_table(table)
    print("KB: sent a step by one rank for the layers that are compressed; to uniform: paired by "
          "seed,\n+- the standard error of that difference")
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, default=runs.ROOT / "build" / "release")
    parser.add_argument("--part", choices=("saving", "equal-bytes", "all"), default="all")
    parser.add_argument("--seeds", type=int, help="seeds of each run (saving: 1, or 3 with --full; "
                        "equal-bytes: 5)")
    parser.add_argument("--full", action="store_true", help="every model with every family")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    options = parser.parse_args()
    folder = runs.ROOT / "results" / ("lgreco-quick" if options.quick else "lgreco")
    setting = Setting(options.build, folder, options.quick)

    def seeds(default):
        return range(1, 1 + (options.seeds or (1 if options.quick else default)))

    try:
        if options.part in ("equal-bytes", "all"):
            print(f"== uniform and adaptive at equal bytes, ResNet-20, {STEPS} steps", flush=True)
            found = equal_bytes(setting, seeds(5))
            (folder / "equal-bytes.json").write_text(json.dumps(found, indent=1) + "\n")
        if options.part in ("saving", "all"):
            print("== bytes at equal error", flush=True)
            found = saving(setting, seeds(3 if options.full else 1), options.full)
            (folder / "saving.json").write_text(json.dumps(found, indent=1) + "\n")
    except runs.RunError as error:
        print(f"lgreco: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
