"""Loads the compiled module, after the torch that it needs."""

import functools
import importlib
import importlib.machinery
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch  # noqa: F401  its libraries must be there first

import thinwire_autoload
from thinwire import _torch
from thinwire.errors import Error


def _built_for():
    """The torch version that this installation was made for; empty in a build folder."""
    try:
        from thinwire import _built
    except ImportError:
        return ""
    return _built.TORCH_VERSION


@functools.cache
def module() -> Any:
    """thinwire._C. Raises Error with what to do where it cannot be loaded."""
    if _built_for():
        # With another torch the module would not load, for some undefined symbol.
        _torch.check_version(_built_for())
    try:
        compiled = importlib.import_module("thinwire._C")
    except ImportError as error:
        advice = ""
        if isinstance(error, ModuleNotFoundError):
            advice = (f"; {os.path.dirname(__file__)} has none for this Python "
                      f"({importlib.machinery.EXTENSION_SUFFIXES[0]}): install the wheel of `make "
                      "wheel`, made with this Python, or put build/release/python of a source tree "
                      "on PYTHONPATH")
        raise Error(f"thinwire's compiled part cannot be loaded: {error}{advice}") from error
    _torch.check_version(compiled.torch_version)
    # Where torch looked for no entry points (TORCH_DEVICE_BACKEND_AUTOLOAD=0).
    thinwire_autoload.register()
    return compiled


def codecs() -> list[tuple[str, str, str]]:
    """All codecs: a list of (name, parameters with defaults and ranges, one line)."""
    return module().codecs()


def merge_states(states: Sequence[Mapping[str, Any]], world_size: int) -> dict[str, bytes]:
    """The state that every rank of a job of `world_size` ranks starts with, from those of all ranks
    of the old one (state_dict() of compress() or of an OuterOptimizer), in order of the ranks."""
    from thinwire import _states

    return _states.merged(states, lambda tensors: module().merge_states(tensors, world_size))


__version__: str


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return module().version
    raise AttributeError(name)
