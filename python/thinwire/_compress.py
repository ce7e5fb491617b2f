"""Compression of the gradients of torch's DistributedDataParallel."""

import collections
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from thinwire import _load
from thinwire._agreement import agreed, checked
from thinwire._experts import experts_in, ignore_experts
from thinwire._states import state_of_this_rank, tensors_of_this_rank
from thinwire.errors import Error, InvalidArgument

_C = _load.module()

Overrides = Mapping[str, str] | Iterable[tuple[str, str]]
State = Mapping[str, Any]

# Steps after which `require_ratio` is looked at.
RATIO_STEPS = 50


def _options(spec, warmup_steps=0, min_numel=1024, compress_1d=False, overrides=(), seed=0,
             link_model="", strategy="auto", record_gradients="", record_from=0, record_steps=20):
    if hasattr(overrides, "items"):
        overrides = overrides.items()
    return _C.CompressionOptions(spec, warmup_steps, min_numel, compress_1d,
                                 [tuple(entry) for entry in overrides], seed, link_model, strategy,
                                 os.fspath(record_gradients), record_from, record_steps)


def _parameters_of(ddp):
    """(name, parameter) of what DDP's Reducer averages, in its order."""
    named, seen = [], set()
    for module_name, module in ddp.module.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            name = f"{module_name}.{parameter_name}"
            if (parameter.requires_grad and name not in ddp.parameters_to_ignore
                    and parameter not in seen):
                seen.add(parameter)
                named.append((name.lstrip("."), parameter))
    return named


def _sparse_parameters(model):
    """Names of the trained weights of a model, or of a DDP's, whose gradients are sparse."""
    module, ignored = model, getattr(model, "_ddp_params_and_buffers_to_ignore", ())
    if isinstance(model, DistributedDataParallel):
        module, ignored = model.module, model.parameters_to_ignore
    return [f"{name}.weight".lstrip(".") for name, part in module.named_modules()
            if isinstance(part, (torch.nn.Embedding, torch.nn.EmbeddingBag)) and part.sparse
            and part.weight.requires_grad and f"{name}.weight" not in ignored]


def _check_not_parallel_inside(model):
    for name, part in model.named_modules():
        if part is not model and isinstance(part, DistributedDataParallel):
            raise InvalidArgument(f"this {type(model).__name__} holds a DistributedDataParallel, "
                                  f"'{name}': compress that one, and before torch.compile()")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            raise InvalidArgument(f"parameter '{name}' is a DTensor: what fully_shard() has sharded is "
                                  "compressed by thinwire.fsdp.compress()")


def _check_model(model):
    """Raises for what this rank cannot compress, whatever the others have."""
    if not isinstance(model, torch.nn.Module):
        raise InvalidArgument("thinwire.compress() takes a module or a DistributedDataParallel, "
                              f"got {type(model).__name__}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InvalidArgument(f"this {type(model).__name__} has no parameter that requires a "
                              "gradient, so there is nothing to average")
    for name in _sparse_parameters(model):
        raise InvalidArgument(f"parameter '{name}' has sparse gradients, which are not averaged; "
                              "make its module with sparse=False")
    _check_not_parallel_inside(model)
    if not isinstance(model, DistributedDataParallel):
        return
    averaged = [name for name in experts_in(model.module) if name not in model.parameters_to_ignore]
    if averaged:
        raise InvalidArgument(f"DistributedDataParallel would average '{averaged[0]}', of an expert "
                              "that lies on one rank alone: call thinwire.ignore_experts(model) "
                              "before it wraps the model")
    if hasattr(model, "_thinwire_compression") and not model._thinwire_compression.is_copied:
        raise InvalidArgument("thinwire.compress() was called for this model before, as "
                              f"'{model._thinwire_compression.spec}': a model has one compression, "
                              "so keep the handle of the first call")
    if model._comm_hooks:
        hook = getattr(model._comm_hooks[0][0], "__name__", "a hook")
        raise InvalidArgument(f"this model has the communication hook {hook}: "
                              "DistributedDataParallel takes one, so leave out "
                              "register_comm_hook()")


