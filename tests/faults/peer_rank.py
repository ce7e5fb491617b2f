"""The same small training as fault_rank.cpp on plain torch, DistributedDataParallel over Gloo, or on
torchft's, each rank a replica of its own.

    peer_rank.py FAULT VICTIM
    peer_rank.py --torchft FAULT VICTIM   (TORCHFT_LIGHTHOUSE names the lighthouse)
"""

import datetime
import os
import resource
import signal
import sys
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

    def wrap(self, net, optimizer):
        return torch.nn.parallel.DistributedDataParallel(net), optimizer


class Torchft:
    """torchft's; a step that counts is told with its time."""

    def __init__(self, timeout):
        self.timeout, self.manager = timeout, None
        self.rank = int(os.environ["RANK"])
        # A replica has a store of its own, which torchrun would serve.
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": str(self.store.port)}

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
    for step in range(FAULT_STEP if mine and fault == "fewer-steps" else STEPS):
        time.sleep(0.005)
        now = mine and step == FAULT_STEP
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
        if kind is Torchft:
            print(f"step {time.time():.3f}", flush=True)
        if now and fault == "flip-a-bit":
            say_fault()
            with torch.no_grad():
                net[2].weight.view(torch.int32)[1, 2] ^= 1 << 12
    if mine and fault == "fewer-steps":
        say_fault()
    sums = [sum(p.detach().double().sum() for p in net.parameters()).item()]
    print("end", *sums, flush=True)
    if kind is Torchft:
        peer.manager.shutdown()


if __name__ == "__main__":
    main()
