"""The `thinwire` program: its output, its JSON, and its exit codes."""

import json
import os
import pathlib
import subprocess
import tempfile
import unittest

import jobs

THINWIRE = jobs.PROGRAMS / "thinwire"


def thinwire(*arguments, **variables):
    return jobs.start_alone([THINWIRE, *arguments], **variables)


class ProgramTest(unittest.TestCase):
    def output(self, *arguments, **variables):
        job = thinwire(*arguments, **variables)
        self.assertEqual(job.code, 0, str(job))
        self.assertEqual(job.ranks[0].err, "")
        return job.ranks[0].out

    def complaint(self, code, *arguments):
        job = thinwire(*arguments)
        self.assertEqual((job.code, job.ranks[0].out), (code, ""), str(job))
        self.assertRegex(job.ranks[0].err, r"^thinwire: .*\n$")
        return job.ranks[0].err


class CommandLine(ProgramTest):
    def test_version(self):
        version = pathlib.Path(os.environ["THINWIRE_SOURCE_DIR"], "VERSION").read_text()
        self.assertEqual(self.output("--version"), f"thinwire {version.strip()}\n")

    def test_help_lists_the_commands(self):
        text = self.output("--help")
        for word in ("doctor", "codecs", "Exit code"):
            self.assertIn(word, text)

    def test_wrong_command_lines(self):
        self.assertIn("did you mean doctor?", self.complaint(2, "docter"))
        self.assertIn("--help", self.complaint(2))
        self.assertIn("--frob", self.complaint(2, "doctor", "--frob"))

    def test_full_disk_is_an_error(self):
        with open("/dev/full", "w", encoding="utf-8") as full:
            result = subprocess.run([str(THINWIRE), "codecs", "identity"], stdout=full,
                                    stderr=subprocess.PIPE, text=True, env=jobs.environment(),
                                    check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("cannot write", result.stderr)


class Postmortem(ProgramTest):
    def test_what_is_no_record_of_a_rank_is_named(self):
        with tempfile.TemporaryDirectory() as folder:
            self.assertIn("no files of ranks", self.complaint(1, "doctor", "--postmortem", folder))
            record = pathlib.Path(folder, "rank-0.json")
            self.assertIn("cannot be read", self.complaint(1, "doctor", "--postmortem", record))
            record.write_text('{"version": 2}')
            self.assertIn("this thinwire reads 1",
                          self.complaint(1, "doctor", "--postmortem", folder))
            record.write_text("\x1b[31m no JSON")
            text = self.complaint(1, "doctor", "--postmortem", folder)
            self.assertIn(str(record), text)
            self.assertNotIn("\x1b", text)


class Doctor(ProgramTest):
    def test_json(self):
        found = json.loads(self.output("doctor", "--json", THINWIRE_TIMEOUT="7", THINWIRE_TIMEOT=1))
        self.assertEqual(set(found), {
            "thinwire", "torch", "mpi", "nccl", "cuda", "backends", "simd", "crc32c", "codecs",
            "environment", "unknown_variables", "launcher", "warnings"})
        self.assertEqual(found["torch"]["built"].split("+")[0],
                         found["torch"]["loaded"].split("+")[0])
        backends = {backend["name"]: backend for backend in found["backends"]}
        self.assertEqual(set(backends), {"nccl", "mpi", "gloo"})
        self.assertTrue(backends["gloo"]["usable"])
        self.assertEqual(backends["mpi"]["usable"], jobs.HAS_MPI)
        self.assertEqual(bool(found["mpi"]["built"]), jobs.HAS_MPI)
        for backend in backends.values():
            self.assertTrue(backend["usable"] or backend["reason"], backend)
        self.assertIn(found["simd"]["target"], found["simd"]["targets"])
        self.assertEqual(found["launcher"], {"name": "none", "rank": 0, "size": 1})

        variables = {variable["name"]: variable for variable in found["environment"]}
        timeout = variables["THINWIRE_TIMEOUT"]
        self.assertEqual((timeout["value"], timeout["set"]), ("7", True))
        self.assertFalse(variables["THINWIRE_COMPRESSION"]["set"])
        self.assertTrue(all(variable["description"] for variable in variables.values()))
        self.assertEqual(found["unknown_variables"], ["THINWIRE_TIMEOT"])
        self.assertEqual(len(found["warnings"]), 1)
        self.assertIn("did you mean THINWIRE_TIMEOUT?", found["warnings"][0])

    def test_text_has_every_part(self):
        text = self.output("doctor")
        for title in ("Libraries", "Backends", "Processor", "Codecs", "Environment", "Launcher"):
            self.assertIn(f"\n{title}", text)
        self.assertNotIn("Warnings", text)

    def test_faulty_environment_is_reported(self):
        found = json.loads(self.output("doctor", "--json", THINWIRE_TIMEOUT="soon", RANK="3",
                                       WORLD_SIZE="2"))
        self.assertEqual(found["launcher"]["name"], "contradictory")
        self.assertTrue(any("THINWIRE_TIMEOUT='soon'" in line for line in found["warnings"]))
        self.assertTrue(any("RANK=3" in line for line in found["warnings"]))
        values = {variable["name"]: variable["value"] for variable in found["environment"]}
        self.assertEqual(values["THINWIRE_TIMEOUT"], "soon")

    def test_one_rank_alone_does_not_wait_for_the_others(self):
        if not jobs.HAS_MPI:
            self.skipTest("this build has no MPI")
        only_rank_0 = f"[ $OMPI_COMM_WORLD_RANK = 1 ] || {THINWIRE} doctor --json"
        job = jobs.start_mpirun(2, ["sh", "-c", only_rank_0])
        self.assertEqual(job.code, 0, str(job))
        found = json.loads(job.ranks[0].out)
        self.assertEqual(found["launcher"], {"name": "mpirun", "rank": 0, "size": 2})


class Codecs(ProgramTest):
    def rows(self, *specs):
        found = json.loads(self.output("codecs", "--json", *specs))
        self.assertEqual((found["numel"], found["dtype"]), (1024 * 1024, "float32"))
        return found["codecs"]

    def test_every_codec_has_a_row(self):
        rows = self.rows()
        names = [row["name"] for row in rows]
        self.assertEqual(len(set(names)), len(names))
        self.assertTrue({"identity", "quantize", "topk", "powersgd"} <= set(names), names)
        for row in rows:
            self.assertTrue(row["summary"], row)
            # A codec may lack a default for a parameter; then it says so.
            self.assertTrue("missing" in row or 0 < row["bytes"] <= 4 * 1024 * 1024, row)

    def test_bytes_of_given_specs(self):
        rows = self.rows("quantize(bits=2)", "topk(density=0.01);identity")
        self.assertEqual([row["name"] for row in rows], ["quantize", "topk", "identity"])
        # 2 bits an entry; per 1024 of them two numbers of at most 8 bytes.
        entries = 1024 * 1024 * 2 // 8
        self.assertTrue(entries < rows[0]["bytes"] <= entries + 1024 * 16, rows[0])
        # int(1 %) values of 4 bytes; an index takes at least H(0.01) / 0.01 = 8.08 bits.
        self.assertTrue(5 * 10485 < rows[1]["bytes"] < 8 * 10486, rows[1])
        self.assertEqual(rows[2]["bytes"], 4 * 1024 * 1024)
        self.assertTrue(rows[2]["traits"]["lossless"])
        self.assertFalse(rows[0]["traits"]["lossless"])

    def test_text(self):
        text = self.output("codecs", "identity")
        self.assertRegex(text, r"identity +4,194,304 +1\.00x +lossless")

    def test_errors_name_what_is_wrong(self):
        self.assertIn("did you mean 'quantize'?", self.complaint(1, "codecs", "quantise(bits=4)"))
        self.assertIn("'bits'", self.complaint(1, "codecs", "identity", "quantize(bits=9)"))


if __name__ == "__main__":
    unittest.main()
