#!/usr/bin/env python3
"""Training under a real Slurm while hosts, ranks and cables fail: `make soak`.

    soak.py [--minutes 60] [--rounds N] [--events 4] [--kinds kill,power] [--seed S] [--hosts 3]
            [--log soak.jsonl]

Each round trains the small data set of the tests with one of the codecs, with checkpoints, as a batch
job that goes back into the queue whenever a rank ends with an error, and lets things happen to it:

    preempt   scancel -s USR1: the job saves, leaves and comes back
    requeue   scontrol requeue: the job is ended as it stands and comes back
    kill      SIGKILL of a rank
    hang      SIGSTOP of a rank until the others have given it up
    pause     SIGSTOP of a rank for a second: nothing is lost
    cable     a host's cable is out for a second: nothing is lost
    power     a host loses power, and comes back

Whatever happens, the parameters at the end are bit for bit those of the same training undisturbed, and
memory does not grow. Prints a line an event and a round; --log takes them as JSON lines. Events come
after so many lines of progress, drawn from the seed: --seed repeats a soak. Exits with 1 where a round
is not as it should be.
"""

import argparse
import json
import os
import pathlib
import random
import re
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
for folder in ("support", "examples", "slurm"):
    sys.path.insert(0, str(HERE.parent / folder))
import emulated_hosts  # noqa: E402, pylint: disable=wrong-import-position
import jobs  # noqa: E402, pylint: disable=wrong-import-position
import slurm_cluster  # noqa: E402, pylint: disable=wrong-import-position
import training  # noqa: E402, pylint: disable=wrong-import-position

PROGRAM = str(jobs.PROGRAMS / "train_fashion_mnist")
CODECS = ("quantize(bits=4)", "topk(density=0.05)", "onebit", "powersgd(rank=2)", "ecsq(bits=2)",
          "spectral(bits=1)", "lgreco(family=mixed, period=40, window=5)",
          "topk(density=0.05, momentum=0.9)")
EVENTS = ("preempt", "requeue", "kill", "hang", "pause", "cable", "power")
TIMEOUT = 8
SURROUNDINGS = {"OMP_NUM_THREADS": "1", "THINWIRE_TIMEOUT": str(TIMEOUT)}
# A host that loses power is back before Slurm has missed it, and its boot time, by which Slurm would
# know, is this machine's: srun would wait for its task for ever.
SCRIPT = """#!/bin/bash
srun --mpi=none --kill-on-bad-exit=0 --wait=30 "$@"
code=$?
[ $code = 0 ] && exit 0
scontrol requeue "$SLURM_JOB_ID"
sleep infinity  # the requeue ends this script
"""
# Signals the training processes of the host that it runs on.
SIGNAL = """import os, pathlib, sys
network = os.readlink("/proc/self/ns/net")
for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        if (os.readlink(process / "ns/net") == network
                and (process / "cmdline").read_bytes().startswith(sys.argv[1].encode() + b"\\0")):
            os.kill(int(process.name), int(sys.argv[2]))
    except OSError:
        pass
"""
GROWTH = 1.05
# A round takes a minute on a quiet machine; one of so many seconds hangs.
PATIENCE = 1800


