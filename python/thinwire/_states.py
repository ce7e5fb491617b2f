"""Saved states, in the form that torch.save() and torch.distributed.checkpoint keep whole.

What compression carries differs from rank to rank, and a rank that starts anew does not know its
tensors' names and shapes yet. torch.distributed.checkpoint keeps one of several ranks' values under
a name and reads no more than the names that it is asked for. So a rank's state is one entry under
the rank's name, as bytes, which are read whole.
"""

import io
import re

import torch
import torch.distributed as dist

from thinwire.errors import InvalidArgument

_MERGED = "all ranks"


def _entry(rank):
    return f"rank {rank}"


def _bytes_of(tensors):
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def _tensors_in(entry, name):
    if not isinstance(entry, bytes):
        raise InvalidArgument("a state is what state_dict() or merge_states() returned, got "
                              f"{type(entry).__name__} under {name!r}")
    try:
        tensors = torch.load(io.BytesIO(entry), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  torch and pickle have their own for every damage
        raise InvalidArgument(f"the state of {name} is damaged: {error}") from error
    if not (isinstance(tensors, dict) and all(map(torch.is_tensor, tensors.values()))):
        raise InvalidArgument(f"the state of {name} has no tensors by name")
    return tensors


def _check_dict(state):
    if not hasattr(state, "items"):
        raise InvalidArgument("a state is what state_dict() or merge_states() returned, got "
                              f"{type(state).__name__}")


def state_of_this_rank(tensors):
    """{"rank 1": bytes} of a dict of tensors by name."""
    return {_entry(dist.get_rank()): _bytes_of(tensors)}


def tensors_of_this_rank(state):
    """The tensors of a state that this rank, or merge_states(), made. Raises InvalidArgument."""
    _check_dict(state)
    for name in (_entry(dist.get_rank()), _MERGED):
        if name in state:
            return _tensors_in(state[name], name)
    raise InvalidArgument(f"the state holds {', '.join(map(repr, state)) or 'nothing'} and this is "
                          f"rank {dist.get_rank()}: each rank loads what it has saved, or what "
                          "merge_states() made of the states of all")


def merged(states, merge):
    """The state that every rank of another job can load, from those of all ranks, in their order."""
    tensors, last = [], -1
    for number, state in enumerate(states):
        _check_dict(state)
        name, = state if len(state) == 1 else ("",)
        found = re.fullmatch(r"rank (\d+)", str(name))
        # Ranks of the whole job; a model may be averaged over some of them.
        if found is None or int(found[1]) <= last:
            raise InvalidArgument("states to merge are those of all ranks, in order: number "
                                  f"{number} holds {', '.join(map(repr, state)) or 'nothing'}, after "
                                  f"{f'rank {last}' if last >= 0 else 'none'}")
        last = int(found[1])
        tensors.append(_tensors_in(state[name], name))
    return {_MERGED: _bytes_of(merge(tensors))}


def tensors_by_name(state):
    """A dict of tensors as the compiled part takes it."""
    if not hasattr(state, "items"):
        raise InvalidArgument(f"a state is a dict of tensors, got {type(state).__name__}")
    for name, tensor in state.items():
        if not isinstance(name, str) or not torch.is_tensor(tensor):
            raise InvalidArgument("a state is a dict of tensors by name, got "
                                  f"{type(tensor).__name__} under {name!r}")
    return dict(state)
