#!/usr/bin/env python3
"""FSDP2 on a small language model: gradients at 4 bits against uncompressed ones, over 3 seeds.

    PYTHONPATH=build/release/python fsdp_lm.py [--seeds 3] [--first-seed 0] [--steps 200]
        [--only deltas] [--out results/fsdp_lm]

A Transformer that predicts the next character of an English text (Debian's package bible-kjv),
fully_shard()ed over two ranks of this machine. Every setting sees the same batches. Prints, for each,
the validation loss in bits per character, and the bytes that a rank sent in a step.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import tempfile

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

WORLD, CONTEXT, BATCH, WIDTH = 2, 64, 16, 128
# name: (spec of the gradients, spec of the weights, what thinwire.fsdp.compress() does with these)
SETTINGS = {
    "uncompressed": ("none", "none", None),
    "4-bit gradients, bf16 weights": ("quantize(bits=4)", "cast(bf16)", "as_they_are"),
    "4-bit gradients, 6-bit deltas": ("quantize(bits=4)", "quantize(bits=6)", "deltas"),
}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(2)])
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(),
                                 nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.norms[1](x))


class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.characters = nn.Embedding(256, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        self.blocks = nn.ModuleList([Block() for _ in range(2)])
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256))

    def forward(self, text):
        x = self.characters(text) + self.places[: text.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def read_text():
    text = subprocess.run(["bible", "-f", "Gen1:1-Rev22:21"], capture_output=True, check=True,
                          env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/games"}).stdout
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    cut = len(data) * 9 // 10
    return data[:cut], data[cut:]


def batch_of(data, count, generator):
    begins = torch.randint(len(data) - CONTEXT - 1, (count,), generator=generator)
    pieces = torch.stack([data[b:b + CONTEXT + 1] for b in begins]).long()
    return pieces[:, :-1], pieces[:, 1:]


def loss_of(model, pieces):
    inputs, targets = pieces
    return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def rank_job(rank, seed, steps, setting, folder):
    import thinwire

    gradients, weights, feedback = SETTINGS[setting]
    torch.set_num_threads(1)
    dist.init_process_group(
        "thinwire", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD,
        pg_options=thinwire.ProcessGroupOptions(gradients, all_gather=weights, seed=seed))
    torch.manual_seed(seed)
    model = LanguageModel()
    mesh = init_device_mesh("cpu", (WORLD,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if feedback is not None:
        thinwire.fsdp.compress(model, feedback)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    train, validation = read_text()
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, batch_of(train, BATCH, generator)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    stats = thinwire.stats(mesh.get_group())["operations"]
    generator = torch.Generator().manual_seed(1)
    model.eval()
    with torch.no_grad():
        loss = statistics.mean(loss_of(model, batch_of(validation, 64, generator)).item()
                               for _ in range(8))
    calls = {name: {"sent": stats[name]["sent_bytes"] / steps,
                    "dense": stats[name]["dense_bytes"] / steps}
             for name in ("reduce_scatter", "all_gather")}
    if rank == 0:
        pathlib.Path(folder, "result.json").write_text(json.dumps(
            {"bits": loss / math.log(2), **calls}), encoding="utf-8")
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", default="", help="settings whose name holds this text")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=pathlib.Path, default="results/fsdp_lm")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = {}
    for setting in [name for name in SETTINGS if options.only in name]:
        results[setting] = []
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            with tempfile.TemporaryDirectory() as folder:
                torch.multiprocessing.spawn(
                    rank_job, (seed, options.steps, setting, folder), nprocs=WORLD)
                run = json.loads(pathlib.Path(folder, "result.json").read_text(encoding="utf-8"))
            results[setting].append(run)
            print(f"{setting}, seed {seed}: {run['bits']:.3f} bits per character", flush=True)
    (options.out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    # What goes through a codec is counted; uncompressed, the same calls send their dense bytes.
    dense = results[list(results)[-1]][0]
    print("| setting | bits per character | gradients, KB a step and rank | weights, KB |")
    print("| --- | --- | --- | --- |")
    for setting, runs in results.items():
        bits = [run["bits"] for run in runs]
        kilobytes = [1e-3 * (runs[0][call]["sent"] or dense[call]["dense"])
                     for call in ("reduce_scatter", "all_gather")]
        print(f"| {setting} | {statistics.mean(bits):.3f} ({min(bits):.3f} to {max(bits):.3f}) | "
              f"{kilobytes[0]:.0f} | {kilobytes[1]:.0f} |")


if __name__ == "__main__":
    main()
