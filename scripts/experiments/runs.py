"""Training runs of the experiments: started, kept and read again, so that a stopped experiment goes
on where it was."""

import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
from free_port import free_port  # noqa: E402, pylint: disable=wrong-import-position

ROOT = pathlib.Path(__file__).resolve().parents[2]
RANKS = 4
TIMEOUT_SECONDS = 1800


class RunError(Exception):
    """A run failed; the text holds what its ranks said."""


def slug(options):
    """A file name that people can read and that is different for different options."""
    text = json.dumps(options, sort_keys=True)
    words = re.sub(r"[^a-z0-9.]+", "-", " ".join(
        str(options[key]) for key in ("model", "compression", "seed") if key in options).lower())
    return f"{words[:80].strip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def read_log(path):
    """The lines of a finished run, or None."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError):
        return None
    return lines if lines and lines[-1].get("event") == "result" else None


def kept(log, run):
    """The lines of a finished run's log; where there is none, `run` is to write it to the file that
    it is given."""
    lines = read_log(log)
    if lines is None:
        partial = f"{log}.partial"
        run(partial)
        os.replace(partial, log)
        lines = read_log(log)
    return lines


def arguments_of(options):
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]


def rank_environment(rank, port):
    inherited = {key: value for key, value in os.environ.items()
                 if not key.startswith(("OMPI_", "PMIX_", "SLURM_", "TORCHELASTIC_"))}
    return {**inherited, "RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "THINWIRE_LOG_LEVEL": "warn"}


def start_and_wait(commands_and_environments, what):
    processes = [subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                 for command, environment in commands_and_environments]
    deadline = time.monotonic() + TIMEOUT_SECONDS
    try:
        outputs = [process.communicate(timeout=max(1, deadline - time.monotonic()))[0]
                   for process in processes]
    except subprocess.TimeoutExpired as error:
        raise RunError(f"{what}: not finished after {TIMEOUT_SECONDS} s") from error
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
    if any(process.returncode for process in processes):
        raise RunError(f"{what}: " + "\n".join(text.strip()[-2000:] for text in outputs))


def start_ranks(command, what):
    """Runs the command as RANKS ranks of this machine, to the end."""
    port = free_port()
    start_and_wait([(command, rank_environment(rank, port)) for rank in range(RANKS)], what)


def train(build, folder, options):
    """Trains on RANKS ranks of this machine over Gloo, or reads the log of an earlier time.
    Returns the lines of its log; L-GreCo's last plan lies beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    name = slug(options)
    log, plan = folder / f"{name}.jsonl", folder / f"{name}.plan.json"

    def run(partial):
        began = time.monotonic()
        start_ranks([str(build / "bin" / "train_fashion_mnist"), "--backend=gloo", "--threads=1",
                     f"--log={partial}", f"--plan={plan}", *arguments_of(options)], name)
        print(f"  {name}: {time.monotonic() - began:.0f} s", flush=True)

    return kept(log, run)


def summary(lines):
    """What the tables need of a run; late_bytes are those of a step after the first test."""
    result = lines[-1]
    test = next(line for line in reversed(lines) if line["event"] == "test")
    first = next(line for line in lines if line["event"] in ("test", "epoch"))
    bytes_key = "compressed_wire_bytes_per_step"
    # The logs have means since the start.
    late_bytes = test[bytes_key]
    if first["step"] < test["step"]:
        late_bytes = ((test[bytes_key] * test["step"] - first[bytes_key] * first["step"]) /
                      (test["step"] - first["step"]))
    return {"accuracy": 100 * result["test_accuracy"], "loss": test["test_loss"],
            "train_loss": test["train_loss"],
            "bytes": test[bytes_key], "late_bytes": late_bytes,
            "dense_bytes": test["compressed_dense_bytes_per_step"],
            "all_bytes": result["wire_bytes_per_step"],
            "all_dense_bytes": result["dense_bytes_per_step"],
            "replicas_equal": result["replicas_equal"], "plans": test["plans"],
            "overhead": test["adaptation_share"], "seconds": result["train_seconds"]}


def mean_and_error(values):
    """Mean and its standard error (None for fewer than two values)."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, (variance / len(values)) ** 0.5


def print_table(rows):
    """Rows of cells, the first row the header; the first column to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) if column == 0 else cell.rjust(width)
                 for column, (cell, width) in enumerate(zip(row, widths))]
        print("  ".join(cells).rstrip())
