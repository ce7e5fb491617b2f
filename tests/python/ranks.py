"""Ranks as forked processes, for tests of the Python package."""

import datetime
import multiprocessing
import os
import pathlib
import pickle
import sys
import tempfile
import traceback

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TORCH_FR_BUFFER_SIZE"] = "0"
BUILD = pathlib.Path(os.environ["THINWIRE_BINARY_DIR"])
if "THINWIRE_PYTHON_PACKAGE" not in os.environ:  # else that of the environment
    sys.path.insert(0, str(BUILD / "python"))

# What nearly every rank uses is loaded here, once, and not by every process that is forked.
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch._dynamo  # noqa: E402, F401  the optimizers need it

import thinwire  # noqa: E402

thinwire.compress, thinwire.fsdp, thinwire.MoELayer  # noqa: B018  the compiled part


def _rank(body, rank, world, folder, backend, options, arguments, results):
    torch.set_num_threads(1)
    try:
        if backend is not None:
            dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank,
                                    world_size=world, pg_options=options,
                                    timeout=datetime.timedelta(seconds=60))
        # Bytes: torch would share tensors' memory with a process that has ended by then.
        results.put((rank, pickle.dumps(body(rank, world, *arguments)), None))
        if backend is not None:
            dist.barrier()
            dist.destroy_process_group()
    except BaseException as error:  # noqa: BLE001  it becomes the test's
        results.put((rank, None, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))


def run_ranks(world, body, *arguments, backend="gloo", options=None, seconds=100):
    """What body(rank, world, *arguments) returns on every rank, in order; raises the first error.

    The ranks are processes forked from this one, so `body` may be any function. `backend`: of the
    process group that it finds; None: it makes its own.
    """
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [context.Process(target=_rank, daemon=True,
                                     args=(body, rank, world, folder, backend, options, arguments,
                                           results))
                     for rank in range(world)]
        for process in processes:
            process.start()
        try:
            answers = sorted((results.get(timeout=seconds) for _ in processes),
                             key=lambda answer: answer[0])
            for process in processes:
                process.join(seconds)
        finally:
            for process in processes:
                process.terminate()
    for rank, _, error in answers:
        if error:
            raise AssertionError(f"rank {rank}: {error}")
    return [pickle.loads(answer[1]) for answer in answers]


def error_of(action):
    """(type's name, text) of what `action` raises."""
    try:
        action()
    except Exception as error:  # noqa: BLE001
        return type(error).__name__, str(error)
    return "", ""
