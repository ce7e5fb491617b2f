"""Makes the backends known to torch.distributed, without importing anything compiled.

torch calls register() at the end of `import torch` (entry point "torch.backends"), and an exception
here would break that import for every program of the environment. A package of its own, for what
`import thinwire` does is not for programs that import torch alone.
"""


def _create_gloo(options, group_options):
    from thinwire import _groups  # imports the compiled part, hence not before a group is made

    return _groups.create("gloo", options, group_options)


def _create_mpi(options, group_options):
    from thinwire import _groups

    return _groups.create("mpi", options, group_options)


BACKENDS = {"thinwire": _create_gloo, "thinwire_mpi": _create_mpi}


def register():
    """Registers "thinwire" (over Gloo) and "thinwire_mpi" with torch.distributed, once."""
    try:
        import torch.distributed as dist

        if not dist.is_available():
            return
        for name, create in BACKENDS.items():
            if name.upper() not in dist.Backend._plugins:
                dist.Backend.register_backend(name, create, extended_api=True, devices=["cpu"])
    except Exception as error:  # noqa: BLE001
        import warnings

        warnings.warn(f"thinwire's backends are not available: {error}", stacklevel=2)
