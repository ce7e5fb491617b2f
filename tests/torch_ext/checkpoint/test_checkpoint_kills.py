"""A process that is killed at any moment of a save leaves the checkpoint before or the new one.

THINWIRE_KILLS: how many times, 10 by default; `make fault-matrix` does it 200 times."""

import os
import pathlib
import random
import re
import subprocess
import tempfile
import time
import unittest

SAVER = pathlib.Path(os.environ["THINWIRE_BINARY_DIR"]) / "bin" / "tests" / "checkpoint_saver"
KILLS = int(os.environ.get("THINWIRE_KILLS") or 10)


class Kills(unittest.TestCase):
    def run_until_killed(self, folder, mode, moment):
        """(the step that was loaded, the last that was saved)."""
        environment = {name: value for name, value in os.environ.items()
                       if not name.startswith("THINWIRE_")}
        process = subprocess.Popen([SAVER, folder, mode], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True, env=environment)
        first = process.stdout.readline()
        self.assertRegex(first, r"^loaded \d+$", process.stderr.read() if not first else first)
        process.stdout.readline()  # a save is behind it, others follow without a pause
        time.sleep(moment)
        process.kill()
        rest, errors = process.communicate()
        self.assertEqual(process.returncode, -9, errors)
        loaded = int(first.split()[1])
        # The line that the kill cut off may be there in part.
        saved = [int(step) for step in re.findall(r"^saved (\d+)\n", rest, re.MULTILINE)]
        return loaded, max(saved, default=loaded + 1)

    def test_what_is_loaded_is_old_or_new(self):
        seed = time.time_ns() % 1_000_000
        rng = random.Random(seed)
        new = 0
        for mode in ("sync", "async"):
            with tempfile.TemporaryDirectory() as folder:
                saved = 0
                for _ in range(KILLS // 2):
                    loaded, last = self.run_until_killed(folder, mode, 0.05 * rng.random())
                    self.assertIn(loaded, (saved, saved + 1), f"seed {seed}")
                    new += loaded == saved + 1
                    saved = last
        print(f"{KILLS} kills (seed {seed}): {new} times the save that was under way was whole")


if __name__ == "__main__":
    unittest.main()
