#!/usr/bin/env python3
"""What every rank of a job ends with when one rank, its host or its surroundings fail.

    fault_matrix.py [--short] [--only CASE] [--launcher plain|torchrun|mpirun|srun] [--peer]
                    [--torchft PYTHON] [--markdown]
    fault_matrix.py --on-hosts CASE FOLDER COMMAND...    (by itself, on emulated hosts)

Starts a real job of three ranks for every case (fault_rank.cpp says what happens in it), and checks
of each rank the exit code, the message and the time from the fault to its end. Prints a line a case
and counts at the end; exits with 1 where a case is not as expected. --peer runs the cases that plain
torch has as well, on its DistributedDataParallel over Gloo, beside, and --torchft on torchft's, with a
python that has it (`pip install torchft`, whose torchft_lighthouse lies beside it; by default that of
the variable THINWIRE_TORCHFT): of survivors that go on it tells the longest pause. Their outcomes are
printed and not checked. --short: the cases that take no timeout, as ordinary processes.
"""

import argparse
import atexit
import dataclasses
import functools
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
for neighbour in ("support", "slurm"):
    sys.path.insert(0, str(HERE.parent / neighbour))
import emulated_hosts  # noqa: E402, pylint: disable=wrong-import-position
import jobs  # noqa: E402, pylint: disable=wrong-import-position
import slurm_cluster  # noqa: E402, pylint: disable=wrong-import-position

PROGRAM = jobs.PROGRAMS / "tests" / "fault_rank"
SIZE, VICTIM = 3, 1
TIMEOUT = 6
# How soon a survivor has ended: at once where the victim's connections or words tell, else when the
# timeout is over; and the time that ranks wait for each other's words, and that a machine full of
# processes takes to end one.
SOON, LATE = 2.0, TIMEOUT + 2.0
DAMAGED_WIRE = jobs.PROGRAMS / "tests" / "libdamaged_wire.so"
LOAD = float(os.environ.get("THINWIRE_FAULT_LOAD", 1.5))


@dataclasses.dataclass
class Case:
    name: str
    text: str
    victim: tuple  # (exit code, pattern of what it says); None: it does not end by itself
    others: tuple
    bound: float = SOON
    victim_rank: int = VICTIM
    folder: str = ""  # what rank 1's checkpoints meet: mount options of a tmpfs
    variables: dict = dataclasses.field(default_factory=dict)  # of the victim
    everybody: dict = dataclasses.field(default_factory=dict)
    launched: bool = False  # under torchrun, mpirun and srun, too
    peer: bool = True
    fault: str = ""  # of fault_rank, where it is not the case's name
    hosts: bool = False  # a rank on each of three emulated hosts
    may_abort: bool = False  # a rank, or do no harm: then all end as if nothing had happened
    size: int = SIZE