def plan(model: torch.nn.Module, spec: str, **options: Any) -> dict[str, str]:
    """The codec of every parameter that compress() would choose: a dict from name to spec.

    `options` are those of compress(). Needs no process group. For lgreco(...) the plan that
    training starts with.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters()
             if parameter.requires_grad]
    return _C.make_plan(named, _options(spec, **options))


class Compression:
    """The handle of compress(): what is compressed, what it saved, and what must be saved.

    Attributes:
        module: the DistributedDataParallel whose gradients it compresses. Calling the handle calls
            it.
    """

    module: DistributedDataParallel
    spec: str

    def __init__(self, ddp, spec, require_ratio, exchange, parameters):
        self.module = ddp
        self.spec = spec
        self._require_ratio = require_ratio
        self._exchange = exchange
        self._expected = [(name, parameter, parameter.device, parameter.dtype, parameter.shape)
                          for name, parameter in parameters]
        self._checks = ddp.register_forward_pre_hook(self._check)

    # A DistributedDataParallel is copied, by copy or pickle, with a Reducer of its own, which has no
    # hook. The copy of the handle in it remembers that.
    def __getstate__(self):
        return {"spec": self.spec}

    @property
    def is_copied(self) -> bool:
        return "_exchange" not in self.__dict__

    def __repr__(self) -> str:
        if self.is_copied:
            return f"thinwire.Compression({self.spec!r}, of another model)"

        return f"thinwire.Compression({self.spec!r}, {self._exchange.stats()['steps']} steps)"

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        return self.module(*inputs, **keywords)

    def stats(self) -> dict[str, Any]:
        """A dict of what this rank sent: "steps", "dense_bytes" (what an uncompressed ring
        all-reduce would have sent), "sent_bytes", both in all; "ratio", after the warm-up steps;
        "spec"; "warmup_steps", "dense_bytes_per_step" and "sent_bytes_per_step"."""
        return {**self._exchange.stats(), "spec": self.spec}

    def plan(self) -> dict[str, str]:
        """The codec of every parameter now: a dict from name to spec, "none" for uncompressed."""
        return self._exchange.plan()

    def state_dict(self) -> dict[str, bytes]:
        """What compression carries to the next step on this rank (residuals, warm starts, plan):
        {"rank 1": bytes}, for torch.save() and for torch.distributed.checkpoint, which also takes
        the handle itself. Between steps only."""
        return state_of_this_rank(self._exchange.state())

    def load_state_dict(self, state: State) -> None:
        """Goes on from state_dict(). Collective; raises InvalidArgument on every rank where a
        rank's state is not of this model, compression and number of ranks."""
        self._exchange.load_state(agreed(self.module.process_group, "the saved state",
                                         lambda: tensors_of_this_rank(state)))

    def _check(self, _module, _inputs):
        if not torch.is_grad_enabled():
            return
        if self.is_copied:
            raise Error("this DistributedDataParallel is a copy of one that is compressed with "
                        f"'{self.spec}', and is not compressed itself: call thinwire.compress() for it")
        self._exchange.check_device()
        checked(self.module.process_group, "a forward pass", self._check_parameters)
        if self._require_ratio is not None and self.stats()["steps"] >= RATIO_STEPS:
            self._check_ratio()

    def _check_parameters(self):
        now = _parameters_of(self.module)
        if len(now) != len(self._expected) or any(
                parameter is not was for (_, parameter), (_, was, *_) in zip(now, self._expected)):
            self._raise_other_parameters(now)
        for name, parameter, device, dtype, shape in self._expected:
            if parameter.device != device or parameter.dtype != dtype:
                raise Error(
                    f"parameter '{name}' was {dtype} on {device} when thinwire.compress() was "
                    f"called and is {parameter.dtype} on {parameter.device} now: move the model "
                    "before DistributedDataParallel wraps it")
            if parameter.shape != shape:
                raise Error(
                    f"parameter '{name}' had the shape {list(shape)} when thinwire.compress() was "
                    f"called and has {list(parameter.shape)} now: change the model before "
                    "DistributedDataParallel wraps it")

    def _raise_other_parameters(self, now):
        names = {name for name, *_ in self._expected}
        before = {parameter for _, parameter, *_ in self._expected}
        new = [name for name, parameter in now if parameter not in before]
        if not new:
            change = "removed or frozen"
        elif names.issuperset(new):
            change = ("replaced by other tensors (load_state_dict(assign=True), or an assignment): "
                      f"{', '.join(new)}")
        else:
            change = f"added or unfrozen: {', '.join(new)}"
        raise Error(f"parameters were {change}, after DistributedDataParallel had wrapped the model, "
                    "so their gradients would not be averaged: wrap and compress the model anew")

    def _check_ratio(self):
        """Once. All ranks raise together, since what they sent may differ."""
        wanted, self._require_ratio = self._require_ratio, None
        ratio = torch.tensor([self.stats()["ratio"]], dtype=torch.float64)
        dist.all_reduce(ratio, dist.ReduceOp.MIN, group=self.module.process_group)
        if ratio.item() < wanted:
            raise Error(
                f"'{self.spec}' saves a factor of {ratio.item():.2f} after {RATIO_STEPS} steps, "
                f"require_ratio asked for {wanted:g}: layers of one dimension or fewer than "
                "min_numel elements are not compressed, see plan()")


