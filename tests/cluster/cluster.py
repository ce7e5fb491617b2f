#!/usr/bin/env python3
"""Runs a program on several emulated hosts of this machine.

    cluster.py --hosts 4 --rate 1gbit --launch mpirun       -- PROGRAM ARGUMENT...
    cluster.py --hosts 4 --rate 100mbit --launch torchrun-env -- PROGRAM ARGUMENT...

mpirun: one mpirun on host n0 starts the ranks, over TCP with two links per pair, which Open MPI
needs to fill a link in both directions. torchrun-env: one process a rank, with the variables that
torchrun sets (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, ...) and no agent.

Every line of output starts with "[rank] ". The exit code is that of the first rank that failed
(128 + n after signal n), 124 after --timeout, 77 where this machine does not allow namespaces, 2
for wrong arguments. Whatever happens, nothing is left behind; emulated_hosts.py says why.
"""

import argparse
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
import emulated_hosts as hosts_module  # noqa: E402, pylint: disable=wrong-import-position

MASTER_PORT = 29500
# How long other ranks may take to notice that one has failed before they are killed.
GRACE_SECONDS = 30
EXIT_TIMEOUT = 124
EXIT_IMPOSSIBLE = 77

# The cores that hosts are pinned to, for the agent.
CORES_VARIABLE = "THINWIRE_CLUSTER_CORES"

MPI_TAG = re.compile(rb"^\[\d+,(\d+)\]<std(?:out|err)>:? ?")


def parse(arguments):
    parser = argparse.ArgumentParser(prog="cluster.py", description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=2, help="number of hosts (default 2)")
    parser.add_argument("--ranks-per-host", type=int, default=1)
    parser.add_argument("--rate", help="rate of every host's link, as tc writes it: 1gbit, "
                        "100mbit (default: as fast as the machine)")
    parser.add_argument("--launch", choices=("mpirun", "torchrun-env"), required=True)
    parser.add_argument("--timeout", type=float, default=600, help="seconds (default 600)")
    parser.add_argument("--pin", action="store_true",
                        help="give each host one of this machine's cores, in turns")
    parser.add_argument("--no-prefix", action="store_true", help="print lines as they are")
    parser.add_argument("--mpirun-option", action="append", default=[], metavar="OPTION",
                        help="handed to mpirun; may be given several times")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- PROGRAM ARGUMENT...")
    options = parser.parse_args(arguments)
    if options.command[:1] == ["--"]:
        options.command = options.command[1:]
    if not options.command:
        parser.error("no program was given")
    if not 1 <= options.hosts <= 100 or not 1 <= options.ranks_per_host <= 100:
        parser.error("1 to 100 hosts and ranks per host are possible")
    if options.rate and not re.fullmatch(r"\d+(\.\d+)?[kmg]?bit", options.rate):
        parser.error(f"--rate {options.rate}: expected a number with bit, kbit, mbit or gbit")
    if options.timeout <= 0:
        parser.error("--timeout must be positive")
    return options


def forward(stream, prefix, tags=False):
    """Copies lines to our output, each with its rank."""
    for line in stream:
        mark = prefix
        if tags:
            match = MPI_TAG.match(line)
            if match:
                line = line[match.end():]
                mark = b"" if prefix is None else b"[" + match[1] + b"] "
        sys.stdout.buffer.write((mark or b"") + line)
        sys.stdout.buffer.flush()


def exit_code(process):
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def wait_all(processes, timeout):
    """Waits for all; returns the exit code of the first that failed. When one fails the others have
    GRACE_SECONDS; whatever is left at the end is killed with the enclosure."""
    deadline = time.monotonic() + timeout
    waiting, failed = list(processes), 0
    while waiting:
        done = [process for process in waiting if process.poll() is not None]
        waiting = [process for process in waiting if process not in done]
        for process in done:
            if process.returncode and not failed:
                failed = exit_code(process)
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        if waiting and time.monotonic() > deadline:
            ranks = [processes.index(process) for process in waiting]
            print(f"cluster: still running and now killed: {ranks}", file=sys.stderr)
            return failed or EXIT_TIMEOUT
        if waiting and not done:
            time.sleep(0.02)
    return failed


