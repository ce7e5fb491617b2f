"""All C++ and CUDA files are formatted with the tree's .clang-format."""

import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

import source_tree

# Other versions break some lines differently; Debian 12 has 14.
VERSION = 14


def unformatted(root, files):
    """The lines of clang-format's complaints."""
    result = subprocess.run(
        ["clang-format", "--style=file", "--dry-run", "--Werror", *map(str, files)],
        cwd=root, capture_output=True, text=True, check=False)
    lines = [line for line in result.stderr.splitlines() if "error:" in line]
    if result.returncode and not lines:
        lines = result.stderr.splitlines() or [f"clang-format ended with {result.returncode}"]
    return lines


class Format(unittest.TestCase):
    def setUp(self):
        if not shutil.which("clang-format"):
            self.skipTest("clang-format is not installed")
        text = subprocess.run(["clang-format", "--version"], capture_output=True, text=True,
                              check=True).stdout
        version = re.search(r"version (\d+)", text)
        if not version or int(version[1]) != VERSION:
            self.skipTest(f"needs clang-format {VERSION}, here is {text.strip()}")
        self.root = source_tree.root_folder()

    def test_tree_is_formatted(self):
        found = unformatted(self.root, source_tree.cpp_files(self.root))
        if found:
            self.fail("make format repairs:\n" + "\n".join(found[:50]))

    def test_an_unformatted_file_is_seen(self):
        with tempfile.TemporaryDirectory() as folder:
            copy = pathlib.Path(folder)
            shutil.copy(self.root / ".clang-format", copy)
            (copy / "good.h").write_text("int* f(int a);\n")
            (copy / "bad.h").write_text("int *f( int a );\n")
            self.assertEqual(unformatted(copy, ["good.h"]), [])
            self.assertNotEqual(unformatted(copy, ["bad.h"]), [])


if __name__ == "__main__":
    unittest.main()
