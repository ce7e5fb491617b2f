"""A Mixture-of-Experts layer whose experts are spread over the ranks."""

from collections.abc import Mapping

import torch
import torch.distributed as dist

from thinwire import _load
from thinwire._agreement import agreed, checked
from thinwire._experts import mark_expert
from thinwire._states import tensors_by_name
from thinwire.errors import Error, InvalidArgument

_C = _load.module()


class MoELayer(torch.nn.Module):
    """Router, experts of this rank and the exchange of rows, all in C++ (docs/lsh-moe.md).

    Every rank brings its own tokens and holds experts / world of the experts. Router and shared
    expert are replicated: their gradients must be averaged over the ranks, those of the experts
    must not: call `thinwire.ignore_experts(model)` before DistributedDataParallel wraps a model
    with such layers. An expert's parameters have the numbers of the rank's first and last expert in
    their names, `experts.2_3.w1` [experts / world, dim, hidden], so that no checkpoint takes those
    of one rank for those of another; full_state() is for another number of ranks.

    Args:
        dim, hidden: width of the tokens and of the experts' hidden layer.
        experts: number over all ranks, a multiple of the number of ranks.
        top_k: experts of a token.
        group: default: the default process group, or none where there is none.
        gate: topk, noisy_topk, switch, gshard, expert_choice or sigmoid_bias.
        activation: relu, gelu, silu or swiglu.
        rows: codec of the rows, "spectral(bits=3); quantize(bits=8, rounding=stochastic)" for
            forward and backward; "" sends them as they are.
        dedup: "off", "duplicates" or "lsh(...)": merging of similar rows before they are sent.
        capacity_factor: rows per expert and rank, 0 for as many as come.
        balance_factor, z_factor: of the auxiliary losses.
        shared_hidden: hidden size of one more expert that sees every token; 0 for none.
        expert_gradient: "mean" over the ranks or "sum".
        layer: number of the layer in the model.

    forward(tokens [..., dim], padding [...] bool or None) returns (output of the tokens' shape,
    auxiliary loss, a scalar). Collective, and so are its backward pass and the constructor.
    """

    def __init__(self, dim: int, hidden: int, experts: int, top_k: int = 2,
                 group: dist.ProcessGroup | None = None, *, gate: str = "topk",
                 activation: str = "gelu", bias: bool = True, capacity_factor: float = 0.0,
                 rows: str = "", dedup: str = "off", balance_factor: float = 0.01,
                 z_factor: float = 0.0, shared_hidden: int = 0, expert_gradient: str = "mean",
                 layer: int = 0, seed: int = 0) -> None:
        super().__init__()
        if group is None and dist.is_initialized():
            group = dist.group.WORLD
        self._group = group
        options = agreed(group, "the arguments of thinwire.MoELayer", lambda: _C.MoEOptions(
            dim, hidden, experts, top_k, gate, activation, bias, capacity_factor, rows, dedup,
            balance_factor, z_factor, shared_hidden, expert_gradient, layer, seed))
        self._layer = _C.MoELayer(group, options)
        here = experts // (1 if group is None else dist.get_world_size(group))
        first = here * (0 if group is None else dist.get_rank(group))
        self._own = []  # (name, the dict of a submodule that holds it, key there, tensor)
        for name, tensor in self._layer.named_parameters():
            # The very tensor of the C++ layer, which a new Parameter would be a copy of.
            tensor._is_param = True
            if name.startswith("experts."):
                # Other ranks have others: under one name a checkpoint would keep those of one rank.
                name = name.replace("experts.", f"experts.{first}_{first + here - 1}.", 1)
                mark_expert(tensor)
            place, leaf = self._place(name), name.rpartition(".")[2]
            place.register_parameter(leaf, tensor)
            self._own.append((name, place._parameters, leaf, tensor))
        for name, tensor in self._layer.named_buffers():
            place, leaf = self._place(name), name.rpartition(".")[2]
            place.register_buffer(leaf, tensor)
            self._own.append((name, place._buffers, leaf, tensor))

    def _place(self, name):
        """The submodule of a dotted name."""
        place = self
        for part in name.split(".")[:-1]:
            if part not in dict(place.named_children()):
                place.add_module(part, torch.nn.Module())
            place = getattr(place, part)
        return place

    def _apply(self, fn, recurse=True):
        before = [(p, p.device, p.dtype) for p in self.parameters()]
        result = super()._apply(fn, recurse)
        for now, (was, device, dtype) in zip(self.parameters(), before):
            if now is not was or now.device != device or now.dtype != dtype:
                raise Error("a thinwire.MoELayer keeps its float32 parameters on the CPU: they are "
                            "the C++ layer's own")
        return result

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *arguments):
        if local_metadata.get("assign_to_params_buffers", False):
            raise Error(f"the tensors of a thinwire.MoELayer ('{prefix.rstrip('.')}') are the C++ "
                        "layer's own and cannot be replaced: load without assign=True")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *arguments)

    def _check_own(self):
        for name, place, leaf, tensor in self._own:
            if place.get(leaf) is not tensor:
                raise Error(f"'{name}' of a thinwire.MoELayer was replaced by another tensor, which "
                            "the C++ layer does not see: copy_() values into it")

    def _check_call(self, tokens, padding):
        for what, tensor in (("tokens", tokens), ("padding", padding)):
            if not torch.is_tensor(tensor) and not (what == "padding" and tensor is None):
                raise InvalidArgument(f"{what} of a thinwire.MoELayer must be a tensor, got "
                                      f"{type(tensor).__name__}")
        self._check_own()

    def forward(self, tokens: torch.Tensor, padding: torch.Tensor | None = None
                ) -> tuple[torch.Tensor, torch.Tensor]:
        checked(self._group, "a mixture of experts", lambda: self._check_call(tokens, padding))
        output, loss = self._layer.forward(tokens, padding)
        return output, tokens.new_zeros(()) if loss is None else loss

    def train(self, mode=True):
        if "_layer" in self.__dict__:
            self._layer.train(mode)
        return super().train(mode)

    def expert_parameters(self) -> list[torch.nn.Parameter]:
        """The parameters of this rank's experts, which must not be averaged over the ranks."""
        mine = {tensor.data_ptr() for tensor in self._layer.expert_parameters()}
        return [parameter for parameter in self.parameters() if parameter.data_ptr() in mine]

    def update_expert_bias(self) -> None:
        """For the sigmoid_bias gate, once per optimizer step. Collective."""
        self._layer.update_expert_bias()

    def full_state(self) -> dict[str, torch.Tensor]:
        """A dict of all ranks' tensors, experts by their global number. Collective."""
        return self._layer.full_state()

    def load_full_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes this rank's part of full_state(), whatever the number of ranks that made it.

        Collective."""
        self._layer.load_state(agreed(self._group, "the saved state of a mixture of experts",
                                      lambda: tensors_by_name(state)))
