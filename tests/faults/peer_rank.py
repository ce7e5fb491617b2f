"""The same small training as fault_rank.cpp on plain torch, DistributedDataParallel over Gloo, or on
torchft's, each rank a replica of its own.

    peer_rank.py FAULT VICTIM
    peer_rank.py --torchft FAULT VICTIM   (TORCHFT_LIGHTHOUSE names the lighthouse, PEER_DONE a folder
                                           in which ranks tell each other that they are done)
"""

import datetime
import os
import pathlib
import resource
import signal
import sys
import threading
import time

import torch
import torch.distributed as dist

FAULT_STEP, STEPS = 20, 60


def say_fault():
    print(f"fault {time.time():.3f}", flush=True)


def fault_in_backward(_):
    say_fault()
    raise RuntimeError("a fault in backward")


class Plain:
    """Torch's own."""

    def __init__(self, timeout):
        dist.init_process_group("gloo", timeout=timeout)
        self.rank = dist.get_rank()
        self.steps = 0

    def finished_steps(self):
        self.steps += 1
        return self.steps - 1

    def end(self, step, without):
        pass

    def wrap(self, net, optimizer):
        return torch.nn.parallel.DistributedDataParallel(net), optimizer


class Torchft:
    """torchft's; a step that counts is told with its time."""

    def __init__(self, timeout):
        self.timeout, self.manager = timeout, None
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        # A replica has a store of its own, which torchrun would serve.
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": str(self.store.port)}

    def finished_steps(self):
        """Those that the replicas have committed: one that fails is made again."""
        return self.manager.current_step()

    def end(self, step, without):
        """A quorum takes two, so a rank that is done makes more steps until those that live are done,
        too: who is one step behind would else wait for a quorum that never comes."""
        done = pathlib.Path(os.environ["PEER_DONE"])
        (done / str(self.rank)).touch()
        others = [done / str(rank) for rank in range(self.size) if rank != without]

        def go_on():
            while True:
                step()

        threading.Thread(target=go_on, daemon=True).start()
        limit = time.monotonic() + 2 * self.timeout.total_seconds()
        while not all(other.exists() for other in others) and time.monotonic() < limit:
            time.sleep(0.01)
        sys.stdout.flush()
        os._exit(0)  # pylint: disable=protected-access

    def wrap(self, net, optimizer):
        import torchft

        def load(state):
            net.load_state_dict(state["net"])
            optimizer.load_state_dict(state["optimizer"])

        self.manager = torchft.Manager(
            pg=torchft.ProcessGroupGloo(timeout=self.timeout), min_replica_size=2,
            load_state_dict=load, state_dict=lambda: {"net": net.state_dict(),
                                                      "optimizer": optimizer.state_dict()},
            replica_id=f"replica{self.rank}_", timeout=self.timeout,
            quorum_timeout=10 * self.timeout)
        return (torchft.DistributedDataParallel(self.manager, net),
                torchft.Optimizer(self.manager, optimizer))


def main():
    kind = Torchft if sys.argv[1] == "--torchft" else Plain
    fault, victim = sys.argv[-2], int(sys.argv[-1])
    torch.set_num_threads(1)
    peer = kind(datetime.timedelta(seconds=float(os.environ["THINWIRE_TIMEOUT"])))
    mine = peer.rank == victim
    if mine and fault in ("shape", "dtype"):
        say_fault()
    torch.manual_seed(1)
    width = 65 if mine and fault == "shape" else 64
    net = torch.nn.Sequential(torch.nn.Linear(32, width), torch.nn.ReLU(), torch.nn.Linear(width, 4))
    if mine and fault == "dtype":
        net = net.double()
    dtype = next(net.parameters()).dtype
    ddp, optimizer = peer.wrap(net, torch.optim.SGD(net.parameters(), 0.05, momentum=0.9))
    generator = torch.Generator().manual_seed(peer.rank)

    def make_step(now):
        x = torch.randn(16, 32, generator=generator).to(dtype)
        if now and fault in ("kill", "stop", "exit", "throw-forward", "out-of-memory", "nan"):
            say_fault()
        if now and fault in ("kill", "stop"):
            os.kill(os.getpid(), signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
        if now and fault == "exit":
            os._exit(7)  # pylint: disable=protected-access
        if now and fault == "throw-forward":
            raise RuntimeError("a fault in forward")
        if now and fault == "out-of-memory":
            resource.setrlimit(resource.RLIMIT_AS, (1 << 20, 1 << 20))
            torch.randn(1 << 14, 32)
        if now and fault == "nan":
            x.fill_(float("nan"))
        optimizer.zero_grad()
        out = ddp(x)
        if now and fault == "throw-backward":
            out.register_hook(fault_in_backward)
        (out - x[:, :4]).pow(2).mean().backward()
        finite = all(p.grad.isfinite().all() for p in net.parameters())
        if fault != "nan" or finite:
            optimizer.step()
        if now and fault == "flip-a-bit":
            say_fault()
            with torch.no_grad():
                net[2].weight.view(torch.int32)[1, 2] ^= 1 << 12

    steps, was_made = FAULT_STEP if mine and fault == "fewer-steps" else STEPS, False
    while (step := peer.finished_steps()) < steps:
        time.sleep(0.005)
        now = mine and step == FAULT_STEP and not was_made
        was_made = was_made or now
        make_step(now)
        if kind is Torchft:
            print(f"step {time.time():.3f}", flush=True)
    if mine and fault == "fewer-steps":
        say_fault()
    sums = [sum(p.detach().double().sum() for p in net.parameters()).item()]
    print("end", *sums, flush=True)
    if not (mine and fault == "fewer-steps"):
        # After these faults the victim goes on.
        peer.end(lambda: make_step(False), None if fault in ("nan", "flip-a-bit") else victim)
    if kind is Torchft:
        peer.manager.shutdown()


if __name__ == "__main__":
    main()
