"""Parameters that belong to one rank alone, in a model whose other ones are averaged."""

import torch
from torch.nn.parallel import DistributedDataParallel


def mark_expert(parameter):
    parameter._thinwire_expert = True


def experts_in(model):
    """Names of the experts' parameters of a model's MoELayers."""
    return [name for name, parameter in model.named_parameters()
            if getattr(parameter, "_thinwire_expert", False)]


def ignore_experts(model: torch.nn.Module) -> None:
    """Makes DistributedDataParallel leave the experts of MoELayers to the ranks that hold them.

    Call it before DistributedDataParallel wraps `model`, which would otherwise copy rank 0's experts
    to all ranks and average their gradients. thinwire.compress() of a model that is not wrapped yet
    does it. What the model ignores already stays ignored.
    """
    experts = experts_in(model)
    if not experts:
        return
    ignored = {*getattr(model, "_ddp_params_and_buffers_to_ignore", ()), *experts}
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