GONE = rf"rank\(s\) {VICTIM} of \d are dead or hung"
CASES = [
    Case("kill", "SIGKILL of a rank", (-9, ""), (1, GONE), launched=True),
    Case("kill-store", "SIGKILL of rank 0, which hosts the store", (-9, ""),
         (1, r"rank\(s\) 0|the store does not answer|rank 0"), bound=SOON + 3, victim_rank=0,
         fault="kill"),
    Case("stop", "SIGSTOP of a rank", None, (1, GONE), bound=LATE),
    Case("exit", "a rank ends itself (_exit) within a step", (7, ""), (1, GONE), launched=True),
    Case("fewer-steps", "a rank makes fewer steps than the others", (0, r"^end \d+"),
         (1, rf"rank {VICTIM} has left: it ended its training after \d+ steps|{GONE}"), bound=LATE),
    Case("throw-forward", "an exception in forward", (1, "a fault in forward"),
         (1, rf"rank {VICTIM}"), launched=True),
    Case("throw-backward", "an exception in backward", (1, "a fault in backward"),
         (1, rf"rank {VICTIM}"), launched=True),
    Case("throw-layer", "an exception of a layer in backward", (1, "a fault of a layer"),
         (1, rf"rank {VICTIM}.*a fault of a layer"), peer=False),
    Case("out-of-memory", "no memory in forward", (1, "memory|alloc"), (1, rf"rank {VICTIM}")),
    Case("nan", "a gradient that is not finite; the program skips such steps", (0, r"^end \d+"),
         (0, r"^end \d+"), launched=True),
    Case("shape", "a model of another shape", (1, r"\[65, 32\]"), (1, r"\[65, 32\]")),
    Case("dtype", "a model of another type", (1, "[Dd]ouble|float64"), (1, "[Dd]ouble|float64")),
    Case("spec", "another compression", (1, "density=0.2"), (1, "density=0.2"), peer=False),
    Case("environment", "another THINWIRE_CHECK_REPLICAS", (1, "THINWIRE_CHECK_REPLICAS"),
         (1, "THINWIRE_CHECK_REPLICAS"), variables={"THINWIRE_CHECK_REPLICAS": "5"}, peer=False),
    Case("timeout", "another THINWIRE_TIMEOUT", (1, "THINWIRE_TIMEOUT|timeout"),
         (1, "THINWIRE_TIMEOUT|timeout"), variables={"THINWIRE_TIMEOUT": "9"}, peer=False),
    Case("world-size", "another WORLD_SIZE", (1, "WORLD_SIZE"), (1, "WORLD_SIZE"),
         variables={"WORLD_SIZE": "4"}, peer=False),
    Case("name", "MASTER_ADDR is a name that nobody knows", (1, "no.such.host.invalid"),
         (1, "no.such.host.invalid"), everybody={"MASTER_ADDR": "no.such.host.invalid"}, bound=LATE,
         peer=False),
    Case("ipv6", "the store on an IPv6 address", (0, r"^end \d+"), (0, r"^end \d+"),
         everybody={"MASTER_ADDR": "::1"}, peer=False),
    Case("full-disk", "a full disk while a checkpoint is saved", (1, f"rank {VICTIM}.*[Nn]o space"),
         (1, f"rank {VICTIM}.*[Nn]o space"), folder="size=16k", peer=False),
    Case("read-only", "a disk that is read-only while a checkpoint is saved",
         (1, f"rank {VICTIM}.*[Rr]ead-only"), (1, f"rank {VICTIM}.*[Rr]ead-only"), folder="ro",
         peer=False),
    Case("network-unplugged", "a host's cable is pulled out",
         (1, r"rank\(s\) [02]|the store does not answer|rank 0"), (1, GONE), bound=LATE + 3, hosts=True),
    Case("network-gone-for-a-second", "a host's cable is pulled out for a second", (0, r"^end \d+"),
         (0, r"^end \d+"), hosts=True),
    Case("network-slow", "a host's link at a hundredth", (0, r"^end \d+"), (0, r"^end \d+"), hosts=True),
    Case("network-lossy", "a host's link that loses packets", (0, r"^end \d+"), (0, r"^end \d+"),
         hosts=True, everybody={"THINWIRE_COMPRESSION": "none"}),
    Case("network-store-unplugged", "the store's host loses its cable",
         (1, r"rank\(s\) [12]|rank [12]"), (1, r"the store does not answer|rank\(s\) 0"),
         bound=LATE + 3, victim_rank=0, hosts=True, fault="network-unplugged"),
    *(Case(f"wire-{kind}-{message}", f"{text}, message {message} from then", (1, ""), (1, ""),
           bound=bound, fault=f"wire-{kind}", everybody={"FAULT_MESSAGES_BEFORE": message},
           variables={"LD_PRELOAD": DAMAGED_WIRE}, peer=False)
      for kind, text, bound in (("flip", "a bit of a message flips", SOON),
                                ("reorder", "bytes of a message change places", SOON),
                                ("drop", "four bytes of a message are lost", LATE),
                                ("repeat", "four bytes of a message come twice", LATE))
      for message in range(6)),
    # Gloo ends the process that reads a header in which its own word for the kind is wrong.
    *(Case(f"wire-flip-header-{word}", f"a bit flips in word {word} of Gloo's header", (1, ""),
           (1, ""), bound=LATE, fault="wire-flip-header", may_abort=True, peer=False,
           everybody={"FAULT_MESSAGES_BEFORE": word}, variables={"LD_PRELOAD": DAMAGED_WIRE})
      for word in range(6)),
    Case("flip-a-bit", "a bit flips in one rank's weights", (1, "second.weight"),
         (1, "second.weight"), everybody={"THINWIRE_CHECK_REPLICAS": "5"}),
]

