#!/usr/bin/env python3
"""A real Slurm of several emulated hosts on this machine, up in about a second.

    slurm_cluster.py [--hosts 4] [--cpus 2] [--rate 1gbit] -- COMMAND ARGUMENT...

runs COMMAND on the login host "ctl", where srun, sbatch, squeue and scontrol work, and takes the
cluster down when it ends. Every host (n0, n1, ...) has a network, host name, /run and /dev/shm of its
own with a munged and a slurmd; ctl has slurmctld. Keys, logs and state lie in a temporary folder.
As emulated_hosts.py says, everything runs inside an enclosure of namespaces that ends as a whole.

For tests: `with SlurmCluster(hosts=3) as cluster: cluster.run("srun", "-N3", "hostname")`.
"""

import argparse
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
import emulated_hosts as hosts_module  # noqa: E402, pylint: disable=wrong-import-position

TOOLS = ("slurmctld", "slurmd", "srun", "sbatch", "munged")
START_SECONDS = 30
# What this process must not hand on to a job.
FOREIGN = ("SLURM", "PMI", "OMPI", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC",
           "THINWIRE_")

CONFIGURATION = """\
ClusterName=thinwire
SlurmctldHost={login}({login_address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=/run/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir=/run/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%h.log
SlurmctldDebug=info
SlurmdDebug=info
TmpFS=/dev/shm
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
ReturnToService=2
SlurmdTimeout=5
SlurmctldTimeout=10
MessageTimeout=5
TCPTimeout=2
KillWait=3
UnkillableStepTimeout=10
MinJobAge=300
JobRequeue=1
SlurmdParameters=config_overrides
NodeName=n[0-{last}] NodeAddr={subnet}.[1-{hosts}] CPUs={cpus} RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def why_impossible():
    """A sentence, or None where the cluster can be made."""
    missing = [tool for tool in TOOLS if not find(tool)]
    if missing:
        return (f"these programs are missing: {', '.join(missing)} (Debian: slurmctld slurmd "
                "slurm-client munge)")
    if os.geteuid() != 0:
        return "slurmctld needs root: it drops supplementary groups"
    return hosts_module.why_impossible()


def find(tool):
    return shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


class Inside:
    """The cluster as seen by the first process of the enclosure."""

    def __init__(self, folder, hosts, cpus, rate):
        self.folder = folder
        self.network = hosts_module.Cluster(hosts + 1, rate)  # the last one is the login host
        self.login = hosts
        self.compute = range(hosts)
        for index in [*self.compute, self.login]:
            self.prepare(index)
        (folder / "slurm.conf").write_text(CONFIGURATION.format(
            folder=folder, hosts=hosts, last=hosts - 1, cpus=cpus, subnet=hosts_module.SUBNET,
            login=self.network.names[self.login],
            login_address=self.network.addresses[self.login]))
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        self.serve(self.login, "slurmctld")
        for index in self.compute:
            self.serve(index, "slurmd")

    def prepare(self, index):
        """What the daemons of a host write belongs to the host."""
        # The second name of each address spares torch its complaint that it cannot look one up.
        script = f"""mount -t tmpfs none /run && mkdir -p /run/munge /run/slurmd &&
          install -m 600 {self.folder}/munge.key /run/munge/key && : >/run/resolv.conf &&
          munged --key-file /run/munge/key --socket /run/munge/socket \
            --pid-file /run/munge/pid --log-file /run/munge/log --seed-file /run/munge/seed \
            --num-threads 2 --force"""
        result = self.network.start(index, ["sh", "-c", script], stdout=subprocess.PIPE,
                                    stderr=subprocess.STDOUT, text=True)
        output, _ = result.communicate()
        if result.returncode:
            raise hosts_module.ClusterError(f"munged on host {index}: {output.strip()}")

    def serve(self, index, daemon):
        with open(self.folder / f"{daemon}-{index}.out", "a", encoding="utf-8") as out:
            self.network.start(index, [find(daemon), "-D", "-f", str(self.folder / "slurm.conf")],
                               stdout=out, stderr=subprocess.STDOUT)

    def wait_until_idle(self):
        deadline = time.monotonic() + START_SECONDS
        while True:
            asked = self.network.start(self.login, ["sinfo", "-h", "-N", "-o", "%t"],
                                       stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            states = asked.communicate()[0].split()
            if states == ["idle"] * len(self.compute):
                return
            if time.monotonic() > deadline:
                raise hosts_module.ClusterError(
                    f"after {START_SECONDS} s the hosts are {states or 'not known'} instead of "
                    f"idle; see {self.folder}")
            time.sleep(0.02)


def processes_of(holder):
    """Ids of the processes on a holder's host, without the holder."""
    network = os.readlink(f"/proc/{holder}/ns/net")
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "ns/net") == network and int(process.name) != holder:
                found.append(int(process.name))
        except OSError:
            pass  # it has ended meanwhile
    return found


