"""torch's own distributed tests on plain Gloo and on thinwire's backend, side by side.

    run_suite.py [--world 2] [--spec none] [--min-numel 1024] [--only REGEX] [TEST...]

The tests ship with torch (torch.testing._internal.distributed.distributed_test). They know Gloo by
its name: what they skip, and which profiler events they look for. So on thinwire's backend "gloo"
means "thinwire" to init_process_group() and new_group(), and get_backend() answers "gloo". Prints run /
passed / failed / skipped of both and the tests whose outcome differs; ends with 1 where a test that
passes on Gloo does not pass on thinwire.

The spec is used for every kind of call. With one that loses something tests fail, and should: where the
loss is less than what they allow, they pass.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
# What cannot be the same, by test: how torch itself behaves for a backend that is not its own.
KNOWN = {
    "test_ddp_logging_data_cpu":
        "DDP's logger writes down the backend's name, which is that of a custom backend",
}


def outcomes(backend, arguments):
    """{test: (outcome, reason)} of the suite on one backend, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("barrier", "test_dir", "init_dir"):
            os.makedirs(os.path.join(folder, name))
        results = os.path.join(folder, "results.json")
        environment = {**os.environ, "BACKEND": "gloo", "WORLD_SIZE": str(arguments.world),
                       "TEMP_DIR": folder, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
                       "TORCH_FR_BUFFER_SIZE": "0", "THINWIRE_SUITE_SPEC": arguments.spec,
                       "THINWIRE_SUITE_MIN_NUMEL": str(arguments.min_numel)}
        command = [sys.executable, str(HERE / "one_backend.py"), backend, results, arguments.only,
                   *arguments.tests]
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        if not os.path.exists(results):
            raise SystemExit(f"the suite on {backend} did not end:\n{done.stdout}\n{done.stderr}")
        with open(results, encoding="utf-8") as file:
            return json.load(file)


def counts(results):
    kinds = [outcome for outcome, _ in results.values()]
    return {"run": len(kinds), "passed": kinds.count("passed"), "failed": kinds.count("failed"),
            "skipped": kinds.count("skipped")}


def compare(gloo, thinwire):
    """Lines about tests whose outcome differs, and the names of those that only Gloo passes."""
    lines, lost = [], []
    for name in sorted(gloo):
        theirs, ours = gloo[name], thinwire.get(name, ["missing", ""])
        if theirs[0] == ours[0]:
            continue
        why = KNOWN.get(name, ours[1])
        lines.append(f"  {name}: gloo {theirs[0]}, thinwire {ours[0]}: {why}")
        if theirs[0] == "passed" and name not in KNOWN:
            lost.append(name)
    return lines, lost


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", type=int, default=2)
    parser.add_argument("--spec", default="none")
    parser.add_argument("--min-numel", type=int, default=1024,
                        help="of fewer elements tensors stay as they are, and theirs have few")
    parser.add_argument("--only", default="", help="regular expression on the tests' names")
    parser.add_argument("tests", nargs="*")
    arguments = parser.parse_args()
    both = {backend: outcomes(backend, arguments) for backend in ("gloo", "thinwire")}
    print(f"torch's distributed tests, {arguments.world} ranks, thinwire with {arguments.spec}")
    print(f"{'':10s} {'run':>5s} {'passed':>7s} {'failed':>7s} {'skipped':>8s}")
    for backend, results in both.items():
        n = counts(results)
        print(f"{backend:10s} {n['run']:5d} {n['passed']:7d} {n['failed']:7d} {n['skipped']:8d}")
    lines, lost = compare(both["gloo"], both["thinwire"])
    print("\n".join(lines) if lines else "  every test has the same outcome on both")
    return 1 if lost or not counts(both["gloo"])["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
