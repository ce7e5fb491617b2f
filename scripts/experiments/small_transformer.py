"""The language model of the experiments, and its text (Debian's package bible-kjv)."""

import os
import re
import subprocess

import torch
from torch import nn
from torch.nn import functional as F


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
    """A causal transformer that takes [batch, context] tokens and returns the logits of the next."""

    def __init__(self, width, layers=3, context=64, tokens=256):
        super().__init__()
        self.tokens = nn.Embedding(tokens, width)
        self.places = nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = nn.Sequential(*[Block(width, 4) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, tokens, bias=False)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.tokens(x) + self.places)))


def read_text():
    """All bytes of the text, numbers of verses included."""
    return subprocess.run(["bible", "-f", "Gen1:1-Rev22:21"], capture_output=True, check=True,
                          env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/games"}).stdout


def read_verses():
    """Training text and held-out text without the numbers of verses, as tokens from 0, and the
    number of different tokens. Held out is one of every 16 pieces of 8192 characters."""
    text = re.sub(rb"(?m)^\S+:\d+ ", b"", read_text())
    tokens, data = torch.tensor(list(text)).unique(return_inverse=True)
    pieces = data[:len(data) // 8192 * 8192].view(-1, 8192)
    held_out = torch.arange(len(pieces)) % 16 == 7
    return pieces[~held_out].flatten(), pieces[held_out].flatten(), len(tokens)


def batch_of(data, count, context, generator=None):
    """[count, context + 1] tokens from random places."""
    starts = torch.randint(0, len(data) - context - 1, (count,), generator=generator)
    return torch.stack([data[s:s + context + 1] for s in starts.tolist()])


def loss_of(model, batch):
    """Nats a token."""
    return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
