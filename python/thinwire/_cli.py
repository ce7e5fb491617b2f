"""The `thinwire` command of an installed package: the program in it."""

import os
import pathlib
import sys


def main():
    program = pathlib.Path(__file__).parent / "bin" / "thinwire"
    if not program.exists():
        sys.exit(f"thinwire: the program {program} is not there: install thinwire's wheel, or run "
                 "build/release/bin/thinwire of a source tree")
    import torch  # for the place of its libraries

    libraries = [str(pathlib.Path(torch.__file__).parent / "lib"),
                 *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
    os.execv(program, [str(program), *sys.argv[1:]])
