"""`thinwire advise` and `thinwire simulate` on logs whose steps can be worked out by hand."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import jobs

THINWIRE = jobs.PROGRAMS / "thinwire"
PLOT = pathlib.Path(os.environ["THINWIRE_SOURCE_DIR"], "scripts", "plot_scale.py")
# One matrix in one bucket, ready when the backward pass ends.
SHAPE = [512, 512]
BYTES = 4 * SHAPE[0] * SHAPE[1]
FORWARD, BACKWARD, REST = 0.010, 0.020, 0.005
FREE = {"compress": 0, "decompress": 0, "accumulate": 0}
CODECS = ["quantize(bits=4, bucket=1024, norm=minmax, rounding=nearest)", "onebit(bucket=1024)"]


def log_lines(exposed, beta=1e-8, world=2, codecs=FREE, **start):
    """An uncompressed run whose bytes took `exposed` seconds; the probe found `beta`."""
    cost = {"alpha": 0, "beta": beta}
    link = {"format": "thinwire.link", "version": 1, "world": world,
            "hosts": [f"n{rank}" for rank in range(world)],
            "backends": {"gloo": {"collectives": {name: cost for name in (
                "all_reduce", "all_to_all", "all_gather", "broadcast")}, "pairs": []}},
            "codecs": [{"spec": spec, **codecs} for spec in CODECS]}
    times = {"step_seconds": FORWARD + BACKWARD + REST + exposed, "forward_seconds": FORWARD,
             "backward_seconds": BACKWARD, "exposed_seconds": exposed, "compress_seconds": 0,
             "exchange_seconds": exposed, "decompress_seconds": 0, "compress_cpu_seconds": 0,
             "decompress_cpu_seconds": 0}
    return [
        {"event": "start", "backend": "gloo", "compression": "none", "world_size": world,
         "hosts": world, "local_size": 1, "model": "one", "threads": 1, "cores": 1,
         "min_numel": 1024, "parameters": BYTES // 4, **start},
        {"event": "link", "model": link},
        {"event": "epoch", "step": 9, "train_loss": 1, "train_seconds": 1, "sent_bytes": 9},
        {"event": "layers", "step": 9, "layers": [
            {"name": "w", "shape": SHAPE, "setting": "none", "bytes": BYTES,
             "payload_bytes": BYTES, "relative_error": 0}]},
        {"event": "profile", "step": 9, "steps": 8, **times, "buckets": [
            {"bytes": BYTES, "layers": ["w"], "ready_seconds": BACKWARD, "begun_seconds": BACKWARD,
             "finished_seconds": BACKWARD + exposed}]}]


class LogTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.log = pathlib.Path(folder.name) / "log.jsonl"

    def run_thinwire(self, lines, command, *arguments):
        self.log.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return subprocess.run([str(THINWIRE), command, str(self.log), *map(str, arguments)],
                              capture_output=True, text=True, env=jobs.environment(), check=False)

    def near(self, found, expected, part=0.03):
        self.assertLess(abs(found / expected - 1), part, (found, expected))


class Advise(LogTest):
    def advise(self, lines, *arguments):
        result = self.run_thinwire(lines, "advise", "--json", *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        document = json.loads(result.stdout)
        return document, {row["setting"]: row for row in document["settings"]}

    def test_bytes_cost_what_the_run_itself_took_for_them(self):
        # 2 (W - 1) / W of the matrix is its size; four times what the probe said.
        exposed = 4e-8 * BYTES
        document, rows = self.advise(log_lines(exposed))
        whole = FORWARD + BACKWARD + REST + exposed
        self.near(document["logged"]["measured"], whole, 1e-9)
        self.near(document["logged"]["predicted"], whole)
        self.near(document["compute_seconds"], FORWARD + BACKWARD + REST)
        self.near(rows["none"]["step_seconds"], whole)
        self.assertEqual(rows["none"]["sent_bytes"], BYTES)
        four = rows["quantize(bits=4)"]
        self.near(four["sent_bytes"], BYTES / 7.88)
        self.near(four["exposed_seconds"], exposed / 7.88)
        self.near(four["faster"], whole / (whole - exposed + exposed / 7.88))
        self.near(rows["onebit"]["exposed_seconds"], exposed / 31, 0.05)

    def test_what_was_hidden_says_nothing_of_the_network(self):
        _, rows = self.advise(log_lines(1e-4))
        self.near(rows["none"]["exposed_seconds"], 1e-8 * BYTES)

    def test_another_rate_and_a_burst(self):
        lines = log_lines(1e-8 * BYTES)
        _, rows = self.advise(lines, "--rate", "25mbit")
        self.near(rows["none"]["exposed_seconds"], 8 / 25e6 * BYTES)
        _, rows = self.advise(lines, "--rate", "25mbit", "--burst", BYTES / 2)
        # While the step computes, the link gets back what goes through at once in the next one.
        rested = FORWARD + BACKWARD + REST
        self.near(rows["none"]["exposed_seconds"], 8 / 25e6 * BYTES - rested)
        self.near(rows["quantize(bits=4)"]["exposed_seconds"], max(0, 8 / 25e6 * BYTES / 7.88 - rested), 0.1)

    def test_coding_takes_from_one_core_what_a_second_one_hides(self):
        slow = {"compress": 1e-8, "decompress": 0, "accumulate": 0}
        lines = log_lines(4e-8 * BYTES, codecs=slow)
        lines[-1]["buckets"][0]["ready_seconds"] = BACKWARD / 2
        one = self.advise(lines, "--cores", 1)[1]["quantize(bits=4)"]
        two = self.advise(lines, "--cores", 2)[1]["quantize(bits=4)"]
        self.near(one["coding_seconds"], 1.5e-8 * BYTES)
        self.assertGreater(one["step_seconds"], two["step_seconds"] + 0.005)

    def test_more_hosts(self):
        _, two = self.advise(log_lines(1e-8 * BYTES))
        document, eight = self.advise(log_lines(1e-8 * BYTES), "--hosts", 8)
        self.assertEqual((document["world"], document["hosts"]), (8, 8))
        self.near(eight["none"]["sent_bytes"], 1.75 * two["none"]["sent_bytes"])
        self.near(eight["none"]["exposed_seconds"], 1.75 * two["none"]["exposed_seconds"])

    def test_the_table(self):
        result = self.run_thinwire(log_lines(1e-8 * BYTES), "advise", "--setting",
                                   "none;quantize(bits=4)")
        self.assertEqual(result.returncode, 0, result.stderr)
        lines = result.stdout.splitlines()
        self.assertEqual(lines[0], "A step on 2 ranks of 2 hosts, 35.00 ms of computing")
        self.assertRegex(lines[3], r"^ *none .* 1\.00x$")
        self.assertRegex(lines[4], r"^ *quantize\(bits=4\) ")

    def test_errors_are_one_sentence(self):
        whole = log_lines(1e-8 * BYTES)
        hidden = [line for line in log_lines(0) if line["event"] != "link"]
        for lines, arguments, code, words in (
                ([line for line in whole if line["event"] != "profile"], [], 1, "no step"),
                ([line for line in whole if line["event"] != "layers"], [], 1, "no layers"),
                (hidden, [], 1, "does not tell what the network costs"),
                (whole, ["--setting", "lgreco(family=quantize)"], 1, "cannot foretell lgreco"),
                (whole, ["--setting", "quantise(bits=4)"], 1, "did you mean"),
                (whole, ["--rate", "fast"], 1, "the rate 'fast' is none"),
                (whole, ["--link", "missing.json"], 1, "missing.json"),
                (whole, ["--hosts", "0"], 2, "--hosts")):
            result = self.run_thinwire(lines, "advise", *arguments)
            self.assertEqual((result.returncode, result.stdout), (code, ""), result.stderr)
            self.assertIn(words, result.stderr)
            self.assertEqual(result.stderr.count("\n"), 1, result.stderr)


class Simulate(LogTest):
    def simulate(self, *arguments):
        result = self.run_thinwire(log_lines(1e-8 * BYTES), "simulate", "--json", *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        return {row["world"]: row for row in json.loads(result.stdout)["rows"]}

    def test_ten_thousand_ranks(self):
        usual = ("--setting", "quantize(bits=4)", "--ranks", "10,100,1000,10000", "--latency", 1e-4)
        ring, tree = self.simulate(*usual), self.simulate(*usual, "--route", "tree")
        self.assertEqual(sorted(ring), [10, 100, 1000, 10000])
        for rows in (ring, tree):
            # Twice the payload at most, and a header for each other rank there and back.
            for world, row in rows.items():
                self.assertLess(row["sent_bytes"], 2 * BYTES / 7.8 + 200 * world)
        # A ring has 2 (W - 1) latencies, a tree 2 log2 W.
        grows = ring[10000]["uncompressed_step_seconds"] - ring[1000]["uncompressed_step_seconds"]
        self.near(grows, 2 * 9000 * 1e-4)
        grows = tree[10000]["uncompressed_step_seconds"] - tree[1000]["uncompressed_step_seconds"]
        self.near(grows, 2 * 4 * 1e-4, 0.2)

    def test_jitter_waits_for_the_slowest(self):
        calm = self.simulate("--setting", "none", "--ranks", "1000")[1000]
        shaken = self.simulate("--setting", "none", "--ranks", "1000", "--jitter", 0.1)[1000]
        # sqrt(2 ln 1000) is 3.72 deviations.
        self.near(shaken["step_seconds"] - calm["step_seconds"],
                  0.372 * (FORWARD + BACKWARD + REST))

    def test_memory_and_control(self):
        none = self.simulate("--setting", "none", "--ranks", "8,64")
        self.assertEqual((none[8]["memory_bytes"], none[8]["control_bytes"]), (0, 0))
        onebit = self.simulate("--setting", "onebit", "--ranks", "8,64,10000")
        # A residual, and that of an owner's part.
        self.assertGreater(onebit[8]["memory_bytes"], BYTES * 9 / 8)
        self.assertLess(onebit[8]["memory_bytes"], 1.5 * BYTES)
        # An agreement, and a header of each frame there and back; of the matrix's 256 blocks each
        # has an owner at most.
        for world, row in onebit.items():
            headers = 2 * min(world, 256) * (world - 1) / world
            self.near(row["control_bytes"], 16 + 64 * headers)

    def test_the_picture(self):
        simulation, picture = self.log.with_name("ring.json"), self.log.with_name("scale.svg")
        result = self.run_thinwire(log_lines(1e-8 * BYTES), "simulate", "--json", "--setting",
                                   "onebit", "--ranks", "8,64,10000")
        simulation.write_text(result.stdout)
        subprocess.run([sys.executable, str(PLOT), str(simulation), "-o", str(picture)], check=True)
        text = picture.read_text()
        self.assertIn("onebit, ring", text)
        self.assertIn("memory of a rank", text)
        simulation.write_text('{"rows": [{"world": 8}]}')
        result = subprocess.run([sys.executable, str(PLOT), str(simulation), "-o", str(picture)],
                                capture_output=True, text=True, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("uncompressed_step_seconds missing", result.stderr)

    def test_the_assumptions_are_printed(self):
        result = self.run_thinwire(log_lines(1e-8 * BYTES), "simulate", "--ranks", "8")
        self.assertIn("Assumed: all ranks alike", result.stdout)
        result = self.run_thinwire(log_lines(1e-8 * BYTES), "simulate", "--ranks", "9", "--hosts", 2)
        self.assertIn("9 ranks do not fill 2 hosts evenly", result.stderr)


if __name__ == "__main__":
    unittest.main()
