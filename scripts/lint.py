#!/usr/bin/env python3
"""Runs clang-tidy over the project's sources.

    lint.py --build BUILD [--jobs N] [FILE...]

clang-tidy reads the build's compile commands, which are gcc's and use a precompiled header that
clang cannot read; so it gets a copy of them without the header and without what only gcc knows.
Exits with 1 where anything was found.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Unknown to clang, or about the precompiled header.
GCC_ONLY = {"-fpch-preprocess", "-Winvalid-pch"}


def without_gcc_parts(arguments):
    """The compiler's own arguments: no launcher, precompiled header or flag of gcc alone."""
    start = next((index for index, part in enumerate(arguments)
                  if pathlib.Path(part).name.startswith(("c++", "g++", "clang++"))), 0)
    kept, position = [], start
    while position < len(arguments):
        part = arguments[position]
        following = arguments[position + 1] if position + 1 < len(arguments) else ""
        if part == "-include" and "cmake_pch" in following:
            position += 2
            continue
        if part not in GCC_ONLY:
            kept.append(part)
        position += 1
    return kept


def filtered(entries):
    """The entries of the project's C++ files, one per file, ready for clang."""
    found = {}
    for entry in entries:
        path = pathlib.Path(entry["directory"], entry["file"]).resolve()
        if path.suffix != ".cpp" or not path.is_relative_to(ROOT):
            continue
        relative = path.relative_to(ROOT)
        if relative.parts[0] in ("build", "results") or relative.parts[0].startswith("."):
            continue
        arguments = entry.get("arguments") or shlex.split(entry["command"])
        found[relative] = {"directory": entry["directory"], "file": str(path),
                           "arguments": without_gcc_parts(arguments)}
    return found


def lint(file, folder):
    result = subprocess.run(
        ["clang-tidy", "--quiet", f"-p={folder}", str(ROOT / file)], cwd=ROOT,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        check=False)
    text = result.stdout.strip().replace(f"{ROOT}/", "")
    if result.returncode and not text:
        text = f"{file}: clang-tidy ended with {result.returncode}: {result.stderr.strip()}"
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, required=True, help="configured build folder")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("files", nargs="*", type=pathlib.Path, help="default: all")
    options = parser.parse_args()
    commands = filtered(json.loads((options.build / "compile_commands.json").read_text()))
    folder = options.build / "lint"
    folder.mkdir(exist_ok=True)
    (folder / "compile_commands.json").write_text(json.dumps(list(commands.values()), indent=1))

    files = [path.resolve().relative_to(ROOT) for path in options.files] or sorted(commands)
    unknown = [str(path) for path in files if path not in commands]
    if unknown:
        print(f"lint: not compiled by this build: {', '.join(unknown)}", file=sys.stderr)
        return 2
    with_findings = 0
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for number, (file, text) in enumerate(
                zip(files, pool.map(lambda path: lint(path, folder), files)), 1):
            print(f"[{number}/{len(files)}] {file}", flush=True)
            if text:
                with_findings += 1
                print(text, flush=True)
    print(f"\nlint: {len(files)} files, {with_findings} with findings")
    return 1 if with_findings else 0


if __name__ == "__main__":
    sys.exit(main())
