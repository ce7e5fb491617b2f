"""Starts a program as the ranks of a job, in each of the ways that users start one."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
from die_with_parent import die_with_parent  # noqa: E402, pylint: disable=wrong-import-position
from free_port import free_port  # noqa: E402, pylint: disable=wrong-import-position

if "THINWIRE_BINARY_DIR" not in os.environ:
    sys.exit("THINWIRE_BINARY_DIR does not name the build folder, as ctest and make have it do: set it to "
             "build/release, for one")
PROGRAMS = pathlib.Path(os.environ["THINWIRE_BINARY_DIR"]) / "bin"
TORCHRUN = os.environ.get("THINWIRE_TORCHRUN", "")
HAS_MPI = os.environ.get("THINWIRE_HAS_MPI", "") == "1" and shutil.which("mpirun") is not None

# What launchers, schedulers and thinwire read: the tests' own surroundings must not matter.
FOREIGN = re.compile(r"(RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|MASTER_ADDR|MASTER_PORT|"
                     r"GLOO_SOCKET_IFNAME|(OMPI|PMIX|PMI|MV2|JSM|FLUX|PALS|SLURM|"
                     r"TORCHELASTIC|THINWIRE)_.*)$")
MPI_TAG = re.compile(r"^\[\d+,(\d+)\]<(stdout|stderr)>:? ?(.*)$", re.DOTALL)


class Rank:
    """What one rank printed, and its exit code where it is known."""

    def __init__(self, out="", err="", code=None):
        self.out, self.err, self.code = out, err, code

    def errors(self):
        """The texts of its error lines, without time and, where it is known already, rank."""
        found = (re.match(r"[0-9:.]+ (?:\[[^]]*\] )?error: (.*)", line)
                 for line in self.err.splitlines())
        return [match[1] for match in found if match]

    def __str__(self):
        return f"exit code {self.code}\n{self.out}{self.err}"


class Job:
    """The ranks of a job and the exit code that its user sees."""

    def __init__(self, ranks, code, rest=""):
        self.ranks, self.code, self.rest = ranks, code, rest

    def __str__(self):
        parts = [f"--- rank {rank}: {output}" for rank, output in enumerate(self.ranks)]
        return "\n".join([f"exit code {self.code}", *parts, self.rest])


def environment(**changes):
    """This process's environment without what launchers set; None takes a variable away."""
    kept = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    # Several ranks share a core, and every job must end by itself even where a test goes wrong.
    kept |= {"OMP_NUM_THREADS": "1", "THINWIRE_TIMEOUT": "60"}
    kept |= {name: str(value) for name, value in changes.items() if value is not None}
    return kept


def fake_gpu(**variables):
    """Words for env(1) before a command that is to run on the fake device, see docs/gpu.md. Its
    findings go to stderr."""
    folder = PROGRAMS.parent / "lib" / "fake_gpu"
    variables = {"LD_PRELOAD": f"{folder}/libcuda.so.1 {folder}/libfake_gpu_aten.so",
                 # The library looks for its module of kernels beside itself.
                 "LD_LIBRARY_PATH": folder, "FAKE_GPU_TELL": 1, **variables}
    return [f"{name}={value}" for name, value in variables.items()]


def _communicate(processes, seconds, first=lambda: None):
    """(out, err) of each, after a call of `first`; kills all where one takes longer."""
    try:
        first()
        return [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _start(command, variables):
    return subprocess.Popen([str(word) for word in command], env=variables, text=True,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, start_new_session=True)


def start_store(*options, **streams):
    """`thinwire store`, whose first line tells its address. It ends with this process, however that
    ends: a store waits for a signal, and nobody would send it one."""
    return subprocess.Popen([str(word) for word in (PROGRAMS / "thinwire", "store", *options)],
                            env=environment(), text=True, stdin=subprocess.DEVNULL,
                            preexec_fn=die_with_parent, **{"stdout": subprocess.PIPE, **streams})


def start_alone(command, seconds=60, **variables):
    process = _start(command, environment(**variables))
    (out, err), = _communicate([process], seconds)
    return Job([Rank(out, err, process.returncode)], process.returncode)


def start_by_hand(commands, per_rank=None, seconds=60, meanwhile=None, **variables):
    """One process a rank with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. `commands`: one for
    each rank, None for one that does not come; `per_rank`: variables of single ranks. `meanwhile`
    is called with the processes by rank; what it reads of their output is not in the result. The
    exit code is the first one that is not 0."""
    common = {"WORLD_SIZE": len(commands), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(),
              **variables}
    processes = {rank: _start(command, environment(**{"RANK": rank, **common,
                                                      **(per_rank or {}).get(rank, {})}))
                 for rank, command in enumerate(commands) if command is not None}
    outputs = dict(zip(processes, _communicate(list(processes.values()), seconds,
                                               lambda: meanwhile and meanwhile(processes))))
    ranks = [Rank(*outputs[rank], processes[rank].returncode) if rank in outputs else Rank()
             for rank in range(len(commands))]
    return Job(ranks, next((rank.code for rank in ranks if rank.code), 0))


def start_mpirun(size, command, seconds=60, ranks=None, **variables):
    """All ranks by one mpirun, which does not tell the exit codes of single ranks. `ranks`: how many
    there are, where the command starts more of them behind a colon."""
    process = _start(["mpirun", "--allow-run-as-root", "--oversubscribe", "--tag-output",
                      "-np", size, *command], environment(**variables))
    (out, err), = _communicate([process], seconds)
    ranks, rest = [Rank() for _ in range(ranks or size)], ""
    for line in (out + err).splitlines(keepends=True):
        match = MPI_TAG.match(line)
        if not match:
            rest += line
            continue
        # mpirun reads 4096 bytes at a time and tags what comes next, within a line as well.
        text = re.sub(rf"\[\d+,{match[1]}\]<{match[2]}>:", "", match[3])
        if match[2] == "stdout":
            ranks[int(match[1])].out += text
        else:
            ranks[int(match[1])].err += text
    return Job(ranks, process.returncode, rest)


def start_torchrun(size, command, folder, seconds=90, options=(), **variables):
    """All ranks by one torchrun, which writes their output to `folder`. What the ranks printed is that
    of the first attempt."""
    process = _start([TORCHRUN, "--no-python", "--standalone", "--nproc-per-node", size,
                      "--log-dir", folder, "--redirects", "3", *options, "--", *command],
                     environment(**variables))
    (out, err), = _communicate([process], seconds)
    ranks = []
    for rank in range(size):
        streams = [next(pathlib.Path(folder).glob(f"**/attempt_0/{rank}/{name}.log"), None)
                   for name in ("stdout", "stderr")]
        ranks.append(Rank(*(stream.read_text() if stream else "" for stream in streams)))
    return Job(ranks, process.returncode, out + err)
