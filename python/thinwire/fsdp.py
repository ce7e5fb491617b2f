"""FSDP2 (torch.distributed.fsdp.fully_shard) with compressed gradients and weights.

The process group must be made with backend "thinwire" and options for reduce_scatter
(`compression`) and all_gather; what each parameter group loses is kept for it and added to its next
step, under the name of its module.
"""

import gc
import weakref
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather, ReduceScatter

from thinwire import _groups, _load
from thinwire._agreement import agreed
from thinwire._states import tensors_of_this_rank
from thinwire.errors import InvalidArgument

_C = _load.module()


class _Allocating:
    def allocate(self, size, *, dtype, device):
        return torch.empty(*size, dtype=dtype, device=device)


class KeyedReduceScatter(_Allocating, ReduceScatter):
    """reduce_scatter of one parameter group's gradients, with feedback under its name."""

    def __init__(self, key, process_group):
        self.key = key
        self.process_group = weakref.ref(process_group)

    def __call__(self, output_tensor, input_tensor, group, op, async_op=False):
        with _C.FeedbackKey(self.key):
            return dist.reduce_scatter_tensor(output=output_tensor, input=input_tensor, group=group,
                                              op=op, async_op=async_op)


class KeyedAllGather(_Allocating, AllGather):
    """all_gather of one parameter group's weights as differences to those gathered before.

    Every rank keeps a float32 copy of the whole group's weights, which FSDP otherwise frees.
    """

    def __init__(self, key):
        self.key = key

    def __call__(self, output_tensor, input_tensor, group, async_op=False):
        with _C.FeedbackKey(self.key):
            return dist.all_gather_into_tensor(output_tensor, input_tensor, group=group,
                                               async_op=async_op)


def _key_all_reduce(group, key):
    """HSDP averages the reduced shards over the replicas by an all_reduce of its own, which has no
    place for one of ours: so the whole of what follows a backward pass is named."""
    post_backward = group.post_backward

    def keyed(*inputs, **keywords):
        with _C.FeedbackKey(key):
            return post_backward(*inputs, **keywords)

    group.post_backward = keyed


# Those of living models: a key belongs to one parameter group of a process group.
_living = weakref.WeakSet()


def _is_taken(key, process_group):
    return any(living.key == key and living.process_group() is process_group for living in _living)


def _parameter_groups(module, model):
    """(feedback key, FSDP module, its parameter group)"""
    prefix = f"fsdp {model}/" if model else "fsdp/"
    return [(prefix + name, part, part._get_fsdp_state()._fsdp_param_group)
            for name, part in module.named_modules()
            if isinstance(part, FSDPModule)
            and part._get_fsdp_state()._fsdp_param_group is not None]


def _process_groups(parameter_groups):
    """{name for messages and states: process group}, those of several meshes numbered."""
    found = {}
    for _, _, group in parameter_groups:
        kinds = [("shards", group._reduce_scatter_process_group)]
        if group._is_hsdp:
            kinds.append(("replicas", group._all_reduce_process_group))
        for kind, process_group in kinds:
            if all(process_group is not known for known in found.values()):
                number = sum(name.startswith(kind) for name in found)
                found[f"{kind} {number}" if number else kind] = process_group
    return found


def _check_module(module, weights, model):
    """The parameter groups, with what they communicate through. Raises for what cannot work."""
    if weights not in ("as_they_are", "deltas"):
        raise InvalidArgument(f"weights must be 'as_they_are' or 'deltas', got {weights!r}")
    if not isinstance(module, torch.nn.Module):
        raise InvalidArgument("thinwire.fsdp.compress() takes a module after fully_shard(), got "
                              f"{type(module).__name__}")
    if not isinstance(model, str):
        raise InvalidArgument(f"name must be a str, got {type(model).__name__}")
    parameter_groups = _parameter_groups(module, model)
    if not parameter_groups:
        raise InvalidArgument("the module has no FSDP parameter group: call fully_shard() on it "
                              "before thinwire.fsdp.compress()")
    for key, _, group in parameter_groups:
        if isinstance(getattr(group, "_reduce_scatter_comm", None), KeyedReduceScatter):
            raise InvalidArgument("thinwire.fsdp.compress() was called for this module before: its "
                                  "parameter groups have their feedback")
        process_group = group._reduce_scatter_process_group
        if _is_taken(key, process_group):
            gc.collect()  # a model that the program has dropped may still hold it
            if _is_taken(key, process_group):
                raise InvalidArgument(f"another model on this mesh has the feedback key '{key}': "
                                      "give each model a name, thinwire.fsdp.compress(..., "
                                      'name="critic")')
    process_groups = _process_groups(parameter_groups)
    for name, process_group in process_groups.items():
        options = _groups.backend_of(process_group).thinwire_options
        if weights == "deltas" and name.startswith("shards") and options.all_gather == "none":
            raise InvalidArgument("weights='deltas' needs a codec for all_gather, the process "
                                  "group of the mesh has none: "
                                  'ProcessGroupOptions(..., all_gather="quantize(bits=6)")')
    return parameter_groups, process_groups


