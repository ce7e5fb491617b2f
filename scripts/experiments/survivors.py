#!/usr/bin/env python3
"""Kills ranks of a training and starts new ones, on thinwire and on torchft, and compares.

    survivors.py [--build build/release] [--torchft PYTHON] [--repeats 3]

Four ranks train a small model for 600 steps of 20 ms; one is killed at step 40, another, rank 0, at
step 450; a new one is started half a second after the first death. PYTHON is a python that has torchft
(`pip install torchft`), whose torchft_lighthouse lies beside it. Prints a table of the seconds from
each kill to the next step of a survivor and from the start of the new rank to its first step, and the
loss at the end beside that of a run that nobody disturbs.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
from die_with_parent import die_with_parent  # noqa: E402, pylint: disable=wrong-import-position
from free_port import free_port  # noqa: E402, pylint: disable=wrong-import-position

SOURCE = pathlib.Path(__file__).resolve().parents[2]
STEPS, FIRST_KILL, SECOND_KILL, NEW_AFTER = 600, 40, 450, 0.5


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


class Thinwire:
    name = "thinwire"

    def __init__(self, args, folder):
        self.bin, self.folder = args.build.resolve() / "bin", folder
        self.service = subprocess.Popen([self.bin / "thinwire", "store"], text=True,
                                        stdout=subprocess.PIPE, preexec_fn=die_with_parent)
        self.store = self.service.stdout.readline().strip().split("=")[1]

    def start(self, number, events, begins):
        variables = {"THINWIRE_STORE": self.store, "THINWIRE_TIMEOUT": "30"}
        if begins:
            variables |= {"RANK": str(number), "WORLD_SIZE": "4"}
        return start([self.bin / "tests" / "elastic_rank", "ddp", STEPS, *events],
                     self.folder / f"{number}", variables)


class Torchft:
    name = "torchft"

    def __init__(self, args, folder):
        self.python, self.folder = args.torchft, folder
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        self.service = subprocess.Popen(
            [self.python.parent / "torchft_lighthouse", "--min_replicas", "2", "--bind",
             f"127.0.0.1:{port}", "--join_timeout_ms", "1000", "--heartbeat_timeout_ms", "3000"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=die_with_parent)

    def start(self, number, events, begins):
        del begins
        variables = {"TORCHFT_LIGHTHOUSE": self.address, "MASTER_ADDR": "127.0.0.1",
                     "MASTER_PORT": str(free_port()), "RANK": "0", "WORLD_SIZE": "1"}
        return start([self.python, __file__, "--peer-rank", number, *events],
                     self.folder / f"{number}", variables)


def start(command, path, variables):
    with open(path.with_suffix(".out"), "w") as out, open(path.with_suffix(".err"), "w") as err:
        return subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL,
                                stdout=out, stderr=err, preexec_fn=die_with_parent,
                                env=os.environ | {"OMP_NUM_THREADS": "1"} | variables)


def peer_rank(number, events):
    """One replica of the same training on torchft."""
    from datetime import timedelta

    import torch
    import torchft

    events = dict(event.split(":") for event in events)
    torch.manual_seed(os.getpid())
    net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    inner = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)

    def load(state):
        net.load_state_dict(state["net"])
        inner.load_state_dict(state["optimizer"])

    # A replica's own, which torchrun would serve.
    store = torch.distributed.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), is_master=True,
                                       wait_for_workers=False)
    manager = torchft.Manager(
        pg=torchft.ProcessGroupGloo(timeout=timedelta(seconds=20)), min_replica_size=2,
        load_state_dict=load,
        state_dict=lambda: {"net": net.state_dict(), "optimizer": inner.state_dict()},
        replica_id=f"replica{number}_", timeout=timedelta(seconds=30),
        quorum_timeout=timedelta(seconds=60))
    ddp, optimizer = torchft.DistributedDataParallel(manager, net), torchft.Optimizer(manager, inner)

    def inputs(begin):
        generator = torch.Generator().manual_seed(max(0, begin))
        return torch.randn(8, 32, generator=generator)

    while manager.current_step() < STEPS:
        step = manager.current_step()
        time.sleep(0.02)
        optimizer.zero_grad()
        x = inputs(1000 * number + step)
        loss = (ddp(x) - x[:, :4]).pow(2).mean()
        if int(events.get("kill", -1)) == step:
            print(json.dumps({"signal": 9, "time": time.time()}), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        loss.backward()
        optimizer.step()
        print(json.dumps({"step": manager.current_step(), "size": manager.num_participants(),
                          "loss": loss.item(), "time": time.time()}), flush=True)
    with torch.no_grad():
        x = inputs(0)
        print(json.dumps({"end": 0, "loss": (net(x) - x[:, :4]).pow(2).mean().item()}), flush=True)
    manager.shutdown()
    del store


def run(job_type, args, disturbed):
    """One run's figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        job = job_type(args, folder)
        events = [[f"kill:{SECOND_KILL}"], [f"kill:{FIRST_KILL}"], [], []]
        try:
            ranks = [job.start(n, events[n] if disturbed else [], True) for n in range(4)]
            if disturbed:
                ranks[1].wait(timeout=120)
                time.sleep(NEW_AFTER)
                started = time.time()
                ranks.append(job.start(4, [], False))
            ranks[2].wait(timeout=180)
            for rank in ranks:
                try:
                    rank.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    rank.kill()
            survivor = lines_of(folder / "2.out")
            if not survivor or "end" not in survivor[-1]:
                last = (folder / "2.err").read_text().strip().splitlines()[-1:]
                return {"error": f"a survivor did not finish: {''.join(last)}"}
            figures = {"loss": survivor[-1]["loss"]}
            if not disturbed:
                return figures
            steps = [line for line in survivor if "step" in line]
            for victim, key in ((1, "first"), (0, "second")):
                kill = next(line["time"] for line in lines_of(folder / f"{victim}.out")
                            if "signal" in line)
                figures[key] = next(line["time"] for line in steps if line["time"] > kill + 0.1) - kill
            new = [line for line in lines_of(folder / "4.out") if "step" in line]
            figures["new"] = new[0]["time"] - started if new else float("nan")
            return figures
        finally:
            for process in [*ranks, job.service]:
                process.kill()
                process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, default=SOURCE / "build" / "release")
    parser.add_argument("--torchft", type=pathlib.Path)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(f"{'':10} {'1st kill':>9} {'2nd kill':>9} {'new rank':>9} "
          f"{'loss':>8} {'undisturbed':>12}")
    jobs = [Thinwire, *([Torchft] if args.torchft else [])]
    calm_losses = []
    for job_type in jobs:
        calm = run(job_type, args, disturbed=False)
        if "error" in calm:
            sys.exit(f"{job_type.name}, undisturbed: {calm['error']}")
        calm_losses.append(calm["loss"])
    # In turns, so that what else the machine does is the same for both.
    for _ in range(args.repeats):
        for job_type, calm in zip(jobs, calm_losses):
            f = run(job_type, args, disturbed=True)
            if "error" in f:
                print(f"{job_type.name:10} {f['error']}", flush=True)
                continue
            print(f"{job_type.name:10} {f['first']:9.2f} {f['second']:9.2f} {f['new']:9.2f} "
                  f"{f['loss']:8.4f} {calm:12.4f}",
                  flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] == "--peer-rank":
        peer_rank(int(sys.argv[2]), sys.argv[3:])
    else:
        main()
