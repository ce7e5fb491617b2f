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
from thinwire.errors import InvalidArgument

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


def compress(module, weights="as_they_are"):
    """Gives every parameter group of a fully_shard()ed module its feedback.

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
        if part._get_fsdp_state()._fsdp_param_group is None:
            continue
        part.set_custom_reduce_scatter(KeyedReduceScatter(name))
        if weights == "deltas":
            part.set_custom_all_gather(KeyedAllGather(name))
        groups += 1
    if groups == 0:
        raise InvalidArgument("the module has no FSDP parameter group: call fully_shard() on it "
                              "before thinwire.fsdp.compress()")
    return groups
