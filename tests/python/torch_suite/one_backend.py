"""torch's distributed tests on one backend: one_backend.py BACKEND RESULTS.json REGEX [TEST...]"""

import json
import os
import re
import sys
import unittest

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d
from torch.testing._internal import common_distributed

BACKEND, RESULTS, ONLY, *NAMES = sys.argv[1:]


def stand_in_for_gloo(backend):
    """Makes "gloo" mean `backend`, in the names through which the tests reach torch."""
    def meant(name):
        return backend if name is None or str(name).lower() == "gloo" else name

    init, new, get = c10d.init_process_group, c10d.new_group, c10d.get_backend

    def init_process_group(backend=None, *arguments, **keywords):
        if backend_options is not None and meant(backend) == BACKEND:
            keywords.setdefault("pg_options", backend_options)  # groups made later inherit them
        return init(meant(backend), *arguments, **keywords)

    def new_group(ranks=None, timeout=None, backend=None, *arguments, **keywords):
        return new(ranks, timeout, meant(backend), *arguments, **keywords)

    def get_backend(group=None):
        name = get(group)
        return "gloo" if name == backend else name

    for module in (dist, c10d):
        module.init_process_group, module.new_group = init_process_group, new_group
        module.get_backend = get_backend


backend_options = None
if BACKEND == "plug_in":
    # Gloo itself, known to torch as backends from outside are: what it fails has no other cause.
    dist.Backend.register_backend(BACKEND, lambda options, _: dist.ProcessGroupGloo(
        options.store, options.group_rank, options.group_size, options.timeout), extended_api=True,
        devices=["cpu"])
elif BACKEND != "gloo":
    import thinwire
    spec = os.environ["THINWIRE_SUITE_SPEC"]
    backend_options = thinwire.ProcessGroupOptions(
        spec, all_gather=spec, all_to_all=spec, min_numel=int(os.environ["THINWIRE_SUITE_MIN_NUMEL"]))
if BACKEND != "gloo":
    stand_in_for_gloo(BACKEND)
if int(os.environ["WORLD_SIZE"]) >= 3:
    # torch wants 8 ranks for what three show as well.
    common_distributed.skip_if_small_worldsize = lambda test: test
from torch.testing._internal.distributed import distributed_test  # noqa: E402


class Suite(distributed_test.TestDistBackend, distributed_test.DistributedTest._DistTestBase):
    def setUp(self):
        super().setUp()
        # Forked ranks start twenty times as fast as spawned ones.
        self._start_processes(torch.multiprocessing.get_context("fork").Process)


class Recorder(unittest.TestResult):
    def __init__(self):
        super().__init__()
        self.outcomes = {}

    def note(self, test, outcome, reason=""):
        self.outcomes[test._testMethodName] = (outcome, reason)
        print(outcome, test._testMethodName, reason, flush=True)

    def addSuccess(self, test):
        self.note(test, "passed")

    def addSkip(self, test, reason):
        self.note(test, "skipped", reason)

    def failed(self, test, error):
        # The ranks' tracebacks, one after the other: the first one's error, and how far it was off.
        lines = [line.strip() for line in str(error[1]).splitlines() if line.strip()]
        telling = [line for line in lines if re.match(r"[\w.]*Error: |Greatest absolute", line)]
        self.note(test, "failed", " ".join(list(dict.fromkeys(telling))[:2] or lines[-1:])[:300] or error[0].__name__)

    addFailure = addError = failed


def main():
    torch.set_num_threads(1)
    names = NAMES or unittest.TestLoader().getTestCaseNames(Suite)
    suite = unittest.TestSuite(Suite(name) for name in names if re.search(ONLY, name))
    recorder = Recorder()
    suite.run(recorder)
    with open(RESULTS, "w", encoding="utf-8") as file:
        json.dump(recorder.outcomes, file)


if __name__ == "__main__":
    main()
