"""Training that meets seldom: local SGD and DiLoCo."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from thinwire import _load
from thinwire._agreement import agreed, checked
from thinwire._states import state_of_this_rank, tensors_of_this_rank
from thinwire.errors import Error, InvalidArgument

_C = _load.module()

Overrides = Mapping[str, str] | Iterable[tuple[str, str]]


class OuterOptimizer:
    """An inner optimizer on every rank, and an outer step every `inner_steps` of them.

    At an outer step the ranks exchange how far each has moved its weights, compressed; all go on
    from the same weights (docs/compeft.md). Not thread-safe. Parameters and buffers are on the CPU or
    all on one CUDA device, for which the group is one of "cpu:gloo,cuda:nccl" or "gloo".

    Args:
        module: the model; rank 0's parameters and buffers are copied to all. Its parameters must
            stay the same objects (no load_state_dict(assign=True)); its buffers may be replaced by
            others of their shape and type.
        inner: any torch.optim.Optimizer of its parameters. Its state stays with its rank.
        group: default: the default process group.
        inner_steps: steps of the inner optimizer between two meetings.
        learning_rate, momentum, nesterov: of the outer step; 1 with momentum 0 averages. Default:
            0.7 and 0.9 for deltas that arrive as they are, 1 and 0.5 where compression keeps
            residuals (docs/compeft.md), both Nesterov's.
        compression: a codec's spec for the deltas; residual_decay is 0.95 unless it says otherwise.
        granularity: "tensor", "group" (LoRA's A and B factors) or "global": what shares a scale.
        min_numel: parts of fewer entries travel uncompressed.
        overrides: {"pattern": "spec"} by the parts' names.
        check_replicas: compare a checksum of all weights after every outer step.

    Raises InvalidArgument on every rank where the ranks differ.
    """

    def __init__(self, module: torch.nn.Module, inner: torch.optim.Optimizer,
                 group: dist.ProcessGroup | None = None, *, inner_steps: int = 50,
                 learning_rate: float | None = None, momentum: float | None = None,
                 nesterov: bool | None = None,
                 compression: str = "ternary(density=0.05)", granularity: str = "tensor",
                 min_numel: int = 1024, overrides: Overrides = (), seed: int = 0,
                 check_replicas: bool = True) -> None:
        if not dist.is_initialized():
            raise Error("thinwire.OuterOptimizer needs a process group: call "
                        "torch.distributed.init_process_group() before it")
        self.inner = inner
        self._module = module
        self._group = dist.group.WORLD if group is None else group
        self._skipped = 0

        def options_of_this_rank():
            if not callable(getattr(inner, "step", None)):
                raise InvalidArgument("thinwire.OuterOptimizer takes a torch.optim.Optimizer as "
                                      f"`inner`, got {type(inner).__name__}")
            pairs = overrides.items() if hasattr(overrides, "items") else overrides
            options = _C.OuterOptimizerOptions(
                inner_steps, learning_rate, momentum, nesterov, compression, granularity, min_numel,
                [tuple(pair) for pair in pairs], seed, check_replicas)
            return options, list(module.named_parameters()), list(module.named_buffers())

        options, self._parameters, self._buffers = agreed(
            self._group, "the arguments of thinwire.OuterOptimizer", options_of_this_rank)
        self._outer = _C.OuterOptimizer(self._parameters, self._buffers, self._inner_step,
                                        self._group, options)

    def _inner_step(self):
        with torch.enable_grad():
            self.inner.step()

    def step(self) -> bool:
        """One step of the inner optimizer and, when due, an outer step; returns whether one was."""
        checked(self._group, "an inner step", self._follow_the_module)
        met = self._outer.step()
        if met:
            self._after_meeting()
        return met

    def outer_step(self) -> None:
        """Meets now. Collective."""
        checked(self._group, "an outer step", self._follow_the_module)
        self._outer.outer_step()
        self._after_meeting()

    def _follow_the_module(self):
        """The compiled part has the module's tensors of the time of the constructor. A parameter in
        place of one of them would be trained and not exchanged; programs do replace buffers."""
        now = dict(self._module.named_parameters())
        was = dict(self._parameters)
        for name in [*was, *now]:
            if now.get(name) is not was.get(name):
                change = ("replaced by another tensor (load_state_dict(assign=True), or an "
                          "assignment)" if name in now and name in was
                          else "added" if name in now else "removed")
                raise InvalidArgument(f"parameter '{name}' was {change} after the OuterOptimizer was "
                                      "made, so it would not be exchanged: make another "
                                      "OuterOptimizer")
        for name, ours, theirs in self._replaced_buffers():
            if (ours.shape, ours.dtype, ours.device) != (theirs.shape, theirs.dtype, theirs.device):
                raise InvalidArgument(
                    f"buffer '{name}' was {ours.dtype} {list(ours.shape)} on {ours.device} when the "
                    f"OuterOptimizer was made and is {theirs.dtype} {list(theirs.shape)} on "
                    f"{theirs.device} now: make another OuterOptimizer")
            ours.copy_(theirs)

    def _replaced_buffers(self):
        """(name, the tensor that the compiled part has, the module's own now) where they differ."""
        now = dict(self._module.named_buffers())
        return [(name, ours, now[name]) for name, ours in self._buffers
                if name in now and now[name] is not ours]

    def _after_meeting(self):
        for _, ours, theirs in self._replaced_buffers():
            theirs.copy_(ours)
        self._forget_what_is_not_finite()

    def _forget_what_is_not_finite(self):
        """Moments that hold a NaN would spoil every later step, of all ranks."""
        skipped = self.stats()["skipped_steps"]
        if skipped == self._skipped:
            return
        self._skipped = skipped
        for parameter, state in list(self.inner.state.items()):
            tensors = [value for value in state.values() if torch.is_tensor(value)]
            if not all(bool(value.isfinite().all()) for value in tensors):
                del self.inner.state[parameter]

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none=set_to_none)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Of the outer step."""
        self._outer.set_learning_rate(learning_rate)

    def stats(self) -> dict[str, Any]:
        """A dict: inner_steps, outer_steps, skipped_steps, dense_bytes, sent_bytes, ratio,
        wait_seconds, exchange_seconds."""
        return self._outer.stats()

    def plan(self) -> dict[str, str]:
        """The codec of every part: a dict from name to spec."""
        return self._outer.plan()

    def state_dict(self) -> dict[str, bytes]:
        """Everything but the parameters and the inner optimizer's state: {"rank 1": bytes}, for
        torch.save() and for torch.distributed.checkpoint, which also takes the OuterOptimizer
        itself."""
        return state_of_this_rank(self._outer.state())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with the same bits, given the parameters of then. Collective."""
        self._outer.load_state(agreed(self._group, "the saved state of the outer optimizer",
                                      lambda: tensors_of_this_rank(state)))
