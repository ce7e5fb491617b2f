#!/usr/bin/env python3
"""What densities by row and by column of past steps would save of ternary payloads.

    plane_contexts.py RECORDING [--density 0.05] [--skip 15]

RECORDING is what record_language_model.py wrote. Each rank's gradients are made ternary with feedback,
and the entries kept of a matrix counted by 16 classes of the density that rows and columns had in the
means of the steps before, which all ranks know. Bits an element, signs and 12 bits a class included,
beside those of one density a matrix, H(k).
"""

import argparse
import json
import math
import pathlib

import numpy as np

CLASSES, CLASS_BITS, DECAY = 16, 12, 0.8


def read_recording(path):
    """By step and layer: float32 [rows, columns] of each matrix."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    steps = {}
    for key, entry in json.loads(data[8:8 + size]).items():
        if key == "__metadata__" or len(entry["shape"]) < 2 or min(entry["shape"]) < 2:
            continue
        step, _, layer = key.split("/", 2)
        begin, end = entry["data_offsets"]
        values = np.frombuffer(data[8 + size + begin:8 + size + end], np.float32)
        steps.setdefault(int(step), {})[layer] = values.reshape(entry["shape"][0], -1)
    return steps


def entropy_bits(ones, count):
    if ones in (0, count):
        return 0.0
    p = ones / count
    return -count * (p * math.log2(p) + (1 - p) * math.log2(1 - p))


class Density:
    """Of a matrix's rows and columns, with exponential weights."""

    def __init__(self):
        self.sides = None

    def note(self, mask):
        now = [mask.mean(1), mask.mean(0)]
        self.sides = now if self.sides is None else [
            DECAY * old + (1 - DECAY) * new for old, new in zip(self.sides, now)]

    def bits(self, mask):
        """Of the mask, by classes of the product of its row's and its column's density."""
        rows, columns = (side + 1e-3 for side in self.sides)
        order = np.argsort(-np.outer(rows, columns).ravel(), kind="stable")
        return sum(entropy_bits(int(part.sum()), part.size) + CLASS_BITS
                   for part in np.array_split(mask.ravel()[order], CLASSES))


def ternary(values, density):
    """The planes of the largest entries, and what they decode to."""
    kept = max(1, round(density * values.size))
    sizes = np.abs(values)
    mask = np.zeros(values.size, bool)
    mask[np.argpartition(-sizes.ravel(), kept - 1)[:kept]] = True
    mask = mask.reshape(values.shape)
    return mask, np.where(mask, np.sign(values) * sizes[mask].mean(), 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recording", type=pathlib.Path)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--skip", type=int, default=15, help="first steps that do not count")
    options = parser.parse_args()
    paths = sorted(options.recording.parent.glob(options.recording.name + ".[0-9]*"))
    if not paths:
        parser.error(f"there is no {options.recording}.0")
    ranks = [read_recording(path) for path in paths]
    residuals = [{} for _ in ranks]
    densities = {}
    elements = kept = plain = by_class = 0
    for number, step in enumerate(sorted(ranks[0])):
        for layer in ranks[0][step]:
            density = densities.setdefault(layer, Density())
            mean = 0
            for rank, residual in zip(ranks, residuals):
                values = rank[step][layer] + residual.get(layer, 0)
                mask, decoded = ternary(values, options.density)
                residual[layer] = values - decoded
                mean = mean + decoded
                if number < options.skip or density.sides is None:
                    continue
                one = entropy_bits(int(mask.sum()), mask.size)
                elements += mask.size
                kept += int(mask.sum())
                plain += one
                by_class += min(one, density.bits(mask))
            density.note(mean != 0)
    bits = [(total + kept) / elements for total in (plain, by_class)]
    print(f"density {options.density}: {bits[0]:.4f} bits an element with one density a matrix, "
          f"{bits[1]:.4f} with classes, {100 * (1 - bits[1] / bits[0]):.1f} % less")


if __name__ == "__main__":
    main()