class Compression:
    """The handle of compress().

    Attributes:
        keys: the feedback keys of the parameter groups, "fsdp/" and the name of the module.
    """

    keys: list[str]

    def __init__(self, keys, process_groups, group):
        self.keys = keys
        self._process_groups = process_groups
        self._group = group

    def stats(self) -> dict[str, Any]:
        """thinwire.stats() of the groups of the mesh, over shards and replicas, together."""
        return _groups.totals([_groups.backend_of(g) for g in self._process_groups.values()])

    def state_dict(self) -> dict[str, dict[str, bytes]]:
        """What the process groups of the mesh carry to the next step on this rank: residuals, and
        with weights="deltas" the copy of the weights. For torch.save() and for
        torch.distributed.checkpoint, which also takes the handle itself. Between steps only."""
        return {name: _groups.state_dict(g) for name, g in self._process_groups.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from state_dict(). Collective; raises InvalidArgument on every rank where a
        rank's state does not fit."""

        def state_of_this_rank():
            if not hasattr(state, "items") or set(state) != set(self._process_groups):
                names = list(state) if hasattr(state, "items") else type(state).__name__
                raise InvalidArgument("a state of FSDP's process groups has the entries "
                                      f"{list(self._process_groups)}, got {names}")
            for part in state.values():
                tensors_of_this_rank(part)

        agreed(self._group, "the saved state of FSDP", state_of_this_rank)
        for name, process_group in self._process_groups.items():
            _groups.load_state_dict(state[name], process_group)

    def __repr__(self) -> str:
        return f"thinwire.fsdp.Compression({len(self.keys)} parameter groups)"


def compress(module: torch.nn.Module, weights: str = "as_they_are",
             group: dist.ProcessGroup | None = None, *, name: str = "") -> Compression:
    """Gives every parameter group of a fully_shard()ed module its feedback.

    With HSDP the all_reduce over the replicas has its feedback too, in that group's state.
    Collective over `group`.

    Args:
        module: a module after fully_shard(), its FSDP submodules included.
        weights: "as_they_are": all_gather by the group's own spec, without feedback; fit for
            "cast(bf16)". "deltas": as differences to the weights gathered before, fit for
            "quantize(bits=4)" to 8; every rank then keeps a copy of all weights.
        group: the ranks that call this, those of the module's mesh or more; default: all.
        name: of the model, where several on one mesh have modules of the same names.

    Returns:
        Compression, with stats(), state_dict() and load_state_dict().

    Raises:
        InvalidArgument: on every rank, for a module without parameter groups or with such feedback
            already, a mesh whose process groups are none of thinwire's, or ranks that differ.
    """
    if group is None and dist.is_initialized():
        group = dist.group.WORLD
    parameter_groups, process_groups = agreed(
        group, "the arguments of thinwire.fsdp.compress()",
        lambda: _check_module(module, weights, name), lambda _: f"weights {weights}\nname {name}")
    for key, part, parameter_group in parameter_groups:
        if parameter_group._is_hsdp:
            _key_all_reduce(parameter_group, key)
        keyed = KeyedReduceScatter(key, parameter_group._reduce_scatter_process_group)
        _living.add(keyed)
        part.set_custom_reduce_scatter(keyed)
        if weights == "deltas":
            part.set_custom_all_gather(KeyedAllGather(key))
    return Compression([key for key, *_ in parameter_groups], process_groups, group)
