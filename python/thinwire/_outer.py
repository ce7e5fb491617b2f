"""Training that meets seldom: local SGD and DiLoCo."""

import torch
import torch.distributed as dist

from thinwire import _load
from thinwire.errors import Error

_C = _load.module()


class OuterOptimizer:
    """An inner optimizer on every rank, and an outer step every `inner_steps` of them.

    At an outer step the ranks exchange how far each has moved its weights, compressed; all go on
    from the same weights (docs/compeft.md). Not thread-safe; parameters are CPU tensors.

    Args:
        module: the model; rank 0's parameters and buffers are copied to all.
        inner: any torch.optim.Optimizer of its parameters. Its state stays with its rank.
        group: default: the default process group.
        inner_steps: steps of the inner optimizer between two meetings.
        learning_rate, momentum, nesterov: of the outer step; 1 with momentum 0 averages.
        compression: a codec's spec for the deltas.
        granularity: "tensor", "group" (LoRA's A and B factors) or "global": what shares a scale.
        min_numel: parts of fewer entries travel uncompressed.
        overrides: {"pattern": "spec"} by the parts' names.
        check_replicas: compare a checksum of all weights after every outer step.

    Raises InvalidArgument on every rank where the ranks differ.
    """

    def __init__(self, module, inner, group=None, *, inner_steps=50, learning_rate=0.7,
                 momentum=0.9, nesterov=True, compression="ternary(density=0.05)",
                 granularity="tensor", min_numel=1024, overrides=(), seed=0, check_replicas=True):
        if not dist.is_initialized():
            raise Error("thinwire.OuterOptimizer needs a process group: call "
                        "torch.distributed.init_process_group() before it")
        if hasattr(overrides, "items"):
            overrides = overrides.items()
        self.inner = inner
        self._skipped = 0
        self._outer = _C.OuterOptimizer(
            list(module.named_parameters()), list(module.named_buffers()), self._inner_step,
            dist.group.WORLD if group is None else group, inner_steps, learning_rate, momentum,
            nesterov, compression, granularity, min_numel, [tuple(o) for o in overrides], seed,
            check_replicas)

    def _inner_step(self):
        with torch.enable_grad():
            self.inner.step()

    def step(self):
        """One step of the inner optimizer and, when due, an outer step; returns whether one was."""
        met = self._outer.step()
        if met:
            self._forget_what_is_not_finite()
        return met

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

    def outer_step(self):
        """Meets now. Collective."""
        self._outer.outer_step()

    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none=set_to_none)

    def set_learning_rate(self, learning_rate):
        """Of the outer step."""
        self._outer.set_learning_rate(learning_rate)

    def stats(self):
        """A dict: inner_steps, outer_steps, skipped_steps, dense_bytes, sent_bytes, ratio,
        wait_seconds, exchange_seconds."""
        return self._outer.stats()

    def plan(self):
        """The codec of every part: a dict from name to spec."""
        return self._outer.plan()

    def state_dict(self):
        """Everything but the parameters and the inner optimizer's state: a dict of CPU tensors.
        Differs from rank to rank."""
        return self._outer.state()

    def load_state_dict(self, state):
        """Goes on with the same bits, given the parameters of then."""
        self._outer.load_state(dict(state))
