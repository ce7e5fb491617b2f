"""Recorded gradients as --record-gradients writes them, made by tests."""

import array
import json
import math
import struct


def numel(shape):
    return math.prod(shape)


def save(path, tensors):
    """A safetensors file of {name: (shape, values)}, all float32."""
    header, at = {}, 0
    for name, (shape, values) in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + 4 * len(values)]}
        at += 4 * len(values)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(array.array("f", values).tobytes() for _, values in tensors.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