# Runs a rank and leaves its exit code and the time of its end.
WRAPPER = """#!/bin/bash
rank=${RANK:-${OMPI_COMM_WORLD_RANK:-$SLURM_PROCID}}
"$@" >FOLDER/out.$rank 2>FOLDER/err.$rank
code=$?
[ $code -gt 128 ] && code=$((128 - code))
echo "$code $(date +%s.%N)" >FOLDER/part.$rank
mv FOLDER/part.$rank FOLDER/end.$rank
[ $code -ge 0 ] || kill $code $$
exit $code
"""


class Outcome:
    """What became of the ranks: exit codes (None: had to be killed), texts, seconds to their ends."""

    def __init__(self, folder, output, size):
        self.codes, self.texts, ends = [], [], []
        self.fault = None
        for rank in range(size):
            end = folder / f"end.{rank}"
            code, when = end.read_text().split() if end.exists() else (None, 0)
            self.codes.append(None if code is None else int(code))
            ends.append(float(when))
            text = "".join((folder / f"{kind}.{rank}").read_text(errors="replace")
                           for kind in ("out", "err") if (folder / f"{kind}.{rank}").exists())
            self.texts.append(text)
            match = re.search(r"^fault ([\d.]+)", text, re.MULTILINE)
            self.fault = float(match[1]) if match else self.fault
        begin = self.fault
        self.seconds = [end - begin if begin and end else None for end in ends]
        self.output = output

    def message(self, rank):
        errors = re.findall(r"error: (.*)", self.texts[rank]) or re.findall(
            r"^.*(?:Error|error).*$", self.texts[rank], re.MULTILINE)
        return errors[-1] if errors else ""


def run(case, launcher, command):
    with tempfile.TemporaryDirectory(prefix="thinwire-fault-") as name:
        folder = pathlib.Path(name)
        wrapper = folder / "rank.sh"
        wrapper.write_text(WRAPPER.replace("FOLDER", name))
        wrapper.chmod(0o755)
        words = [str(word) for word in (*command, case.fault or case.name, case.victim_rank)]
        if case.folder:
            state = folder / "state"
            for rank in range(case.size):
                (state / str(rank)).mkdir(parents=True)
            words.append(str(state))
        if case.hosts:
            start_on_hosts = [sys.executable, str(HERE / "fault_matrix.py"), "--on-hosts", case.name,
                              name, str(wrapper), *words]
            code = emulated_hosts.enclosed(start_on_hosts).wait()
            return Outcome(folder, "", case.size), [code]
        begin = {"plain": start_plain, "torchrun": start_torchrun, "mpirun": start_mpirun,
                 "srun": start_srun}[launcher]
        processes = begin(case, [str(wrapper), *words], folder)
        limit = time.monotonic() + case.bound + 30 + (30 if launcher == "torchrun" else 0)
        waiting = lambda: [p for p in processes if p.poll() is None]  # noqa: E731
        while waiting() and time.monotonic() < limit:
            time.sleep(0.05)
            # A victim that does not end by itself is ended when the others have.
            if case.victim is None and launcher == "plain" and len(waiting()) == 1:
                break
        for process in waiting():
            os.killpg(process.pid, signal.SIGKILL)
        output = "".join(process.communicate()[0] or "" for process in processes)
        return Outcome(folder, output, case.size), [process.returncode for process in processes]


