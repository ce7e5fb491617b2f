"""What a user of the installed library relies on: packages that are found, headers that are whole,
programs and libraries that start without LD_LIBRARY_PATH, also after the tree was moved."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(os.environ["THINWIRE_SOURCE_DIR"])
sys.path.append(str(SOURCE / "tests" / "style"))
import public_headers  # noqa: E402  beside the tests of style
BINARY = pathlib.Path(os.environ["THINWIRE_BINARY_DIR"])
CMAKE = os.environ["THINWIRE_CMAKE"]
CXX = os.environ["CXX"]
TORCH = pathlib.Path(os.environ["THINWIRE_TORCH_ROOT"])
HERE = SOURCE / "tests" / "install"

# A user has neither the build's libraries nor its variables around.
CLEAN = {key: value for key, value in os.environ.items()
         if key not in ("LD_LIBRARY_PATH", "CMAKE_PREFIX_PATH", "PKG_CONFIG_PATH", "PYTHONPATH")}
CLEAN["CCACHE_DISABLE"] = "1"

TORCH_HEADER = re.compile(r"^(torch|ATen|c10)/")


def run(*command, cwd=None, environment=None):
    return subprocess.run([str(part) for part in command], cwd=cwd, env=environment or CLEAN,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False)


class Install(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="thinwire-install-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        first = cls.folder / "first"
        result = run(CMAKE, "--install", BINARY, "--prefix", first)
        if result.returncode:
            raise AssertionError(f"cmake --install failed:\n{result.stdout[-4000:]}")
        # Users move installed trees; nothing may still point to the first place.
        cls.prefix = cls.folder / "moved here"
        first.rename(cls.prefix)
        cls.headers = sorted((cls.prefix / "include").rglob("*.h"))
        cls.library_folder = next(cls.prefix.rglob("libthinwire_core.*")).parent

    def succeed(self, *command, **keywords):
        result = run(*command, **keywords)
        self.assertEqual(result.returncode, 0, result.stdout[-6000:])
        return result.stdout

    def configure(self, consumer, *arguments):
        build = self.folder / f"build_{consumer.name}"
        result = run(CMAKE, "-S", consumer, "-B", build, "-G", "Ninja",
                     "-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_PREFIX_PATH={self.prefix}", *arguments)
        return build, result

    def build_and_run(self, name):
        build, result = self.configure(HERE / name)
        self.assertEqual(result.returncode, 0, result.stdout)
        self.succeed(CMAKE, "--build", build)
        return self.succeed(build / name)

    def test_find_package(self):
        self.assertRegex(self.build_and_run("consumer"), r"^torch \d+\.\d+\.\d+: \d+ bytes")

    def test_find_package_core_sees_no_torch(self):
        self.build_and_run("core_consumer")
        cache = (self.folder / "build_core_consumer" / "CMakeCache.txt").read_text()
        self.assertNotIn("THINWIRE_TORCH_ROOT", cache)

    def pkg_config(self, *arguments):
        path = {**CLEAN, "PKG_CONFIG_PATH": str(self.library_folder / "pkgconfig")}
        return self.succeed("pkg-config", *arguments, environment=path)

    def test_pkg_config_core(self):
        if not shutil.which("pkg-config"):
            self.skipTest("pkg-config is not installed")
        # Blanks in the folder's name come escaped for a shell.
        flags = self.pkg_config("--cflags", "--libs", "thinwire-core").strip()
        program = self.folder / "core_by_pkg_config"
        self.succeed("sh", "-c", f'{CXX} -std=c++20 "$0" -o "$1" {flags}',
                     HERE / "core_consumer" / "main.cpp", program)
        self.succeed(program)

    def test_pkg_config_names_torch(self):
        if not shutil.which("pkg-config"):
            self.skipTest("pkg-config is not installed")
        flags = self.pkg_config("--cflags", "--libs", "--define-variable=torch_root=/opt/torch",
                                "thinwire")
        for part in ("-lthinwire ", "-lthinwire_core", "-ltorch_cpu", "-lc10", "-L/opt/torch/lib",
                     "/opt/torch/include"):
            self.assertIn(part, flags + " ")

    def test_unknown_component_is_refused(self):
        consumer = self.folder / "unknown_component"
        consumer.mkdir()
        (consumer / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.25)\nproject(x LANGUAGES CXX)\n"
            "find_package(thinwire REQUIRED COMPONENTS moe)\n")
        _, result = self.configure(consumer)
        self.assertNotEqual(result.returncode, 0)
        self.assertRegex(result.stdout, r"no\s+component\s+'moe'")

    def test_other_torch_is_refused(self):
        other = self.folder / "other_torch"
        header = "include/torch/headeronly/version.h"
        (other / header).parent.mkdir(parents=True)
        text = (TORCH / header).read_text()
        (other / header).write_text(
            re.sub(r"(define TORCH_VERSION_MINOR) \d+", r"\1 999", text))
        api = other / "include/torch/csrc/api/include/torch/torch.h"
        api.parent.mkdir(parents=True)
        api.touch()
        consumer = self.folder / "consumer_of_other_torch"
        shutil.copytree(HERE / "consumer", consumer)
        _, result = self.configure(consumer, f"-DTHINWIRE_TORCH_ROOT={other}")
        self.assertNotEqual(result.returncode, 0)
        self.assertRegex(result.stdout, r"cannot\s+be\s+used\s+with")

    def includes_of(self, header):
        return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', header.read_text(), re.MULTILINE)

    def test_headers_are_those_that_are_listed(self):
        folder = self.prefix / "include" / "thinwire"
        installed = {path.relative_to(folder).as_posix() for path in self.headers}
        self.assertEqual(installed, set(public_headers.listed(SOURCE)[1]))

    def test_users_get_no_macro_of_gloo(self):
        # LibTorch's headers would include Gloo's, which it does not ship.
        for path in [*self.library_folder.rglob("*.cmake"), *self.library_folder.rglob("*.pc")]:
            self.assertNotIn("USE_C10D_GLOO", path.read_text(), path.name)

    def test_headers_include_only_what_a_user_has(self):
        self.assertGreater(len(self.headers), 10)
        wrong = []
        for header in self.headers:
            name = header.relative_to(self.prefix / "include")
            core = name.parts[1] in ("common", "compressors")
            for include in self.includes_of(header):
                if include.startswith("thinwire/"):
                    good = (self.prefix / "include" / include).is_file()
                elif TORCH_HEADER.match(include):
                    good = not core and (
                        (TORCH / "include" / include).is_file() or
                        (TORCH / "include/torch/csrc/api/include" / include).is_file())
                else:
                    # The standard library's headers and those of POSIX have no other project's
                    # folder in front.
                    good = "/" not in include or include.startswith("sys/")
                if not good:
                    wrong.append(f"{name} includes {include}")
        if wrong:
            self.fail("\n".join(wrong))

    def test_core_headers_stand_alone(self):
        headers = [path for path in self.headers
                   if path.relative_to(self.prefix / "include").parts[1]
                   in ("common", "compressors")]
        self.succeed(CXX, "-std=c++20", "-fsyntax-only", "-x", "c++", "-Wall", "-Wextra",
                     "-Wno-pragma-once-outside-header", "-I", self.prefix / "include", *headers)

    def test_libraries_and_programs_find_what_they_need(self):
        programs = sorted((self.prefix / "bin").glob("*"))
        self.assertIn("thinwire", [path.name for path in programs])
        for path in [*self.library_folder.glob("libthinwire*.so"), *programs]:
            text = self.succeed("ldd", path)
            self.assertNotIn("not found", text, f"{path.name}: {text}")
            for line in text.splitlines():
                if "libthinwire" in line:
                    found = pathlib.Path(line.split("=>")[1].split("(0x")[0].strip()).resolve()
                    self.assertEqual(found.parent, self.library_folder.resolve(), path.name)
        self.succeed(self.prefix / "bin" / "thinwire", "--help")


if __name__ == "__main__":
    unittest.main()