def pinned(host, command):
    """The command on the core of the host, where hosts are pinned."""
    cores = os.environ.get(CORES_VARIABLE, "").split()
    return ["taskset", "-c", cores[host % len(cores)], *command] if cores else command


def start_ranks(cluster, options):
    """One process a rank, as torchrun would start them."""
    world = options.hosts * options.ranks_per_host
    for rank in range(world):
        host, local_rank = divmod(rank, options.ranks_per_host)
        environment = {
            "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(local_rank),
            "LOCAL_WORLD_SIZE": str(options.ranks_per_host), "GROUP_RANK": str(host),
            "MASTER_ADDR": cluster.addresses[0], "MASTER_PORT": str(MASTER_PORT)}
        yield cluster.start(host, pinned(host, options.command), environment, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)


def mpirun_command(cluster, options):
    subnet = f"{hosts_module.SUBNET}.0/24"
    agent = f"{sys.executable} -B {os.path.abspath(__file__)} agent"
    command = ["mpirun", "--oversubscribe", "--bind-to", "none",
               "-np", str(options.hosts * options.ranks_per_host),
               "--map-by", f"ppr:{options.ranks_per_host}:node",
               "--host", ",".join(f"{name}:{options.ranks_per_host}" for name in cluster.names),
               "-mca", "plm_rsh_agent", agent, "-mca", "plm_rsh_no_tree_spawn", "1",
               "-mca", "btl", "tcp,self", "-mca", "btl_tcp_links", "2",
               "-mca", "btl_tcp_if_include", subnet, "-mca", "oob_tcp_if_include", subnet,
               "-mca", "orte_tag_output", "1"]
    if os.geteuid() == 0:
        command.append("--allow-run-as-root")
    return [*command, *options.mpirun_option, *options.command]


def run_inside(options):
    try:
        cluster = hosts_module.Cluster(options.hosts, options.rate)
    except hosts_module.ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    if options.pin:
        os.environ[CORES_VARIABLE] = " ".join(map(str, sorted(os.sched_getaffinity(0))))
    if options.launch == "mpirun":
        processes = [cluster.start(0, pinned(0, mpirun_command(cluster, options)),
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)]
    else:
        processes = list(start_ranks(cluster, options))
    readers = []
    for rank, process in enumerate(processes):
        tags = options.launch == "mpirun"
        prefix = None if options.no_prefix else (b"" if tags else b"[%d] " % rank)
        readers.append(threading.Thread(target=forward, args=(process.stdout, prefix, tags),
                                        daemon=True))
        readers[-1].start()
    code = wait_all(processes, options.timeout)
    for reader in readers:
        # A child that a rank left behind may hold the pipe open; it is killed with the enclosure.
        reader.join(timeout=1)
    return code


def agent(arguments):
    """What Open MPI runs instead of ssh: agent HOST COMMAND..., the command meant for a shell."""
    while arguments and arguments[0].startswith("-"):
        arguments = arguments[1:]
    name, command = arguments[0], " ".join(arguments[1:])
    holders = dict(pair.split("=") for pair in os.environ[hosts_module.HOSTS_VARIABLE].split(","))
    os.environ.update(hosts_module.host_environment())
    entered = hosts_module.enter_command(
        holders[name], pinned(list(holders).index(name), ["sh", "-c", command]))
    os.execvp(entered[0], entered)


def main():
    if sys.argv[1:2] == ["agent"]:
        agent(sys.argv[2:])
    options = parse(sys.argv[1:])
    if hosts_module.INSIDE_VARIABLE in os.environ:
        return run_inside(options)
    reason = hosts_module.why_impossible()
    if reason:
        print(f"cluster: {reason}", file=sys.stderr)
        return EXIT_IMPOSSIBLE
    process = hosts_module.enclosed([sys.executable, "-B", os.path.abspath(__file__),
                                     *sys.argv[1:]])

    def stop(number, _frame):
        raise SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        process.wait()
    finally:
        process.kill()
        process.wait()
    return exit_code(process)


if __name__ == "__main__":
    sys.exit(main())
