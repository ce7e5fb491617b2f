"""Process groups that compress: what torch.distributed calls when it makes one."""

import dataclasses
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist

from thinwire import _load
from thinwire._agreement import agreed
from thinwire._states import state_of_this_rank, tensors_of_this_rank
from thinwire.errors import Error, InvalidArgument

_C = _load.module()


@dataclasses.dataclass(frozen=True)
class ProcessGroupOptions:
    """Which collectives of a group go through a codec; pass it as `pg_options`.

    Must be equal on all ranks. Each spec is a codec's, such as "quantize(bits=8)"; "none" sends
    tensors as they are.

    Attributes:
        compression: for all_reduce and every form of reduce_scatter, of sums and means. Default:
            the environment's THINWIRE_COMPRESSION, else none.
        all_gather: for every form of all_gather, which carries what is used as it is (weights).
        all_to_all: for all_to_all, the same.
        min_numel: tensors of fewer elements travel as they are.
        seed: source of all randomness of the codecs.

    A group made without `pg_options` (by DeviceMesh, FSDP, split_group()) has those of the default
    group where that is one of thinwire's.

    Codecs that leave most of a tensor out (topk, onebit, powersgd, ...) are used only for calls
    inside `with thinwire.feedback_key(name)`, whose losses are added to the next call of that name.
    """

    compression: str = ""
    all_gather: str = "none"
    all_to_all: str = "none"
    min_numel: int = 1024
    seed: int = 0


def _of_default_group():
    """The options of the default group, where that is one of ours; None else."""
    if not dist.is_initialized():
        return None
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    return backend.thinwire_options if isinstance(backend, _C.CompressedBackend) else None


def _compiled(options):
    if options is None:
        inherited = _of_default_group()
        if inherited is not None:
            return inherited
        options = ProcessGroupOptions()
    if isinstance(options, str):
        options = ProcessGroupOptions(options)
    if not isinstance(options, ProcessGroupOptions):
        raise InvalidArgument(
            "pg_options of a thinwire group must be thinwire.ProcessGroupOptions or the spec of a "
            f"codec, got {type(options).__name__}")
    return _C.BackendOptions(**dataclasses.asdict(options))


def _gloo(options):
    backend = dist.ProcessGroupGloo(options.store, options.group_rank, options.group_size,
                                    options.timeout)
    backend.options.global_ranks_in_group = options.global_ranks_in_group
    backend.options.group_name = options.group_id
    backend._set_sequence_number_for_group()
    return backend


def _check_mpi(options):
    if dist.is_initialized():
        _C.check_mpi_backend(dist.get_rank(), dist.get_world_size())
    else:
        _C.check_mpi_backend(options.group_rank, options.group_size)


def _mpi(options):
    ranks = list(options.global_ranks_in_group) or list(range(options.group_size))
    return _C.make_mpi_backend(ranks, options.timeout)


def create(inner, options, group_options):
    """A CompressedBackend over `inner` ("gloo" or "mpi"), for torch.distributed."""
    store = dist.PrefixStore("thinwire", options.store)

    def options_of_this_rank():
        if inner == "mpi":
            _check_mpi(options)
        return _compiled(group_options)

    # Before any rank waits in the constructor of a backend for one that is refused here.
    ranks = dist.ProcessGroup(store, options.group_rank, options.group_size)
    compiled = agreed(ranks, "the options of the process group", options_of_this_rank)
    backend = _gloo(options) if inner == "gloo" else _mpi(options)
    return _C.CompressedBackend(backend, store, compiled)


def backend_of(group=None):
    """The CompressedBackend of a group (default: the default group)."""
    if not dist.is_initialized():
        raise Error("there is no process group yet: call torch.distributed.init_process_group() "
                    "before this")
    group = dist.group.WORLD if group is None else group
    try:
        backend = group._get_backend(torch.device("cpu"))
    except RuntimeError:
        backend = None  # a group of NCCL's alone
    if not isinstance(backend, _C.CompressedBackend):
        raise InvalidArgument(
            f"the process group's backend is '{dist.get_backend(group)}': statistics and state are "
            'those of a group made with backend "thinwire" or "thinwire_mpi"')
    return backend


def stats(group: dist.ProcessGroup | None = None) -> dict[str, Any]:
    """What this rank's collectives of a thinwire group were and cost.

    Returns a dict with "coded" and "exact" (numbers of calls), "dense_bytes" (what the coded ones
    would have sent), "sent_bytes" (what they sent, headers included), "ratio" of the two, and
    "operations", the same for each kind of call.
    """
    return totals([backend_of(group)])


def totals(backends):
    """stats() of several backends together."""
    operations = {}
    for backend in backends:
        for operation, counts in backend.statistics().items():
            sums = operations.setdefault(operation, dict.fromkeys(counts, 0))
            for key, value in counts.items():
                sums[key] += value
    total = {key: sum(one[key] for one in operations.values())
             for key in ("coded", "exact", "without_key", "dense_bytes", "sent_bytes")}
    total["ratio"] = total["dense_bytes"] / total["sent_bytes"] if total["sent_bytes"] else 1.0
    total["operations"] = operations
    return total


def state_dict(group: dist.ProcessGroup | None = None) -> dict[str, bytes]:
    """What feedback keys carry from call to call on this rank: {"rank 1": bytes}, for torch.save()
    and torch.distributed.checkpoint."""
    return state_of_this_rank(backend_of(group).state())


def load_state_dict(state: Mapping[str, Any], group: dist.ProcessGroup | None = None) -> None:
    """Goes on from state_dict(). Collective, between calls: states of different steps are refused."""
    backend = backend_of(group)
    backend.load_state(agreed(dist.group.WORLD if group is None else group,
                              "the saved state of a process group",
                              lambda: tensors_of_this_rank(state)))


def feedback_key(name: str) -> AbstractContextManager[None]:
    """A context manager: collectives inside keep what compression loses under `name`.

    What one call lost is added to the next call under the same name, so a name belongs to one
    tensor of the program. All ranks must use the same names.
    """
    if not isinstance(name, str):
        raise InvalidArgument(f"a feedback key is a str, got {type(name).__name__}")
    return _C.FeedbackKey(name)
