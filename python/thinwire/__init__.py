"""thinwire: distributed training with PyTorch that sends less.

    import torch.distributed as dist, thinwire
    dist.init_process_group("gloo")                       # or "thinwire", see ProcessGroupOptions
    model = torch.nn.parallel.DistributedDataParallel(net)
    handle = thinwire.compress(model, "quantize(bits=4)")
    ...                                                   # train as before
    print(handle.stats())

docs/python.md has the rest.
"""

# Every name is imported when it is first used, so that this works where the compiled part does not,
# and before `import torch`.
import os as _os
import typing as _typing

# Note [Flight recorder] of comm/backend/gloo/backend.cpp: Gloo's record of its operations is not
# made for groups that are used from several threads. torch reads this at its first operation.
if "TORCH_NCCL_TRACE_BUFFER_SIZE" not in _os.environ:
    _os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "0")

_HOME = {
    "CommError": "errors", "Error": "errors", "FileError": "errors", "FrameError": "errors",
    "InternalError": "errors", "InvalidArgument": "errors",
    "Compression": "_compress", "compress": "_compress", "plan": "_compress",
    "ProcessGroupOptions": "_groups", "feedback_key": "_groups", "stats": "_groups",
    "state_dict": "_groups", "load_state_dict": "_groups",
    "MoELayer": "_moe", "OuterOptimizer": "_outer", "ignore_experts": "_experts",
    "codecs": "_load", "merge_states": "_load", "__version__": "_load",
}
_MODULES = ("errors", "fsdp", "peft", "scalars")
__all__ = sorted([*_HOME, *_MODULES])

if _typing.TYPE_CHECKING:  # "as": what a type checker takes for exported
    from thinwire import errors as errors, fsdp as fsdp, peft as peft, scalars as scalars
    from thinwire._compress import Compression as Compression, compress as compress, plan as plan
    from thinwire._experts import ignore_experts as ignore_experts
    from thinwire._groups import (
        ProcessGroupOptions as ProcessGroupOptions, feedback_key as feedback_key,
        load_state_dict as load_state_dict, state_dict as state_dict, stats as stats)
    from thinwire._load import (
        __version__ as __version__, codecs as codecs, merge_states as merge_states)
    from thinwire._moe import MoELayer as MoELayer
    from thinwire._outer import OuterOptimizer as OuterOptimizer
    from thinwire.errors import (
        CommError as CommError, Error as Error, FileError as FileError, FrameError as FrameError,
        InternalError as InternalError, InvalidArgument as InvalidArgument)
else:
    def __getattr__(name):
        import importlib

        if name in _MODULES:
            return importlib.import_module(f"thinwire.{name}")
        if name not in _HOME:
            raise AttributeError(f"module 'thinwire' has no attribute '{name}'")
        value = getattr(importlib.import_module(f"thinwire.{_HOME[name]}"), name)
        globals()[name] = value
        return value


def __dir__():
    return __all__
