#!/usr/bin/env python3
"""Checks thinwire on this machine's GPU and measures it; `make gpu-test` builds what it needs.

    gpu_test.py --driver                       # only looks for a driver and a GPU
    gpu_test.py --build FOLDER [--report FILE] [--elements N] [--repeats N]

Compares the averages of gradients in GPU memory, by every codec that has kernels, with those on the
CPU, on one rank and on two (over NCCL where there are two GPUs, else over Gloo, both on one); trains
the example on the GPU and on the CPU; and measures kernels, a step, what torch and NCCL take for as
much memory, and how much of an exchange the backward pass hides. Writes a report in Markdown. Exits
with 1 where something is not as it should be, with 77 and one sentence where there is no driver or no
GPU.
"""

import argparse
import ctypes
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from free_port import free_port

ROOT = pathlib.Path(__file__).resolve().parents[1]
NO_GPU = 77


def missing_gpu():
    """Why nothing can run here; empty where there is a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "this machine has no NVIDIA driver (libcuda.so.1)"
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return "NVIDIA's driver cannot be initialised"
    return "" if count.value > 0 else "this machine's driver sees no GPU"


def environment(**changes):
    return os.environ | {name: str(value) for name, value in changes.items()}


def run_job(commands, seconds=1200, **variables):
    """Output of rank 0 of one process a command; raises with the output of one that failed."""
    common = {"WORLD_SIZE": len(commands), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(),
              "THINWIRE_TIMEOUT": 300, **variables}
    processes = [subprocess.Popen(command, env=environment(RANK=rank, **common),
                                  text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                 for rank, command in enumerate(commands)]
    try:
        outputs = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, (process, (out, err)) in enumerate(zip(processes, outputs)):
        if process.returncode != 0:
            raise RuntimeError(f"rank {rank} ended with {process.returncode}:\n{out}{err}")
    return outputs[0][0]


def rank_job(build, work, world, options):
    command = [sys.executable, str(ROOT / "scripts" / "gpu_rank.py"), work,
               "--elements", str(options.elements), "--repeats", str(options.repeats)]
    out = run_job([command] * world, PYTHONPATH=build / "python")
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def train(build, device, backend):
    """The result line of the training example on a small made data set, two ranks."""
    os.environ.setdefault("THINWIRE_BINARY_DIR", str(build))
    sys.path[:0] = [str(ROOT / "tests" / name) for name in ("examples", "support")]
    import training  # pylint: disable=import-outside-toplevel,import-error
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        training.write_data_set(folder)
        command = [str(build / "bin" / "train_fashion_mnist"), f"--data={folder}", "--model=linear",
                   "--batch-size=32", "--train-samples=128", "--epochs=1", "--threads=1",
                   "--compression=quantize(bits=4)", f"--device={device}", f"--backend={backend}"]
        log = folder / "log.jsonl"
        run_job([[*command, f"--log={log}"], command])
        return json.loads(log.read_text().splitlines()[-1])


def check_rows(rows):
    return [(f"{row['spec']}, {row['dtype']}, {row['world']} rank(s) over {row['backend']}",
             "equal bits" if row["equal"] else f"DIFFERENT: {row['different']}", row["equal"])
            for row in rows]


def training_row(build, backend):
    on_gpu, on_cpu = train(build, "cuda", backend), train(build, "cpu", "gloo")
    same = on_gpu["parameters_crc32c"] == on_cpu["parameters_crc32c"]
    near = abs(on_gpu["test_accuracy"] - on_cpu["test_accuracy"]) < 0.1 and on_gpu["replicas_equal"]
    return (f"train_fashion_mnist, 2 ranks over {backend}",
            f"accuracy {on_gpu['test_accuracy']:.3f}, on the CPU {on_cpu['test_accuracy']:.3f}; "
            + ("equal parameters" if same else "parameters differ, as torch's operators may"), near)


def overlap_lines(rows):
    """Microseconds of a step, and how much of the exchange the backward pass hides."""
    lines = ["| step with an exchange by | elements | step | computing alone | exchange alone | hidden |",
             "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        shown = row["step"] - row["compute"]
        hidden = 1 - shown / row["exchange"] if row["exchange"] > 0 else None
        lines.append(f"| {row['overlap']} | {row['elements']} | {row['step']:.1f} | "
                     f"{row['compute']:.1f} | {row['exchange']:.1f} | "
                     + ("" if hidden is None else f"{100 * min(1, max(0, hidden)):.0f} %") + " |")
    return lines


def report(machine, checks, speeds, overlaps):
    lines = [f"Measured by `make gpu-test` on {machine['name']} ({machine['count']} of them; compute "
             f"capability {machine['capability']}, torch {machine['torch']}).", "",
             "| check | outcome |", "| --- | --- |",
             *(f"| {what} | {text} |" for what, text, _ in checks), "",
             "| work on float32 | elements | microseconds | bytes an element | GB/s | of a copy |",
             "| --- | --- | --- | --- | --- | --- |"]
    copy = next((row for row in speeds if row["what"] == "copy"), None)
    for row in speeds:
        rate = row["bytes"] * row["elements"] / row["microseconds"] / 1e3 if row["bytes"] else None
        full = copy["bytes"] * copy["elements"] / copy["microseconds"] / 1e3 if copy else None
        lines.append(f"| {row['what']} | {row['elements']} | {row['microseconds']:.1f} | "
                     + (f"{row['bytes']:.2f} | {rate:.1f} | {rate / full:.2f} |" if rate and full
                        else "| | |"))
    return "\n".join(lines + [""] + overlap_lines(overlaps)) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--driver", action="store_true")
    parser.add_argument("--build", type=pathlib.Path)
    parser.add_argument("--report", type=pathlib.Path)
    parser.add_argument("--elements", type=int, default=1 << 26)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    reason = missing_gpu()
    if reason:
        print(f"gpu-test: {reason}, so nothing was run", file=sys.stderr)
        return NO_GPU
    if options.driver:
        return 0
    if options.build is None:
        parser.error("--build: the folder of the build is needed")
    build = options.build.resolve()
    machine, = rank_job(build, "machine", 1, options)
    backend = "nccl" if machine["count"] > 1 else "gloo"
    checks = check_rows(rank_job(build, "check", 1, options) + rank_job(build, "check", 2, options))
    checks.append(training_row(build, backend))
    worlds = (1, 2) if machine["count"] > 1 else (1,)
    speeds, overlaps = ([row for world in worlds for row in rank_job(build, work, world, options)]
                        for work in ("speed", "overlap"))
    text = report(machine, checks, speeds, overlaps)
    print(text, end="")
    if options.report:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(text)
    wrong = [what for what, _, good in checks if not good]
    print(f"{len(checks)} checks, {len(wrong)} not as they should be" + "".join(
        f"\n  {what}" for what in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
