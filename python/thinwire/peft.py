"""Adapters and weight deltas as ternary files, after ComPEFT (docs/compeft.md).

A source is a directory of the PEFT library, a safetensors file, or a dict of tensors. Everything
raises FileError for a file that cannot be read or written, InvalidArgument for options that cannot
work.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from thinwire import _load

_files = _load.module().peft

Path = str | os.PathLike
# A directory of the PEFT library, a safetensors file, or tensors by name.
Source = Path | Mapping[str, torch.Tensor]


def _path(path):
    return os.fspath(path)


def _as_file(source, folder, name):
    """A path: `source` itself, or a file with the tensors of the dict that it is."""
    if not hasattr(source, "items"):
        return _path(source)
    path = os.path.join(folder, name)
    _files.write_tensors(path, sorted(source.items()), {}, True)
    return path


def pack(source: Source, out: Path, density: float = 0.05, *, scale: str = "mean",
         granularity: str = "", base: Source | None = None, base_one: bool = False,
         parent: Path = "", target_bytes: int | None = None, target_error: float | None = None,
         overwrite: bool = False) -> dict[str, Any]:
    """Packs `source` into the file `out` and returns what came of it.

    Args:
        source: a PEFT directory, a safetensors file, or {name: tensor}.
        out: path of the file to write.
        density: part of the entries that is kept, in (0, 1].
        base: file or {name: tensor} that `source` is taken relative to; default: zero, and what an
            adapter's kind says. base_one: relative to one.
        granularity: "global", "group" (LoRA's A and B factors) or "tensor": what shares a threshold
            and a scale; default: group for adapters with factors of more than one role.
        parent: packed file whose result the base is.
        target_bytes, target_error: search the density instead (`thinwire peft pack --help`).

    Returns:
        dict: density, relative_error, numel, kept, file_bytes, id, warnings.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _files.pack(_as_file(source, folder, "source.safetensors"), _path(out), density,
                           scale, granularity,
                           "" if base is None else _as_file(base, folder, "base.safetensors"),
                           base_one, _path(parent), target_bytes, target_error, overwrite)


def unpack(file: Path, directory: Path | None = None, overwrite: bool = False
           ) -> dict[str, torch.Tensor] | None:
    """Rebuilds what was packed: in `directory`, or without one as {name: tensor}."""
    if directory is not None:
        _files.unpack(_path(file), _path(directory), overwrite)
        return None
    with tempfile.TemporaryDirectory() as folder:
        _files.unpack(_path(file), folder, True)
        return _files.read_tensors(os.path.join(folder, "adapter_model.safetensors"))


def apply(base: Source, files: Path | Sequence[Path], out: Path | None = None,
          overwrite: bool = False) -> dict[str, torch.Tensor] | None:
    """base plus the deltas of a chain of packed files, written to `out` or returned as a dict."""
    files = [files] if isinstance(files, (str, os.PathLike)) else files
    with tempfile.TemporaryDirectory() as folder:
        result = os.path.join(folder, "out.safetensors") if out is None else _path(out)
        _files.apply(_as_file(base, folder, "base.safetensors"), [_path(f) for f in files], result,
                     overwrite)
        return _files.read_tensors(result) if out is None else None


def merge(files: Sequence[Path], out: Path, method: str = "ties", weights: Sequence[float] = (),
          overwrite: bool = False) -> None:
    """Merges packed files into one: ties, majority, average or task_arithmetic."""
    _files.merge(method, [_path(f) for f in files], list(weights), _path(out), overwrite)


def similarity(files: Sequence[Path]) -> list[list[float]]:
    """Cosines of the deltas of all pairs, [n][n]."""
    flat, n = _files.similarity([_path(f) for f in files]), len(files)
    return [flat[row * n:(row + 1) * n] for row in range(n)]


def manifest(file: Path) -> dict[str, Any]:
    """What a packed file says of itself: a dict."""
    return json.loads(_files.manifest(_path(file)))
