"""`thinwire report` on logs of real runs, and its page in a real browser: every chart has marks, and
no request leaves it. The pictures are kept beside the test results."""

import html.parser
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples"))
import training  # noqa: E402, pylint: disable=wrong-import-position
from training import jobs  # noqa: E402, pylint: disable=wrong-import-position

THINWIRE = jobs.PROGRAMS / "thinwire"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
               None)
PICTURES = pathlib.Path(os.environ["THINWIRE_BINARY_DIR"]) / "test-results"
CHARTS = {"comparison": 2, "step-parts": 8, "loss-time": 2, "loss-bytes": 2, "accuracy-time": 2,
          "accuracy-bytes": 2, "bytes-by-layer": 12, "error-by-layer": 12, "plan": 12, "timeline": 12}


def report(*arguments):
    return subprocess.run([str(THINWIRE), "report", *map(str, arguments)], capture_output=True,
                          text=True, env=jobs.environment(), check=False)


class Marks(html.parser.HTMLParser):
    """How many marks the figures of each chart have, and what of the page names another place."""

    def __init__(self, page):
        super().__init__()
        self.marks, self.chart, self.elsewhere, self.drawn = {}, None, [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "html":
            self.drawn = attributes.get("data-drawn") == "yes"
        if tag == "figure":
            self.chart = attributes["data-chart"]
            self.marks.setdefault(self.chart, 0)
        if "mark" in (attributes.get("class") or "").split():
            self.marks[self.chart] += 1
        self.elsewhere += [value for name, value in attrs if name in ("src", "href")]


class Browser:
    """Headless, with a profile and a log of its own network."""

    def __init__(self, folder):
        self.folder = folder

    def run(self, url, *options):
        net = self.folder / "net.json"
        result = subprocess.run(
            [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--disable-dev-shm-usage", "--disable-background-networking", "--disable-sync",
             "--disable-component-update", "--disable-default-apps", "--hide-scrollbars",
             "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
             f"--user-data-dir={self.folder / 'profile'}", f"--log-net-log={net}", *options, url],
            capture_output=True, text=True, timeout=120, check=False)
        return result.stdout, self.requested(net)

    @staticmethod
    def requested(net):
        """The addresses that the page asked for; the browser asks for some on its own account."""
        log = json.loads(net.read_text())
        start = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
        asked = [event["params"] for event in log["events"]
                 if event["type"] == start and "url" in event.get("params", {})]
        return sorted({params["url"] for params in asked
                       if params["network_isolation_key"].startswith("file:")})


class Report(training.TrainingTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.files = []
        for name, compression in (("none", "none"), ("four-bits", "quantize(bits=4)")):
            log, trace = cls.folder / f"{name}.jsonl", cls.folder / f"{name}.trace.json"
            command = cls.command(cls, compression=compression, epochs=2, log=log, timeline=trace)
            job = jobs.start_by_hand([command] * 2)
            assert job.code == 0, str(job)
            cls.files += [log, trace]
        cls.page = cls.folder / "report.html"
        result = report(*cls.files, "-o", cls.page)
        assert result.returncode == 0, result.stderr
        cls.said = result.stdout

    def test_says_what_it_wrote(self):
        self.assertEqual(self.said, f"{self.page}: 2 runs, 2 timelines\n")

    def test_the_log_tells_of_layers_and_of_a_step(self):
        events = [json.loads(line) for line in self.files[2].read_text().splitlines()]
        layers = [event for event in events if event["event"] == "layers"][-1]["layers"]
        first = next(layer for layer in layers if layer["name"] == "layers.1.weight")
        self.assertEqual(first["bytes"], 784 * 512 * 4)
        self.assertAlmostEqual(first["bytes"] / first["payload_bytes"], 7.9, delta=0.2)
        self.assertTrue(0.01 < first["relative_error"] < 0.5, first)
        profile = [event for event in events if event["event"] == "profile"][-1]
        parts = ("forward_seconds", "backward_seconds", "exposed_seconds")
        self.assertTrue(all(profile[part] > 0 for part in parts), profile)
        names = [name for bucket in profile["buckets"] for name in bucket["layers"]]
        self.assertEqual(sorted(names), sorted(layer["name"] for layer in layers))

    @unittest.skipUnless(BROWSER, "there is no chromium here")
    def test_every_chart_has_marks_and_nothing_leaves_the_page(self):
        with tempfile.TemporaryDirectory() as folder:
            browser = Browser(pathlib.Path(folder))
            page, requested = browser.run(self.page.as_uri(), "--dump-dom")
            found = Marks(page)
            self.assertTrue(found.drawn, page[-2000:])
            self.assertEqual(set(found.marks), set(CHARTS))
            for chart, least in CHARTS.items():
                self.assertGreaterEqual(found.marks[chart], least, chart)
            self.assertEqual(found.elsewhere, [])
            self.assertEqual(requested, [])
            for name, options in (("light", []), ("dark", ["--force-dark-mode"])):
                picture = PICTURES / f"report-{name}.png"
                picture.unlink(missing_ok=True)
                browser.run(self.page.as_uri(), f"--screenshot={picture}",
                            "--window-size=1180,2900", *options)
                self.assertGreater(picture.stat().st_size, 20000)

    @unittest.skipUnless(BROWSER, "there is no chromium here")
    def test_a_request_would_be_seen_and_is_refused(self):
        # The log of the network does show a page that asks for something ...
        asks = '<img src="http://127.0.0.1:9/picture.png">'
        with tempfile.TemporaryDirectory() as folder:
            other = pathlib.Path(folder) / "other.html"
            other.write_text(f"<html><body>{asks}</body></html>")
            browser = Browser(pathlib.Path(folder))
            self.assertIn("http://127.0.0.1:9/picture.png", browser.run(other.as_uri(), "--dump-dom")[1])
            # ... and the policy of ours keeps it from asking.
            other.write_text(self.page.read_text().replace("<main>", f"<main>{asks}"))
            self.assertNotIn("http://127.0.0.1:9/picture.png",
                             browser.run(other.as_uri(), "--dump-dom")[1])

    def test_errors_are_one_sentence(self):
        broken = self.folder / "broken.jsonl"
        broken.write_text('{"event":"epoch","step":1}\nnonsense\n')
        other = self.folder / "other.txt"
        other.write_text('{"event":"other"}\n')
        for arguments, code, words in (
                ([self.folder / "missing.jsonl", "-o", self.page], 1, "missing.jsonl"),
                ([broken, "-o", self.page], 1, "broken.jsonl: line 2: not valid JSON"),
                ([other, "-o", self.page], 1, "no line of it tells of a training step"),
                ([self.files[0], "-o", self.folder / "no" / "where.html"], 1, "where.html"),
                ([self.files[0]], 2, "--output is required"),
                (["-o", self.page], 2, "files is required")):
            result = report(*arguments)
            self.assertEqual((result.returncode, result.stdout), (code, ""), result.stderr)
            self.assertIn(words, result.stderr)
            self.assertEqual(result.stderr.count("\n"), 1, result.stderr)


if __name__ == "__main__":
    unittest.main()
