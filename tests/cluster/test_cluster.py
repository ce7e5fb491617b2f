"""The emulated cluster: links as slow as asked for, no way out, and nothing left behind."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import emulated_hosts

HERE = pathlib.Path(__file__).resolve().parent
CLUSTER = [sys.executable, "-B", str(HERE / "cluster.py")]
PROBE = [sys.executable, "-B", str(HERE / "probe.py")]


def run(*arguments, timeout=60):
    return subprocess.run([*CLUSTER, *arguments], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=timeout, check=False)


def by_rank(output):
    """Lines of each rank, without their prefix."""
    lines = {}
    for line in output.splitlines():
        if line.startswith("["):
            rank, _, text = line[1:].partition("] ")
            lines.setdefault(int(rank), []).append(text)
    return lines


def processes_with(word):
    """Ids of the processes that have `word` in their command line."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            pass  # it has ended meanwhile
    return found


class EmulatedCluster(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        reason = emulated_hosts.why_impossible()
        if reason:
            raise unittest.SkipTest(reason)

    def wait_until(self, condition, what):
        deadline = time.monotonic() + 30
        while not condition():
            self.assertLess(time.monotonic(), deadline, what)
            time.sleep(0.02)

    def start_sleepers(self, word):
        """A cluster of two hosts whose programs sleep; `word` is in their command lines."""
        process = subprocess.Popen(
            [*CLUSTER, "--hosts", "2", "--launch", "torchrun-env", "--",
             "sh", "-c", "sleep 1000 & wait", word], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        # Two shells, the two cluster.py, unshare.
        self.wait_until(lambda: len(processes_with(word)) >= 5, "the programs did not start")
        return process

    def test_rate_is_kept(self):
        result = run("--hosts", "2", "--rate", "100mbit", "--launch", "torchrun-env", "--",
                     *PROBE, "transfer", "4000000")
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        rates = json.loads(by_rank(result.stdout)[0][-1])
        # 100 Mbit/s are 12.5 MB/s; a slow machine may be below, none may be above. The bucket of
        # 128 KB and the socket's buffers explain the rest.
        self.assertLess(rates["received_bytes_per_second"], 1.2 * 12.5e6)
        self.assertEqual(rates["received_bytes"], 4000000)

    def test_there_is_no_way_out(self):
        result = run("--hosts", "2", "--launch", "torchrun-env", "--", *PROBE, "surroundings")
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        for rank, lines in by_rank(result.stdout).items():
            seen = json.loads(lines[-1])
            self.assertEqual(seen["interfaces"], ["eth0", "lo"])
            self.assertEqual(seen["outside"], "ENETUNREACH")
            self.assertEqual(seen["host"], f"n{rank}")
            self.assertEqual(seen["address_of_n1"], "10.77.0.2")
            self.assertEqual(seen["variables"], [str(rank), "2", "0", "1", "10.77.0.1"])

    def test_mpirun_starts_a_rank_on_every_host(self):
        if not shutil.which("mpirun"):
            self.skipTest("mpirun is not installed")
        with tempfile.TemporaryDirectory() as folder:
            # Into files: mpirun may mix up lines that come at the same time, and has its own to say.
            result = run("--hosts", "2", "--ranks-per-host", "2", "--launch", "mpirun", "--",
                         "sh", "-c", f"hostname > {folder}/$OMPI_COMM_WORLD_RANK")
            self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
            hosts = {rank: pathlib.Path(folder, str(rank)).read_text().strip() for rank in range(4)}
        self.assertEqual(hosts, {0: "n0", 1: "n0", 2: "n1", 3: "n1"})

    def test_hosts_are_pinned_to_cores_in_turns(self):
        cores = sorted(os.sched_getaffinity(0))
        for launch in ("torchrun-env", "mpirun"):
            if not shutil.which(launch.removesuffix("torchrun-env") or "sh"):
                continue
            with self.subTest(launch=launch), tempfile.TemporaryDirectory() as folder:
                # Into files: mpirun may mix up lines that come at the same time.
                result = run("--hosts", "3", "--pin", "--launch", launch, "--", "sh", "-c",
                             f"taskset -pc $$ > {folder}/$(hostname)")
                self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
                for rank in range(3):
                    text = pathlib.Path(folder, f"n{rank}").read_text()
                    self.assertEqual(text.split()[-1], str(cores[rank % len(cores)]))

    def test_exit_code_of_the_failed_rank(self):
        for command, code in (("exit $((RANK * 3))", 3), ("[ $RANK = 0 ] || kill -KILL $$", 137)):
            with self.subTest(command=command):
                result = run("--hosts", "2", "--launch", "torchrun-env", "--", "sh", "-c", command)
                self.assertEqual(result.returncode, code, result.stdout + result.stderr)

    def test_wrong_arguments(self):
        for arguments in (["--launch", "mpirun"], ["--launch", "ssh", "--", "true"],
                          ["--launch", "mpirun", "--rate", "fast", "--", "true"],
                          ["--launch", "mpirun", "--hosts", "0", "--", "true"]):
            with self.subTest(arguments=arguments):
                self.assertEqual(run(*arguments).returncode, 2)

    def test_program_that_is_not_there(self):
        result = run("--launch", "torchrun-env", "--", "no-such-program")
        self.assertEqual(result.returncode, 127, result.stdout + result.stderr)
        self.assertIn("no-such-program", result.stdout)

    def test_timeout_kills_everything(self):
        word = f"timeout-{os.getpid()}"
        result = run("--timeout", "0.3", "--launch", "torchrun-env", "--",
                     "sh", "-c", "sleep 1000 & wait", word)
        self.assertEqual(result.returncode, 124)
        self.assertIn("still running", result.stderr)
        self.wait_until(lambda: not processes_with(word), "programs are left")

    def test_signals_end_everything(self):
        for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130),
                             (signal.SIGKILL, -signal.SIGKILL)):
            with self.subTest(signal=number.name):
                word = f"signal-{number.name}-{os.getpid()}"
                process = self.start_sleepers(word)
                process.send_signal(number)
                self.assertEqual(process.wait(timeout=30), code)
                self.wait_until(lambda: not processes_with(word), "programs are left")

    def test_machine_is_untouched(self):
        def state():
            interfaces = sorted(os.listdir("/sys/class/net"))
            return pathlib.Path("/etc/hosts").read_bytes(), interfaces, os.uname().nodename

        before = state()
        first = self.start_sleepers(f"first-{os.getpid()}")
        second = self.start_sleepers(f"second-{os.getpid()}")
        self.assertEqual(state(), before)
        self.assertIsNone(first.poll())
        self.assertIsNone(second.poll())


if __name__ == "__main__":
    unittest.main()