def start(command, variables, shell=""):
    words = command if not shell else ["unshare", "--mount", "sh", "-c", f'{shell}; exec "$@"', "sh",
                                       *command]
    return subprocess.Popen(words, env=jobs.environment(THINWIRE_TIMEOUT=TIMEOUT, **variables),
                            text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, start_new_session=True)


def start_plain(case, command, folder):
    common = {"WORLD_SIZE": case.size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": jobs.free_port(),
              **case.everybody}
    processes = []
    for rank in range(case.size):
        mine = rank == case.victim_rank
        shell = ""
        if mine and case.folder:
            shell = f"mount -t tmpfs -o {case.folder} none {folder}/state/{rank}"
        variables = {**common, "RANK": rank, **(case.variables if mine else {})}
        timeout = variables.pop("THINWIRE_TIMEOUT", TIMEOUT)
        processes.append(start(["env", f"THINWIRE_TIMEOUT={timeout}", *command], variables, shell))
    return processes


def start_torchrun(_, command, folder):
    return [start([jobs.TORCHRUN, "--no-python", "--standalone", "--nproc-per-node", str(SIZE),
                   "--log-dir", str(folder / "log"), "--", *command], {})]


def start_mpirun(_, command, folder):
    del folder
    return [start(["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", str(SIZE), *command],
                  {})]


@functools.cache
def slurm():
    """A Slurm of emulated hosts that ends with this process."""
    cluster = slurm_cluster.SlurmCluster(hosts=SIZE).__enter__()
    atexit.register(cluster.__exit__)
    return cluster


def start_srun(_, command, folder):
    del folder
    return [slurm().start("srun", "-N", str(SIZE), "-n", str(SIZE), "--kill-on-bad-exit=0", *command,
                          environment={"THINWIRE_TIMEOUT": str(TIMEOUT), "OMP_NUM_THREADS": "1"},
                          text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          start_new_session=True)]


def change_network(case, cluster):
    """What happens to the victim's cable."""
    port = f"port{case.victim_rank}"
    shape = lambda *words: emulated_hosts.call(  # noqa: E731
        "tc", "qdisc", "replace", "dev", port, "root", "tbf", *words)
    if case.name in ("network-unplugged", "network-store-unplugged", "network-gone-for-a-second"):
        emulated_hosts.call("ip", "link", "set", port, "down")
    elif case.name == "network-slow":
        shape("rate", "1mbit", *emulated_hosts.SHAPER)
    elif case.name == "network-lossy":
        # A queue of two packets: what comes in one burst loses the rest.
        shape("rate", "10mbit", "burst", "1600", "limit", "3200")


def main_on_hosts(name, folder, *command):
    """Inside an enclosure: the ranks of a case, each on a host of its own. Returns 0 where what was to
    happen to the network has happened."""
    case, folder = next(case for case in CASES if case.name == name), pathlib.Path(folder)
    cluster = emulated_hosts.Cluster(SIZE, "100mbit")
    done = folder / "network-done"
    ranks = [cluster.start(rank, command, environment=jobs.environment(
        THINWIRE_TIMEOUT=TIMEOUT, WORLD_SIZE=SIZE, RANK=rank, MASTER_ADDR=cluster.addresses[0],
        MASTER_PORT=29500, FAULT_NETWORK_DONE=done, **case.everybody)) for rank in range(SIZE)]
    limit = time.monotonic() + 60
    said = folder / f"out.{case.victim_rank}"
    while not (said.exists() and "fault" in said.read_text()) and time.monotonic() < limit:
        time.sleep(0.01)
    change_network(case, cluster)
    done.touch()
    if case.name == "network-gone-for-a-second":
        time.sleep(1)
        emulated_hosts.call("ip", "link", "set", f"port{case.victim_rank}", "up")
    limit = time.monotonic() + case.bound + 30
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < limit:
        time.sleep(0.05)
    if case.name == "network-lossy":
        queue = subprocess.run(["tc", "-s", "qdisc", "show", "dev", f"port{case.victim_rank}"],
                               capture_output=True, text=True, check=True).stdout
        return 0 if int(re.search(r"dropped (\d+)", queue)[1]) > 0 else 3
    return 0