def obey(cluster):
    """Orders from the test, one a line: power-off HOST, power-on HOST, cable HOST up|down."""
    for line in sys.stdin:
        order, name, *rest = line.split()
        index = cluster.network.names.index(name)
        port = f"port{index}"
        if order == "cable":
            hosts_module.call("ip", "link", "set", port, rest[0])
        elif order == "power-off":
            # The cable first: no peer is told by the dying host.
            hosts_module.call("ip", "link", "set", port, "down")
            holder = cluster.network.holders[index].pid
            while processes_of(holder):
                for process in processes_of(holder):
                    try:
                        os.kill(process, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
                time.sleep(0.01)
        elif order == "power-on":
            hosts_module.call("ip", "link", "set", port, "up")
            cluster.prepare(index)
            cluster.serve(index, "slurmd")
        print("done", flush=True)


def inside(options):
    """The first process of the enclosure."""
    # What the cluster kills and orphans, this process reaps.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        cluster = Inside(pathlib.Path(options.folder), options.hosts, options.cpus, options.rate)
        cluster.wait_until_idle()
    except hosts_module.ClusterError as error:
        print(f"error {error}", flush=True)
        return 1
    holders = " ".join(f"{name}={holder.pid}" for name, holder in
                       zip(cluster.network.names, cluster.network.holders))
    print(f"ready {holders}", flush=True)
    obey(cluster)
    return 0


class SlurmCluster:
    """A cluster as a context manager; leaving it takes everything down. Not thread-safe."""

    def __init__(self, hosts=4, cpus=2, rate=None):
        self.hosts, self.cpus, self.rate = hosts, cpus, rate

    def __enter__(self):
        self._temporary = tempfile.TemporaryDirectory(prefix="thinwire-slurm-")
        self.folder = pathlib.Path(self._temporary.name)
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        command = [sys.executable, "-B", os.path.abspath(__file__), "--inside",
                   "--folder", str(self.folder), "--hosts", str(self.hosts),
                   "--cpus", str(self.cpus), *(["--rate", self.rate] if self.rate else [])]
        # As hosts_module.enclosed(), but with a line to the inside.
        self._process = subprocess.Popen(
            [*hosts_module.enclosure_command(), *command], text=True,
            env={**clean_environment(), hosts_module.INSIDE_VARIABLE: "1"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            preexec_fn=hosts_module.die_with_parent)
        answer = self._process.stdout.readline().split(maxsplit=1)
        if not answer or answer[0] != "ready":
            reason = answer[1].strip() if len(answer) > 1 else "the enclosure did not start"
            self.__exit__()
            raise hosts_module.ClusterError(reason)
        self._holders = dict(pair.split("=") for pair in answer[1].split())
        # unshare's child is the enclosure's first process.
        children = pathlib.Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        self._first = children.read_text().split()[0]
        self.login = f"n{self.hosts}"
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        # The kernel ends the enclosure's processes; their last log lines may still come.
        shutil.rmtree(self.folder, ignore_errors=True)
        self._temporary.cleanup()

    def start(self, *command, host=None, environment=None, **keywords):
        """Starts a command on a host (the login host); keywords as of subprocess.Popen."""
        enter = ["nsenter", "--target", self._first, "--pid", "--mount", "--net", "--uts", "--ipc",
                 f"--wd={os.getcwd()}"]
        return subprocess.Popen(
            [*enter, *hosts_module.enter_command(self._holders[host or self.login],
                                                 [str(word) for word in command])],
            env={**clean_environment(), **hosts_module.host_environment(),
                 "SLURM_CONF": str(self.folder / "slurm.conf"), **(environment or {})},
            stdin=subprocess.DEVNULL, **keywords)

    def run(self, *command, seconds=120, **keywords):
        """(exit code, output with errors) of a command."""
        process = self.start(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                             **keywords)
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            return 124, f"{output}\n(still running after {seconds} s)"
        return process.returncode, output

    def submit(self, script, *arguments, options=(), **keywords):
        """sbatch of a script with its arguments; its job number."""
        code, output = self.run("sbatch", "--parsable", *options, script, *arguments, **keywords)
        if code:
            raise hosts_module.ClusterError(f"sbatch: {output.strip()}")
        return int(output.split(";")[0])

    def state(self, job):
        """PENDING, RUNNING, COMPLETED, FAILED, ..."""
        _, output = self.run("squeue", "-h", "-t", "all", "-o", "%T", "-j", str(job))
        return output.split()[0] if output.split() else "GONE"

    def wait(self, job, seconds=120, until=("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT",
                                            "NODE_FAIL", "GONE")):
        """The state in which a job ended, or one of `until`."""
        deadline = time.monotonic() + seconds
        while True:
            state = self.state(job)
            if state in until:
                return state
            if time.monotonic() > deadline:
                raise hosts_module.ClusterError(f"job {job} is {state} after {seconds} s")
            time.sleep(0.1)

    def order(self, *words):
        """power-off HOST, power-on HOST, cable HOST up|down."""
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != "done\n":
            raise hosts_module.ClusterError(f"{' '.join(words)}: the cluster has ended")


def clean_environment():
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}


def main():
    parser = argparse.ArgumentParser(prog="slurm_cluster.py",
                                     description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--cpus", type=int, default=2, help="of a host, for Slurm's accounts")
    parser.add_argument("--rate", help="rate of every host's link, as tc writes it: 1gbit")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND ARGUMENT...")
    options = parser.parse_args()
    if options.inside:
        return inside(options)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("no command was given")
    if not 1 <= options.hosts <= 99:
        parser.error(f"--hosts {options.hosts}: 1 to 99 are possible")
    reason = why_impossible()
    if reason:
        print(f"slurm_cluster: {reason}", file=sys.stderr)
        return 77
    try:
        with SlurmCluster(options.hosts, options.cpus, options.rate) as cluster:
            return cluster.start(*command).wait()
    except hosts_module.ClusterError as error:
        print(f"slurm_cluster: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
