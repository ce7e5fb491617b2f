"""What is wrong on one rank becomes known to all, before anyone waits for that rank."""

from thinwire import _load
from thinwire.errors import Error, InvalidArgument

import torch

_C = _load.module()


def agreed(group, what, make):
    """What make() returns. Collective: where it raises on one rank, every rank raises
    InvalidArgument "rank 2: <its text>". `group` None: a single rank."""
    if group is None:
        return make()
    made, cause = None, None
    try:
        made = make()
    except Exception as error:  # noqa: BLE001  the user's objects may raise anything
        cause = error
    try:
        _C.agree(group, what, None if cause is None else str(cause) or type(cause).__name__)
    except InvalidArgument as refused:
        raise refused from cause
    return made


def checked(group, operation, check):
    """check(); what it raises as Error is raised by the ranks, too, that wait for this one in a
    collective of thinwire's. For what comes between agreements: it costs nothing where all is well.
    """
    try:
        check()
        return
    except Error as error:
        if group is None:
            raise
        mistake = str(error)
    _C.refuse(group, operation, mistake)


def tensors_of(state):
    """A saved state as the compiled part takes it: a dict of tensors by name."""
    if not hasattr(state, "items"):
        raise InvalidArgument(f"a state is a dict of tensors, got {type(state).__name__}")
    for name, tensor in state.items():
        if not isinstance(name, str) or not torch.is_tensor(tensor):
            raise InvalidArgument("a state is a dict of tensors by name, got "
                                  f"{type(tensor).__name__} under {name!r}")
    return dict(state)