@functools.cache
def undisturbed():
    """The parameters that a job ends with in which nothing happens."""
    outcome, _ = run(Case("nothing", "", (0, ""), (0, "")), "plain", [PROGRAM])
    return {re.search(r"^end (\d+)", text, re.M)[1] for text in outcome.texts}


def faults_of(case, launcher, outcome, exits):
    """What is not as it should be, as sentences."""
    wrong = []

    def expect(rank, expected):
        code, pattern = expected
        if outcome.codes[rank] != code and not (case.may_abort and outcome.codes[rank] == -6):
            wrong.append(f"rank {rank} ended with {outcome.codes[rank]}, expected {code}")
        if pattern and not re.search(pattern, outcome.texts[rank], re.MULTILINE):
            wrong.append(f"rank {rank} does not say /{pattern}/: {outcome.message(rank)!r}")
        took = outcome.seconds[rank]
        if code and took is not None and took > case.bound + LOAD:
            wrong.append(f"rank {rank} took {took:.1f} s")

    ends = {match for text in outcome.texts for match in re.findall(r"^end (\d+)", text, re.M)}
    if case.may_abort and set(outcome.codes) == {0}:
        return [] if ends == undisturbed() else [f"wrong parameters, and nobody notices: {ends}"]
    if launcher == "plain":
        for rank in range(case.size):
            expected = case.victim if rank == case.victim_rank else case.others
            if expected is not None:
                expect(rank, expected)
        if case.hosts and exits != [0]:
            wrong.append("nothing happened to the network")
        if case.others[0] == 0 and len(ends) != 1:
            wrong.append(f"the ranks ended with other parameters: {sorted(ends)}")
        return wrong
    # A launcher ends the ranks that are left: of them, none is asked.
    failed = case.others[0] != 0
    if (exits[0] != 0) != failed:
        wrong.append(f"{launcher} ended with {exits[0]}")
    if None in exits or (failed and exits[0] == -signal.SIGKILL):
        wrong.append(f"{launcher} did not end")
    # mpirun's own name of a process is [[JOB,1],RANK].
    named = rf"rank\D{{0,12}}{VICTIM}\b|\],{VICTIM}\]|a fault in"
    if failed and not re.search(named, outcome.output + "".join(outcome.texts), re.IGNORECASE):
        wrong.append("nobody names the rank")
    return wrong


def table_row(case, launcher, outcome, wrong, who="thinwire"):
    others = [rank for rank in range(case.size) if rank != case.victim_rank]
    seconds = [outcome.seconds[rank] for rank in others if outcome.seconds[rank] is not None]
    codes = "/".join("-" if code is None else str(code) for code in outcome.codes)
    took = f"{max(seconds):.1f}" if seconds else "-"
    said = outcome.message(others[0])[:150]
    return (case.text, who if who != "thinwire" else launcher, codes, took, said,
            "ok" if not wrong else "WRONG: " + "; ".join(wrong))


def print_row(row, markdown):
    if markdown:
        print("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |", flush=True)
    else:
        print(f"{row[5][:5]:5}  {row[1]:9} {row[0]:58} codes {row[2]:9} {row[3]:>5} s  {row[4]}",
              flush=True)
        if row[5].startswith("WRONG"):
            print(f"       {row[5]}", flush=True)


def longest_pause(outcome, victim):
    """Of the survivors between two steps, from the last one before the fault on; None without one."""
    pauses = []
    for rank, text in enumerate(outcome.texts):
        steps = [float(when) for when in re.findall(r"^step ([\d.]+)", text, re.MULTILINE)]
        if rank != victim and outcome.fault:
            pauses += [b - a for a, b in zip(steps, steps[1:]) if b > outcome.fault]
    return max(pauses, default=None)