def compress(model: torch.nn.Module, spec: str = "", *, warmup_steps: int = 0,
             min_numel: int = 1024, compress_1d: bool = False, overrides: Overrides = (),
             seed: int = 0, link_model: str = "", strategy: str = "auto",
             require_ratio: float | None = None, record_gradients: str | os.PathLike = "",
             record_from: int = 0, record_steps: int = 20) -> Compression:
    """Compresses the gradients of a model that trains data-parallel.

    Everything of DistributedDataParallel stays as it is: no_sync(), gradient accumulation,
    static_graph, find_unused_parameters, several models. Call it on every rank, with the same
    arguments, after wrapping and before the first backward pass.

    Args:
        model: a DistributedDataParallel, or a module, which is then wrapped with
            DistributedDataParallel's defaults; the handle's `module` is the wrapped one. For
            parameters in GPU memory the process group is one of "cpu:gloo,cuda:nccl", or of "gloo";
            docs/gpu.md lists the codecs that have kernels.
        spec: a codec, "quantize(bits=4)", "topk(density=0.01)", "powersgd(rank=4)", or the policy
            "lgreco(...)"; docs/algorithms.md lists them. Default: THINWIRE_COMPRESSION, else none.
        warmup_steps: the first so many steps are sent uncompressed.
        min_numel, compress_1d: layers of fewer elements, or of one dimension, stay uncompressed.
        overrides: exceptions by name, {"pattern": "spec"}; '*' matches any text.
        seed: source of all randomness of the codecs.
        link_model: file that `thinwire link` wrote.
        strategy: how compressed layers are averaged, docs/algorithms.md.
        require_ratio: raise Error (a RuntimeError) on all ranks where after 50 steps the bytes
            without compression over those sent are less than this.
        record_gradients: file to which each rank writes the gradients that it brings in
            record_steps steps from record_from on, FILE.RANK, for `thinwire replay FILE`.

    Returns:
        Compression, with stats(), plan(), state_dict() and load_state_dict().

    Raises:
        InvalidArgument: on every rank, for a spec that does not exist, a model that has a hook
            already, sparse gradients, or ranks that differ.
        Error: there is no process group.
    """
    if not dist.is_initialized():
        raise Error("thinwire.compress() needs a process group: call "
                    "torch.distributed.init_process_group() before it")
    wrapped = isinstance(model, DistributedDataParallel)

    def options_of_this_rank():
        _check_model(model)
        if require_ratio is not None and not (isinstance(require_ratio, (int, float))
                                              and require_ratio > 0):
            raise InvalidArgument(f"require_ratio must be a positive number, got {require_ratio!r}")
        return _options(spec, warmup_steps, min_numel, compress_1d, overrides, seed, link_model,
                        strategy, record_gradients, record_from, record_steps)

    options = agreed(model.process_group if wrapped else dist.group.WORLD,
                     "the arguments of thinwire.compress()", options_of_this_rank,
                     lambda _: f"{'DistributedDataParallel' if wrapped else 'a module to wrap'}\n"
                               f"require_ratio {require_ratio and format(require_ratio, 'g')}")
    if not wrapped:
        ignore_experts(model)
    elif hasattr(model, "_thinwire_compression"):  # of the model that this is a copy of
        model._forward_pre_hooks = collections.OrderedDict(
            (key, hook) for key, hook in model._forward_pre_hooks.items()
            if getattr(hook, "__self__", None) is not model._thinwire_compression)
    ddp = model if wrapped else DistributedDataParallel(model)
    parameters = _parameters_of(ddp)
    exchange = _C.compress(ddp.reducer, ddp.process_group, parameters, options,
                           ddp.find_unused_parameters or ddp.static_graph)
    handle = Compression(ddp, spec, require_ratio, exchange, parameters)
    ddp._thinwire_compression = handle
    return handle
