"""Trainings of the small language model by ranks of this machine, and their tables.

All settings of a seed start with the same weights and see the same batches. The learning rate rises
and then falls like half a cosine.
"""

import argparse
import datetime
import gc
import json
import math
import os
import pathlib
import time

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "0")

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

import runs
from small_transformer import Model, batch_of, loss_of, read_verses

RISE, BATCH, CONTEXT, RATE = 50, 8, 32, 3e-3


class Training:
    """What every run of this rank needs."""

    def __init__(self, options):
        self.options = options
        self.text, self.held_out, self.tokens = read_verses()

    def model(self, seed):
        torch.manual_seed(seed)
        model = Model(self.options.width, self.options.layers, CONTEXT, self.tokens)
        nn.init.normal_(model.tokens.weight, std=0.1)
        return model

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.98), eps=1e-10)

    def steps(self, seed, optimizer):
        """(step, batch of this rank), with the step's learning rate set."""
        generator = torch.Generator().manual_seed(1000 * seed + dist.get_rank())
        count = self.options.steps
        for step in range(count):
            optimizer.param_groups[0]["lr"] = (
                RATE * min(1, (step + 1) / RISE) * (1 + math.cos(math.pi * (step + 1) / count)) / 2)
            yield step, batch_of(self.text, BATCH, CONTEXT, generator)

    def held_out_loss(self, model):
        generator = torch.Generator().manual_seed(99)
        with torch.no_grad():
            losses = [loss_of(model, batch_of(self.held_out, 64, CONTEXT, generator)).item()
                      for _ in range(16)]
        return sum(losses) / len(losses)


def _add_options(parser, out):
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--out", type=pathlib.Path, default=runs.ROOT / "results" / out)


def key_of(options, setting, seed):
    return {"spec": setting, "seed": seed, "steps": options.steps, "width": options.width,
            "layers": options.layers}


def read_rows(path):
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def find_row(rows, key):
    return next((row for row in rows if row == {**row, **key}), None)


def _rank_job(rank, options, todo, port, train):
    os.environ.update(runs.rank_environment(rank, port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(minutes=30))
    training = Training(options)
    rows = read_rows(options.out)
    for setting, seed in todo:
        began = time.monotonic()
        row = {**key_of(options, setting, seed), **train(training, setting, seed),
               "seconds": time.monotonic() - began}
        gc.collect()
        dist.barrier()
        if rank > 0:
            continue
        rows.append(row)
        partial = options.out.with_suffix(".partial")
        partial.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, options.out)
        print(f"{setting}, seed {seed}: {row['loss']:.4f} nats, {row['bits']:.3f} bits, "
              f"{row['seconds']:.0f} s", flush=True)
    dist.destroy_process_group()


def run(options, settings, train):
    """Trains each setting with each seed, but for those that options.out has already.
    train(training, setting, seed) returns "loss" and "bits" of a run, and what else is kept."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = read_rows(options.out)
    todo = [(setting, seed) for seed in range(1, 1 + options.seeds) for setting in settings
            if find_row(rows, key_of(options, setting, seed)) is None]
    if todo:
        torch.multiprocessing.spawn(_rank_job, (options, todo, runs.free_port(), train),
                                    nprocs=runs.RANKS)


def print_table(options, settings):
    """Means over the seeds; the differences are those to the first setting with the same seed."""
    rows = read_rows(options.out)
    chosen = [[find_row(rows, key_of(options, setting, seed))
               for seed in range(1, 1 + options.seeds)] for setting in settings]
    table = [["setting", "bits", "nats", f"to {settings[0]}", "+-"]]
    for setting, of_seeds in zip(settings, chosen):
        difference, error = runs.mean_and_error(
            [row["loss"] - first["loss"] for row, first in zip(of_seeds, chosen[0])])
        table.append([setting, f"{runs.mean_and_error([row['bits'] for row in of_seeds])[0]:.3f}",
                      f"{runs.mean_and_error([row['loss'] for row in of_seeds])[0]:.4f}",
                      f"{difference:+.4f}", "-" if error is None else f"{error:.4f}"])
    runs.print_table(table)
    print("+-: standard error of the difference over the seeds")


def parse(description, out, settings):
    """The options of an experiment, and its settings."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--specs", default=";".join(settings), help="the first is the reference")
    _add_options(parser, out)
    options = parser.parse_args()
    return options, [spec.strip() for spec in options.specs.split(";")]