def run_torchft(case, python):
    """The outcome of a case on torchft, whose survivors' times are those of their longest pauses where
    they go on."""
    port = jobs.free_port()
    lighthouse = subprocess.Popen(
        [python.parent / "torchft_lighthouse", "--min_replicas", "2", "--bind", f"127.0.0.1:{port}",
         "--join_timeout_ms", "1000", "--heartbeat_timeout_ms", "3000"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=jobs.die_with_parent)
    try:
        with tempfile.TemporaryDirectory(prefix="thinwire-done-") as done:
            variables = {**case.everybody, "TORCHFT_LIGHTHOUSE": f"http://127.0.0.1:{port}",
                         "PEER_DONE": done}
            # Its imports alone take a while on a busy machine.
            outcome, _ = run(dataclasses.replace(case, everybody=variables, bound=case.bound + 60),
                             "plain", [python, HERE / "peer_rank.py", "--torchft"])
    finally:
        lighthouse.kill()
        lighthouse.wait()
    others = [rank for rank in range(case.size) if rank != case.victim_rank]
    if case.others[0] and all(outcome.codes[rank] == 0 for rank in others):
        pause = longest_pause(outcome, case.victim_rank)
        for rank in others:
            outcome.seconds[rank] = pause
    return outcome


def peer_verdict(case, outcome):
    others = [rank for rank in range(case.size) if rank != case.victim_rank]
    if any(outcome.codes[rank] is None for rank in others):
        return ["a survivor hangs"]
    if case.others[0] and all(outcome.codes[rank] == 0 for rank in others):
        return ["nobody notices"]
    named = re.search(rf"rank\D{{0,4}}{case.victim_rank}\b", outcome.message(others[0]), re.I)
    return [] if case.others[0] == 0 or named else ["the rank is not named"]


def main():
    if sys.argv[1:2] == ["--on-hosts"]:
        return main_on_hosts(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--launcher", choices=("plain", "torchrun", "mpirun", "srun"))
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--torchft", type=pathlib.Path, metavar="PYTHON",
                        default=os.environ.get("THINWIRE_TORCHFT") or None)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    launchers = ["plain"] + ["torchrun"] * bool(jobs.TORCHRUN) + ["mpirun"] * jobs.HAS_MPI
    launchers += ["srun"] * (slurm_cluster.why_impossible() is None)
    if options.launcher:
        launchers = [options.launcher]
    count = failed = 0
    if options.markdown:
        print("| fault | ranks | exit codes | s | a survivor says | |\n|" + " --- |" * 6)
    for case in CASES:
        if options.only and case.name not in options.only:
            continue
        if options.short and (case.bound > SOON or case.hosts or re.search(
                r"ipv6|environment|timeout|wire-.*[2-9]", case.name)):
            continue
        if case.hosts and emulated_hosts.why_impossible():
            print(f"       {case.name}: {emulated_hosts.why_impossible()}")
            continue
        if case.folder and (os.geteuid() != 0 or not shutil.which("unshare")):
            print(f"       {case.name}: needs root, to mount a disk of its own")
            continue
        for launcher in launchers if case.launched and not options.short else launchers[:1]:
            if launcher != "plain" and not case.launched:
                continue
            outcome, exits = run(case, launcher, [PROGRAM])
            wrong = faults_of(case, launcher, outcome, exits)
            count, failed = count + 1, failed + bool(wrong)
            print_row(table_row(case, launcher, outcome, wrong), options.markdown)
        if options.peer and case.peer and not case.hosts:
            python = pathlib.Path(jobs.TORCHRUN).parent / "python"
            outcome, _ = run(case, "plain", [python, HERE / "peer_rank.py"])
            print_row(table_row(case, "plain", outcome, peer_verdict(case, outcome), "torch"),
                      options.markdown)
        if options.torchft and case.peer and not case.hosts:
            outcome = run_torchft(case, options.torchft)
            verdict = peer_verdict(case, outcome)
            others = [code for rank, code in enumerate(outcome.codes) if rank != case.victim_rank]
            if case.name != "flip-a-bit" and verdict == ["nobody notices"] and set(others) == {0}:
                verdict = ["the others go on"]
            print_row(table_row(case, "plain", outcome, verdict, "torchft"), options.markdown)
    print(f"{count} cases, {count - failed} as expected, {failed} not")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
