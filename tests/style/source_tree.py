"""The files of the source tree, and the include lines of the C++ files among them.

As a program it lists files: source_tree.py [--cpp] [-0].
"""

import dataclasses
import os
import pathlib
import re
import sys

CPP_SUFFIXES = {".h", ".hpp", ".cpp", ".cu", ".cuh"}
CODE_SUFFIXES = CPP_SUFFIXES | {".py", ".cmake", ".sh", ".in"}
TEXT_SUFFIXES = CODE_SUFFIXES | {".md", ".txt", ".json", ".toml", ".yml", ".yaml"}
TEXT_NAMES = {"Makefile", ".clang-format", ".clang-tidy", ".editorconfig", ".gitignore", "run"}
# Build output, environments and results; none of them is part of the tree.
SKIPPED_FOLDERS = {"build", "results", "__pycache__", "node_modules"}

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def root_folder():
    return pathlib.Path(os.environ.get("THINWIRE_SOURCE_DIR")
                        or pathlib.Path(__file__).resolve().parents[2])


def files_of(root, suffixes, names=frozenset()):
    """Paths relative to `root`, sorted; folders with a leading dot are left out, but for .ci."""
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(
            name for name in subfolders
            if name not in SKIPPED_FOLDERS and (not name.startswith(".") or name == ".ci")
            and not name.endswith(".egg-info"))
        here = pathlib.Path(folder).relative_to(root)
        found += [here / name for name in files
                  if pathlib.Path(name).suffix in suffixes or name in names]
    return sorted(found)


def cpp_files(root):
    return files_of(root, CPP_SUFFIXES)


def code_files(root):
    return files_of(root, CODE_SUFFIXES)


def text_files(root):
    return files_of(root, TEXT_SUFFIXES, TEXT_NAMES)


@dataclasses.dataclass(frozen=True)
class Include:
    file: pathlib.PurePath  # the file with the include line, relative to the root
    line: int
    path: str  # what is included, as written
    quoted: bool

    def __str__(self):
        mark = '""' if self.quoted else "<>"
        return f"{self.file}:{self.line}: #include {mark[0]}{self.path}{mark[1]}"


def includes_of(root, file):
    lines = (root / file).read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        match = INCLUDE.match(line)
        if match:
            found.append(Include(file, number, match[2], match[1] == '"'))
    return found


def main():
    root = root_folder()
    files = cpp_files(root) if "--cpp" in sys.argv else text_files(root)
    end = "\0" if "-0" in sys.argv else "\n"
    for file in files:
        print(root / file, end=end)


if __name__ == "__main__":
    main()
