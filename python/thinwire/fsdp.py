"""FSDP2 (torch.distributed.fsdp.fully_shard) with compressed gradients and weights.

The process group must be made with backend "thinwire" and options for reduce_scatter
(`compression`) and all_gather; what each parameter group loses is kept for it and added to its next
step, under the name of its module.
"""

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather, ReduceScatter

from thinwire import _load
from thinwire.errors import Error, InvalidArgument

_C = _load.module()


class _Allocating:
    def allocate(self, size, *, dtype, device):
        return torch.empty(*size, dtype=dtype, device=device)


class KeyedReduceScatter(_Allocating, ReduceScatter):
    """reduce_scatter of one parameter group's gradients, with feedback under its name."""

    def __init__(self, name):
        self.name = name

    def __call__(self, output_tensor, input_tensor, group, op, async_op=False):
        with _C.FeedbackKey(f"fsdp/{self.name}"):
            return dist.reduce_scatter_tensor(output=output_tensor, input=input_tensor, group=group,
                                              op=op, async_op=async_op)


class KeyedAllGather(_Allocating, AllGather):
    """all_gather of one parameter group's weights as differences to those gathered before.

    Every rank keeps a float32 copy of the whole group's weights, which FSDP otherwise frees.
    """

    def __init__(self, name):
        self.name = name

    def __call__(self, output_tensor, input_tensor, group, async_op=False):
        with _C.FeedbackKey(f"fsdp/{self.name}"):
            return dist.all_gather_into_tensor(output_tensor, input_tensor, group=group,
                                               async_op=async_op)


def _key_all_reduce(group, name):
    """HSDP averages the reduced shards over the replicas by an all_reduce of its own, which has no
    place for one of ours: so the whole of what follows a backward pass is named."""
    post_backward = group.post_backward

    def keyed(*inputs, **keywords):
        with _C.FeedbackKey(f"fsdp/{name}"):
            return post_backward(*inputs, **keywords)

    group.post_backward = keyed


def compress(module, weights="as_they_are"):
    """Gives every parameter group of a fully_shard()ed module its feedback.

    With HSDP the all_reduce over the replicas has its feedback too, in that group's state.

    Args:
        module: a module after fully_shard(), its FSDP submodules included.
        weights: "as_they_are": all_gather by the group's own spec, without feedback; fit for
            "cast(bf16)". "deltas": as differences to the weights gathered before, fit for
            "quantize(bits=4)" to 8; every rank then keeps a copy of all weights.

    Returns:
        the number of parameter groups.
    """
    if weights not in ("as_they_are", "deltas"):
        raise InvalidArgument(f"weights must be 'as_they_are' or 'deltas', got '{weights}'")
    groups = 0
    for name, part in module.named_modules():
        if not isinstance(part, FSDPModule):
            continue
        group = part._get_fsdp_state()._fsdp_param_group
        if group is None:
            continue
        if isinstance(getattr(group, "_reduce_scatter_comm", None), KeyedReduceScatter):
            raise Error("thinwire.fsdp.compress() was called for this module before: its parameter "
                        "groups have their feedback")
        if group._is_hsdp:
            _key_all_reduce(group, name)
        part.set_custom_reduce_scatter(KeyedReduceScatter(name))
        if weights == "deltas":
            part.set_custom_all_gather(KeyedAllGather(name))
        groups += 1
    if groups == 0:
        raise InvalidArgument("the module has no FSDP parameter group: call fully_shard() on it "
                              "before thinwire.fsdp.compress()")
    return groups
