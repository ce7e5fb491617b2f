"""The Python blocks of docs/python.md, each run as it is on two ranks."""

import os
import pathlib
import re
import unittest

from free_port import free_port
from ranks import run_ranks

DOCS = pathlib.Path(os.environ["THINWIRE_SOURCE_DIR"]) / "docs"


def execute(rank, world, code, port):
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port))
    exec(compile(code, "docs/python.md", "exec"), {"__name__": "__main__"})


class Docs(unittest.TestCase):
    def test_every_block_runs(self):
        text = (DOCS / "python.md").read_text(encoding="utf-8")
        blocks = re.findall(r"```python\n(.*?)```", text, re.S)
        self.assertGreaterEqual(len(blocks), 5)
        for block in blocks:
            with self.subTest(block.splitlines()[3]):
                run_ranks(2, execute, block, free_port(), backend=None)


if __name__ == "__main__":
    unittest.main()
