"""The wheel: what is in it, and a newcomer's first run in a fresh environment."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import unittest
import venv
import zipfile

SOURCE = pathlib.Path(os.environ["THINWIRE_SOURCE_DIR"])
BUILD = pathlib.Path(os.environ["THINWIRE_BINARY_DIR"])


def run(*command, stderr_too=False, **keywords):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True,
                          timeout=250, check=False, **keywords)
    if done.returncode != 0:
        raise AssertionError(f"{command}:\n{done.stdout}\n{done.stderr}")
    return done.stdout + (done.stderr if stderr_too else "")


def quick_start():
    """The first Python block of docs/python.md."""
    text = (SOURCE / "docs" / "python.md").read_text(encoding="utf-8")
    return re.search(r"```python\n(.*?)```", text, re.S)[1]


class Wheel(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        out = pathlib.Path(cls.folder.name)
        # Of this build's libraries, so that nothing is compiled twice.
        run(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index",
            "--wheel-dir", out, "--config-settings", f"cmake.define.THINWIRE_PREBUILT={BUILD}",
            "--config-settings", f"build-dir={out / 'build'}", SOURCE)
        cls.wheel, = out.glob("*.whl")

    def test_holds_what_it_should_and_no_libtorch(self):
        names = zipfile.ZipFile(self.wheel).namelist()
        for wanted in (r"thinwire/_C\..*\.so", r"thinwire/lib/libthinwire\.so\.\d+\.\d+",
                       r"thinwire/lib/libthinwire_core\.so\.\d+\.\d+", r"thinwire/bin/thinwire",
                       r"thinwire_autoload/__init__\.py", r"thinwire/_built\.py", r"thinwire/py\.typed"):
            self.assertTrue(any(re.fullmatch(wanted, name) for name in names), wanted)
        self.assertFalse([name for name in names if "torch" in name.lower() and ".so" in name])
        self.assertFalse([name for name in names if "bindings" in name])
        entry_points = next(name for name in names if name.endswith("entry_points.txt"))
        text = zipfile.ZipFile(self.wheel).read(entry_points).decode()
        self.assertIn("thinwire = thinwire_autoload:register", text)
        metadata = next(name for name in names if name.endswith("METADATA"))
        self.assertIn("Requires-Dist: torch==2.11.*",
                      zipfile.ZipFile(self.wheel).read(metadata).decode())

    def test_needs_neither_mpi_nor_cuda(self):
        """Both are parts that are loaded when they are asked for."""
        with zipfile.ZipFile(self.wheel) as wheel, tempfile.TemporaryDirectory() as folder:
            binaries = [name for name in wheel.namelist()
                        if re.search(r"libthinwire(_core)?\.so|_C\..*so$|bin/thinwire$", name)]
            self.assertEqual(len(binaries), 4)
            for name in binaries:
                needed = re.findall(r"NEEDED\s+(\S+)", run("objdump", "-p",
                                                          wheel.extract(name, folder)))
                self.assertTrue(needed, name)
                self.assertFalse([n for n in needed if re.match("lib(mpi|cuda)", n)], name)

    def test_names_no_folder_of_the_build_machine(self):
        with zipfile.ZipFile(self.wheel) as wheel, tempfile.TemporaryDirectory() as folder:
            for name in wheel.namelist():
                if not re.search(r"libthinwire(_core)?\.so|_C\..*so$|bin/thinwire$", name):
                    continue
                path = wheel.extract(name, folder)
                paths = re.findall(r"R(?:UN)?PATH\)?\s+(?:Library r(?:un)?path: \[)?([^\]\n]*)",
                                   run("objdump", "-p", path))
                self.assertTrue(paths, name)
                for part in paths[0].strip().split(":"):
                    self.assertTrue(part.startswith("$ORIGIN"), f"{name}: {part}")

    @classmethod
    def fresh(cls):
        """A new environment with the wheel and torch, and what its processes may know of this one."""
        import torch
        environment = pathlib.Path(cls.folder.name) / "fresh"
        clean = {name: value for name, value in os.environ.items()
                 if not name.startswith(("PYTHON", "LD_", "THINWIRE"))}
        if not environment.exists():
            venv.create(environment, with_pip=True)
            site = next((environment / "lib").glob("python*/site-packages"))
            # torch is there: the tests' own, which is 4.7 GB.
            (site / "torch.pth").write_text(str(pathlib.Path(torch.__file__).parents[1]))
            run(environment / "bin" / "python", "-m", "pip", "install", "--no-deps", "--no-index",
                cls.wheel)
        return environment, {**clean, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}

    def test_a_newcomers_path(self):
        begin = time.monotonic()
        environment, clean = self.fresh()
        script = pathlib.Path(self.folder.name) / "train.py"
        script.write_text(quick_start(), encoding="utf-8")
        output = run(environment / "bin" / "python", "-m", "torch.distributed.run",
                     "--nproc-per-node=2", script, env=clean, cwd=self.folder.name, stderr_too=True)
        self.assertRegex(output, r"'ratio': [4-9]\.")
        self.assertNotIn("warn:", output)
        self.assertLess(time.monotonic() - begin, 60)
        program = environment / "bin" / "thinwire"
        self.assertIn((SOURCE / "VERSION").read_text().strip(), run(program, "--version", env=clean))
        self.assertIn("quantize", run(program, "codecs", env=clean))

    def test_on_a_machine_without_mpi(self):
        environment, clean = self.fresh()
        # A file that is no library stands for one that is not there.
        hidden = pathlib.Path(self.folder.name) / "hidden"
        hidden.mkdir()
        for name in ("libmpi.so.40", "libmpi.so.12"):
            (hidden / name).write_text("no library")
        code = """import torch, torch.distributed as dist
for backend in ("thinwire", "thinwire_mpi"):
    try:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        dist.all_reduce(torch.ones(3))
        dist.destroy_process_group()
        print(backend, "works")
    except RuntimeError as error:
        print(type(error).__name__, error)
"""
        output = run(environment / "bin" / "python", "-c", code, cwd=self.folder.name,
                     env={**clean, "LD_LIBRARY_PATH": str(hidden)})
        self.assertIn("thinwire works", output)
        self.assertRegex(output, "InvalidArgument .*MPI.* install .*gloo works without")


if __name__ == "__main__":
    unittest.main()
