"""What is wrong on one rank becomes known to all, before anyone waits for that rank."""

import torch.distributed as dist

from thinwire import _load
from thinwire.errors import Error, InvalidArgument

_C = _load.module()


def _give_default_backend(group):
    """torch leaves a group that is made for devices, "cpu:gloo,cuda:nccl", without a default backend
    where a plug-in is registered, as ours is."""
    if group.name() != "undefined" or not group._device_types:
        return
    kind = dist.ProcessGroup.BackendType
    name = group._get_backend(group._device_types[0]).name()
    group._set_default_backend({"gloo": kind.GLOO, "nccl": kind.NCCL}.get(name, kind.CUSTOM))


def agreed(group, what, make, text=None):
    """What make() returns. Collective: where it raises on one rank, every rank raises
    InvalidArgument "rank 2: <its text>", and so where text(made), if given, differs. `group` None:
    a single rank."""
    if group is None:
        return make()
    _give_default_backend(group)
    made, cause, compared = None, None, ""
    try:
        made = make()
        compared = "" if text is None else text(made)
    except Exception as error:  # noqa: BLE001  the user's objects may raise anything
        cause = error
    try:
        _C.agree(group, what, compared, None if cause is None else str(cause) or type(cause).__name__)
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
