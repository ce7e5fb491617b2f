"""Whether the torch that is here is the one that the compiled part was built with."""

import torch

from thinwire.errors import Error


def minor(version):
    """"2.11" of "2.11.0+cu130"."""
    return ".".join(version.split("+")[0].split(".")[:2])


def check_version(built, found=None):
    """Raises Error unless `found` (default: the imported torch) has the minor version of `built`."""
    found = torch.__version__ if found is None else found
    if minor(built) != minor(found):
        raise Error(
            f"this thinwire was built for torch {minor(built)} and found {found}: torch's "
            f"distributed classes have no stable binary interface, so install torch {minor(built)} "
            f"or a thinwire for torch {minor(found)}")
