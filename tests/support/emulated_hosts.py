"""Hosts on one machine: network namespaces that a switch of a given rate connects.

Everything is made inside a PID, mount and network namespace of its own (see `enclosed`), so nothing
of it can be seen from outside or outlive it: the machine's network, host names, /etc/hosts and
/run are never touched, two clusters never meet, and when the first process of the enclosure ends,
even by SIGKILL, the kernel ends all others and drops every interface.

    host n0 (10.77.0.1)  eth0 --- port0 \\
    host n1 (10.77.0.2)  eth0 --- port1 - switch (a bridge in the enclosure's network)
"""

import os
import pathlib
import shutil
import subprocess
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
from die_with_parent import die_with_parent  # noqa: E402, pylint: disable=wrong-import-position

SUBNET = "10.77.0"
# The variable by which `cluster.py agent` finds the process that holds a host's namespaces.
HOSTS_VARIABLE = "THINWIRE_CLUSTER_HOSTS"
INSIDE_VARIABLE = "THINWIRE_CLUSTER_INSIDE"
TOOLS = ("ip", "tc", "unshare", "nsenter", "mount")

# A token bucket of 128 KB lets a 64 KB segment of the veth pair pass whole; 50 ms of queue is what
# a switch port has, enough that TCP fills the link.
SHAPER = ("burst", "128kb", "latency", "50ms")


class ClusterError(Exception):
    """The cluster cannot be made here; the text says why."""


def enclosure_command():
    """unshare's command line; as an ordinary user it needs a user namespace as well."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--net", "--mount", "--uts", "--ipc", "--pid", "--fork",
            "--kill-child=SIGKILL", "--mount-proc"]


def why_impossible():
    """A sentence, or None where clusters can be made."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        return f"these programs are missing: {', '.join(missing)} (Debian: iproute2, util-linux)"
    # Tries each thing that a kernel or a container may forbid.
    probe = ("ip link add switch type bridge && ip link add eth0 type veth peer name port0 && "
             "tc qdisc add dev eth0 root tbf rate 1gbit burst 128kb latency 50ms && "
             "mount -t tmpfs none /dev/shm")
    result = subprocess.run([*enclosure_command(), "sh", "-c", probe], capture_output=True,
                            text=True, stdin=subprocess.DEVNULL, check=False)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        return f"network namespaces are not allowed here: {lines[0]}"
    return None


def enclosed(command):
    """Starts `command` as the first process of a new enclosure. Killing the process that is
    returned, or the death of the caller, ends everything inside."""
    environment = {**os.environ, INSIDE_VARIABLE: "1"}
    return subprocess.Popen([*enclosure_command(), *command], env=environment,
                            stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)


def call(*command):
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                            check=False)
    if result.returncode:
        raise ClusterError(f"{' '.join(command)}: {result.stderr.strip()}")


class Cluster:
    """Makes the hosts; must be called inside an enclosure. Not thread-safe."""

    def __init__(self, hosts, rate=None):
        if INSIDE_VARIABLE not in os.environ:
            raise ClusterError("a cluster is only made inside an enclosure")
        if not 1 <= hosts <= 100:
            raise ClusterError(f"1 to 100 hosts are possible, not {hosts}")
        self.names = [f"n{index}" for index in range(hosts)]
        self.addresses = [f"{SUBNET}.{index + 1}" for index in range(hosts)]
        self.holders = []
        self._write_hosts_file()
        call("ip", "link", "set", "lo", "up")
        call("ip", "link", "add", "switch", "type", "bridge")
        call("ip", "link", "set", "switch", "up")
        for index in range(hosts):
            self._add_host(index, rate)
        os.environ[HOSTS_VARIABLE] = ",".join(
            f"{name}={holder.pid}" for name, holder in zip(self.names, self.holders))

    def _write_hosts_file(self):
        """Names for all hosts, mounted over /etc/hosts in the enclosure alone. The second form of
        each address is the one by which torch's sockets look up a peer."""
        call("mount", "-t", "tmpfs", "none", "/dev/shm")
        path = pathlib.Path("/dev/shm/hosts")
        path.write_text("127.0.0.1 localhost\n" + "".join(
            f"{address} {name}\n::ffff:{address} {name}\n"
            for address, name in zip(self.addresses, self.names)))
        call("mount", "--bind", str(path), "/etc/hosts")

    def _add_host(self, index, rate):
        # A process that does nothing holds the host's namespaces. Its own /dev/shm keeps shared
        # memory and temporary files of different hosts apart.
        name, port = self.names[index], f"port{index}"
        script = (f"mount -t tmpfs none /dev/shm && hostname {name} && echo ready && "
                  "exec sleep infinity >&2")
        holder = subprocess.Popen(
            ["unshare", "--net", "--uts", "--ipc", "--mount", "sh", "-c", script],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        if holder.stdout.readline() != "ready\n":
            raise ClusterError(f"host {name} did not start")
        self.holders.append(holder)
        call("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0",
             "netns", str(holder.pid))
        call("ip", "link", "set", port, "master", "switch", "up")
        inside = ["nsenter", "--target", str(holder.pid), "--net"]
        call(*inside, "ip", "link", "set", "lo", "up")
        call(*inside, "ip", "address", "add", f"{self.addresses[index]}/24", "dev", "eth0")
        call(*inside, "ip", "link", "set", "eth0", "up")
        if rate:
            # Both directions of the host's cable: what it sends, and what the switch sends to it.
            shaper = ("root", "tbf", "rate", rate, *SHAPER)
            call(*inside, "tc", "qdisc", "add", "dev", "eth0", *shaper)
            call("tc", "qdisc", "add", "dev", port, *shaper)

    def start(self, index, command, environment=None, **keywords):
        """Starts a command on a host; keywords as of subprocess.Popen."""
        return subprocess.Popen(
            enter_command(self.holders[index].pid, command),
            env={**os.environ, **host_environment(), **(environment or {})},
            stdin=subprocess.DEVNULL, **keywords)


def enter_command(holder, command):
    return ["nsenter", "--target", str(holder), "--net", "--uts", "--ipc", "--mount",
            f"--wd={os.getcwd()}", *command]


def host_environment():
    """Temporary files go to the host's own memory; Open MPI keeps its session there."""
    return {"TMPDIR": "/dev/shm", "GLOO_SOCKET_IFNAME": "eth0"}


def main():
    """Exit code 0 where clusters can be made, else 1 and a sentence that says why not."""
    reason = why_impossible()
    if reason:
        print(reason)
    return 1 if reason else 0


if __name__ == "__main__":
    raise SystemExit(main())
