"""What the tests of `thinwire peft` share: the program, and safetensors files without a library."""

import json
import os
import pathlib
import struct
import subprocess

FOLDER = pathlib.Path(os.environ["THINWIRE_BINARY_DIR"]) / "bin"
PROGRAM = FOLDER / "thinwire"
# The same command without torch, which takes most of the program's time to start.
QUICK = FOLDER / "tests" / "peft_program"


def run(*arguments, code=0, program=QUICK):
    """Runs `thinwire peft`, expects an exit code, returns what it printed (errors on failure)."""
    result = subprocess.run([program, "peft", *map(str, arguments)], capture_output=True, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=60)
    if result.returncode != code:
        raise AssertionError(f"{arguments} gave {result.returncode}: {result.stderr}")
    return result.stdout if code == 0 else result.stderr


def write(path, tensors, metadata=None):
    """Writes {name: (dtype, shape, bytes)} as a safetensors file."""
    header, at = {}, 0
    if metadata:
        header["__metadata__"] = metadata
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            file.write(data)