class Memory(threading.Thread):
    """Samples the resident memory of all training processes, by process, until stop()."""

    def __init__(self, mark):
        super().__init__(daemon=True)
        self.mark = str(mark).encode()
        self.samples = {}
        self.over = threading.Event()
        self.start()

    def run(self):
        while not self.over.wait(0.5):
            for process in pathlib.Path("/proc").glob("[0-9]*"):
                try:
                    words = (process / "cmdline").read_bytes()
                    if words.startswith(PROGRAM.encode() + b"\0") and self.mark in words:
                        pages = int((process / "statm").read_text().split()[1])
                        self.samples.setdefault(process.name, []).append(pages * 4096)
                except (OSError, IndexError, ValueError):
                    pass

    def stop(self):
        """(largest, growth within a process from its second quarter to its third) so far: not when it
        starts, nor when it tells of an error, for which torch looks up the names of a stack."""
        self.over.set()
        self.join()
        quarters = ((values[n // 4:n // 2], values[n // 2:3 * n // 4])
                    for values in self.samples.values() if (n := len(values)) >= 40)
        growth = max((max(later) / max(earlier) for earlier, later in quarters), default=1)
        return max((max(values) for values in self.samples.values()), default=0), growth


class Soak:
    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.random = random.Random(options.seed)
        self.log = open(options.log, "a", encoding="utf-8") if options.log else None
        self.begin = time.monotonic()
        self.script = folder / "job.sbatch"
        self.script.write_text(SCRIPT)
        self.whole = {}  # results of undisturbed jobs
        self.cluster = None

    def say(self, what, **facts):
        line = {"seconds": round(time.monotonic() - self.begin, 1), "event": what, **facts}
        print(" ".join(f"{name}={value}" if name != "seconds" else f"{value:8.1f} s"
                       for name, value in line.items()), flush=True)
        if self.log:
            self.log.write(json.dumps(line) + "\n")
            self.log.flush()

    def command(self, name, codec, checkpoint):
        return [PROGRAM, f"--data={self.folder}", "--model=mlp", "--batch-size=32", "--threads=1",
                f"--epochs={self.options.epochs}", f"--compression={codec}",
                f"--log-file={self.folder / name}.jsonl", f"--timeout={TIMEOUT}",
                *([f"--checkpoint={self.folder / name}", "--checkpoint-every=40"]
                  if checkpoint else [])]

    def submit(self, name, codec, checkpoint=True):
        """The job's number."""
        size = str(self.options.hosts)
        return self.cluster.submit(
            self.script, *self.command(name, codec, checkpoint), environment=SURROUNDINGS,
            options=["-N", size, "-n", size, "--requeue", "--open-mode=append", "--chdir=/",
                     f"--output={self.folder / name}.out"])

    def result(self, name):
        return json.loads((self.folder / f"{name}.jsonl").read_text().splitlines()[-1])

    def output(self, name):
        path = self.folder / f"{name}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def progress(self, name):
        return len(re.findall(r"epoch \d+/", self.output(name)))

    def standing(self, job, name):
        """What Slurm says of the job and the hosts, and the end of what the job printed."""
        _, queue = self.cluster.run("squeue", "-h", "-t", "all", "-o", "%T (%r), starts %S", "-j",
                                    str(job))
        _, hosts = self.cluster.run("sinfo", "-h", "-N", "-o", "%N %T %E")
        return f"{queue.strip()}; {hosts.strip()}; {self.output(name)[-2000:]}"

    def signal(self, host, number):
        self.cluster.run(sys.executable, "-c", SIGNAL, PROGRAM, str(number), host=host)

    def make(self, event, host, job, name):
        """Lets it happen."""
        if event == "preempt":
            self.cluster.run("scancel", "-s", "USR1", str(job))
        elif event == "requeue":
            self.cluster.run("scontrol", "requeue", str(job))
        elif event == "kill":
            self.signal(host, 9)
        elif event in ("hang", "pause"):
            self.signal(host, 19)
            ends = time.monotonic() + (TIMEOUT + 4 if event == "hang" else 1)
            while time.monotonic() < ends:
                time.sleep(0.1)
            self.signal(host, 9 if event == "hang" else 18)
        elif event == "cable":
            self.cluster.order("cable", host, "down")
            time.sleep(1)
            self.cluster.order("cable", host, "up")
        elif event == "power":
            self.cluster.order("power-off", host)
            time.sleep(TIMEOUT + 2)
            self.cluster.order("power-on", host)
            self.cluster.run("scontrol", "update", f"nodename={host}", "state=resume")

    def round(self, number):
        """A list of what is wrong, as sentences."""
        codec = self.random.choice(CODECS)
        events = [(self.random.choice(self.options.kinds.split(",")), f"n{self.random.randrange(self.options.hosts)}",
                   self.random.randrange(3, 3 + self.options.epochs // 4))
                  for _ in range(self.options.events)]
        if codec not in self.whole:
            job = self.submit(f"whole-{number}", codec, checkpoint=False)
            state = self.cluster.wait(job, seconds=PATIENCE)
            if state != "COMPLETED":
                return [f"undisturbed, the job is {state}: {self.output(f'whole-{number}')[-2000:]}"]
            self.whole[codec] = self.result(f"whole-{number}")
        name = f"round-{number}"
        memory = Memory(name)
        job = self.submit(name, codec)
        for event, host, lines in events:
            before = self.progress(name)
            limit = time.monotonic() + 300
            while self.progress(name) < before + lines and self.cluster.state(job) != "COMPLETED":
                if time.monotonic() > limit:
                    return [f"no progress in 300 s before '{event}': {self.standing(job, name)}"]
                time.sleep(0.2)
            if self.cluster.state(job) == "COMPLETED":
                break
            self.say(event, round=number, host=host, after=self.progress(name))
            self.make(event, host, job, name)
        state = self.cluster.wait(job, seconds=PATIENCE)
        largest, growth = memory.stop()
        wrong = []
        if state != "COMPLETED":
            return [f"the job is {state}: {self.output(name)[-2000:]}"]
        result = self.result(name)
        for key in ("parameters_crc32c", "test_accuracy"):
            if result[key] != self.whole[codec][key]:
                wrong.append(f"{key} is {result[key]}, undisturbed {self.whole[codec][key]}")
        if growth > GROWTH:
            wrong.append(f"memory of a process grew to {growth:.2f} of what it was")
        self.say("round", number=number, codec=codec, starts=len(re.findall(
            r"told by srun", self.output(name))), mib=largest >> 20, growth=round(growth, 3),
                 crc=result["parameters_crc32c"], wrong=wrong)
        return wrong

    def run(self):
        self.say("soak", seed=self.options.seed, hosts=self.options.hosts)
        failures = rounds = 0
        end = self.begin + 60 * self.options.minutes
        with slurm_cluster.SlurmCluster(hosts=self.options.hosts) as self.cluster:
            while (rounds < self.options.rounds if self.options.rounds else time.monotonic() < end):
                rounds += 1
                try:
                    wrong = self.round(rounds)
                except emulated_hosts.ClusterError as error:
                    wrong = [str(error)]
                failures += bool(wrong)
                for sentence in wrong:
                    print(f"WRONG in round {rounds}: {sentence}", flush=True)
        print(f"{rounds} rounds in {(time.monotonic() - self.begin) / 60:.1f} min, "
              f"{rounds - failures} as undisturbed, {failures} not; seed {self.options.seed}")
        return 1 if failures else 0


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rounds", type=int, help="as many, instead of minutes")
    parser.add_argument("--events", type=int, default=4, help="of a round")
    parser.add_argument("--kinds", default=",".join(EVENTS), help="events to choose from")
    parser.add_argument("--epochs", type=int, default=300, help="of a round's training")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--log", help="JSON lines are added to this file")
    options = parser.parse_args(words)
    reason = slurm_cluster.why_impossible()
    if reason:
        print(f"soak: {reason}", file=sys.stderr)
        return 77
    with tempfile.TemporaryDirectory(prefix="thinwire-soak-") as folder:
        training.write_data_set(pathlib.Path(folder))
        return Soak(options, pathlib.Path(folder)).run()


if __name__ == "__main__":
    sys.exit(main())
