"""thinwire under a real Slurm of emulated hosts: every way of starting ranks, and what goes wrong."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time
import unittest

import jobs
import slurm_cluster

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))
import training  # noqa: E402, pylint: disable=wrong-import-position

TEMPLATES = pathlib.Path(os.environ["THINWIRE_SOURCE_DIR"]) / "launch" / "slurm"
PROBE = str(jobs.PROGRAMS / "tests" / "rank_probe")
ELASTIC = str(jobs.PROGRAMS / "tests" / "elastic_rank")
PROGRAM = str(jobs.PROGRAMS / "train_fashion_mnist")
MPIRUN_OPTIONS = ("--allow-run-as-root --mca btl tcp,self --mca btl_tcp_if_include 10.77.0.0/24 "
                  "--mca oob_tcp_if_include 10.77.0.0/24")
# Several ranks share a core here; over the hosts' network alone, as on real hosts.
SURROUNDINGS = {"OMP_NUM_THREADS": "1", "THINWIRE_TIMEOUT": "60", "MPIRUN_OPTIONS": MPIRUN_OPTIONS,
                "OMPI_MCA_btl": "tcp,self", "OMPI_MCA_btl_tcp_if_include": "10.77.0.0/24",
                "PATH": f"{pathlib.Path(jobs.TORCHRUN or '/usr/bin/x').parent}:{os.environ['PATH']}"}


class Slurm(training.TrainingTest):
    @classmethod
    def setUpClass(cls):
        reason = slurm_cluster.why_impossible()
        if reason:
            raise unittest.SkipTest(reason)
        super().setUpClass()
        cls.cluster = slurm_cluster.SlurmCluster(hosts=2)
        cls.cluster.__enter__()
        cls.addClassCleanup(cls.cluster.__exit__)

    def batch(self, template, *command, options=(), **variables):
        """(state of the job at its end, its output), of a template as its users submit it."""
        output = self.folder / f"{template}-{len(os.listdir(self.folder))}.out"
        job = self.cluster.submit(TEMPLATES / f"{template}.sbatch", *command,
                                  options=[f"--output={output}", *options],
                                  environment={**SURROUNDINGS, **variables})
        state = self.cluster.wait(job)
        return state, output.read_text()

    def probes(self, output, size):
        """What the ranks of rank_probe said, in order of their numbers."""
        lines = [json.loads(line) for line in re.findall(r"^\{.*\}$", output, re.MULTILINE)]
        lines.sort(key=lambda line: line["rank"])
        self.assertEqual([line["rank"] for line in lines], list(range(size)), output)
        for line in lines:
            # Three elements, each the sum of 1, 2, ..., size.
            self.assertEqual(line["sum"], 3 * size * (size + 1) // 2)
            self.assertEqual((line["size"], line["local_size"], line["local_rank"]),
                             (size, size // 2, line["rank"] % (size // 2)))
        return lines

    def check_template(self, template, launcher, backend, **variables):
        state, output = self.batch(template, PROBE, **variables)
        self.assertEqual(state, "COMPLETED", output)
        for line in self.probes(output, 4):
            self.assertEqual((line["launcher"], line["backend"]), (launcher, backend))
        self.assertEqual(len({line["host"] for line in self.probes(output, 4)}), 2)

    def test_srun(self):
        self.check_template("srun", "srun", "gloo")

    @unittest.skipUnless(jobs.HAS_MPI, "this build has no MPI")
    def test_srun_with_pmix(self):
        self.check_template("srun_pmix", "srun", "mpi")

    @unittest.skipUnless(jobs.HAS_MPI, "this build has no MPI")
    def test_mpirun_in_a_batch_script(self):
        self.check_template("mpirun", "mpirun", "mpi")

    @unittest.skipUnless(jobs.TORCHRUN, "this LibTorch has no torchrun")
    def test_one_torchrun_a_host(self):
        self.check_template("torchrun", "torchrun", "gloo")

    def test_a_batch_script_without_srun_is_one_process(self):
        script = self.folder / "alone.sbatch"
        script.write_text(f"#!/bin/bash\n{PROBE}\n")
        output = self.folder / "alone.out"
        job = self.cluster.submit(script, options=["-N2", "-n4", f"--output={output}"])
        self.assertEqual(self.cluster.wait(job), "COMPLETED")
        line, = re.findall(r"^\{.*\}$", output.read_text(), re.MULTILINE)
        self.assertEqual((json.loads(line)["size"], json.loads(line)["launcher"]), (1, "none"))

    def test_two_steps_of_a_job_do_not_meet(self):
        script = f"for i in 1 2; do srun --exact -N2 -n2 --mem=100 {PROBE} & done; wait"
        code, output = self.cluster.run("salloc", "-N2", "-n4", "bash", "-c", script,
                                        environment=SURROUNDINGS)
        self.assertEqual(code, 0, output)
        lines = [json.loads(line) for line in re.findall(r"^\{.*\}$", output, re.MULTILINE)]
        self.assertEqual(sorted(line["rank"] for line in lines), [0, 0, 1, 1], output)
        self.assertEqual({line["sum"] for line in lines}, {9})

    def test_an_array_trains_with_several_seeds(self):
        logs = self.folder / "array"
        logs.mkdir()
        script = self.folder / "array.sh"
        # One log an index; $@ ends with --seed=INDEX.
        script.write_text(f'#!/bin/bash\nexec "$@" --log={logs}/$SLURM_ARRAY_TASK_ID.jsonl\n')
        script.chmod(0o755)
        job = self.cluster.submit(
            TEMPLATES / "array.sbatch", script, *self.command(), environment=SURROUNDINGS,
            options=["--array=0-1%2", f"--output={self.folder}/array-%a.out"])
        self.cluster.wait(job)
        results = [json.loads((logs / f"{index}.jsonl").read_text().splitlines()[-1])
                   for index in range(2)]
        self.assertTrue(all(result["replicas_equal"] for result in results), results)
        self.assertEqual(len({result["parameters_crc32c"] for result in results}), 2)

    def test_every_launcher_trains_to_the_same_bits(self):
        found = {}
        templates = ["srun"] + ["srun_pmix", "mpirun"] * jobs.HAS_MPI + ["torchrun"] * bool(
            jobs.TORCHRUN)
        for template in templates:
            log = self.folder / f"same-{template}.jsonl"
            options = ["--ntasks-per-node=1"]
            state, output = self.batch(template, *self.command(log=log), options=options,
                                       RANKS_PER_HOST="1")
            self.assertEqual(state, "COMPLETED", output)
            result = json.loads(log.read_text().splitlines()[-1])
            self.assertEqual(result["world_size"], 2)
            found[template] = result["parameters_crc32c"]
        self.assertEqual(len(set(found.values())), 1, found)

    def test_a_killed_task_ends_the_others_with_its_name(self):
        script = f'[ $SLURM_PROCID = 1 ] && {{ sleep 1; kill -9 $$; }}; exec {PROBE}'
        code, output = self.cluster.run(
            "srun", "-N2", "-n2", "--kill-on-bad-exit=0", "bash", "-c", script,
            environment={**SURROUNDINGS, "THINWIRE_TIMEOUT": "6"})
        self.assertNotEqual(code, 0, output)
        self.assertRegex(output, r"rank 1 (of 2 )?did not come|rank\(s\) 1")

    def test_a_rank_that_is_killed_is_started_again_and_the_others_take_it_in(self):
        once = self.folder / "has-died"
        script = (f'if [ "$SLURM_PROCID" = 1 ] && mkdir {once}; then exec {ELASTIC} ddp 60 kill:15; '
                  f'fi; exec {ELASTIC} ddp 60 hold:40:3')
        state, output = self.batch("elastic", "bash", "-c", script,
                                   THINWIRE=jobs.PROGRAMS / "thinwire")
        self.assertEqual(state, "COMPLETED", output)
        lines = [json.loads(line) for line in re.findall(r"^\{.*\}$", output, re.MULTILINE)]
        ends = [line for line in lines if "end" in line]
        self.assertEqual([line["size"] for line in ends], [4] * 4, output)
        self.assertEqual(len({line["end"] for line in ends}), 1, output)
        self.assertEqual({line["size"] for line in lines if line.get("world") == 2}, {3}, output)

    def test_a_host_without_power_is_named_by_the_others(self):
        with slurm_cluster.SlurmCluster(hosts=3) as cluster:
            process = cluster.start(
                "srun", "-N3", "-n3", "--no-kill", "--kill-on-bad-exit=0", "--wait=0",
                *self.command(epochs=500, threads=1),
                environment={**SURROUNDINGS, "THINWIRE_TIMEOUT": "8"},
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            output = ""
            for line in process.stdout:
                output += line
                if "told by srun" in line:
                    cluster.order("power-off", "n2")
                if output.count("rank(s) 2 of 3 are dead or hung") == 2:
                    break
            process.kill()
            process.communicate()
            self.assertEqual(output.count("rank(s) 2 of 3 are dead or hung"), 2, output)
            # Nothing is lost but the job: the host comes back and takes the next one.
            cluster.run("scancel", "--user=root")
            cluster.order("power-on", "n2")
            code, output = cluster.run("srun", "-N3", "hostname")
            self.assertEqual(code, 0, output)
            self.assertLessEqual({"n0", "n1", "n2"}, set(output.split()), output)

    def test_a_requeued_job_starts_anew(self):
        script = self.folder / "requeue.sbatch"
        script.write_text(f"""#!/bin/bash
echo "run ${{SLURM_RESTART_COUNT:-0}}"
srun -N2 -n2 {PROBE} || exit
[ -n "$SLURM_RESTART_COUNT" ] || sleep 60
""")
        output = self.folder / "requeue.out"
        job = self.cluster.submit(script, environment=SURROUNDINGS, options=[
            "-N2", "-n2", "--requeue", "--open-mode=append", f"--output={output}"])
        deadline = time.monotonic() + 30
        while not output.exists() or output.read_text().count('"rank"') < 2:
            self.assertLess(time.monotonic(), deadline, "the first run did not begin")
            time.sleep(0.1)
        self.cluster.run("scontrol", "requeue", str(job))
        self.assertEqual(self.cluster.wait(job), "COMPLETED", output.read_text())
        text = output.read_text()
        self.assertIn("run 1", text)
        # The step of the second run has the first one's number; its ranks meet each other all the same.
        self.assertEqual(len(re.findall(r'"sum": *9\b', text)), 4, text)

    def test_a_preempted_training_goes_on_with_the_same_bits(self):
        options = {"compression": "topk(density=0.05)", "epochs": 40}
        size = ["--ntasks-per-node=1", "--chdir=/"]
        log = self.folder / "preempt-whole.jsonl"
        state, output = self.batch("srun", *self.command(log=log, **options), options=size)
        self.assertEqual(state, "COMPLETED", output)
        whole = json.loads(log.read_text().splitlines()[-1])
        log, output = self.folder / "preempt.jsonl", self.folder / "preempt.out"
        folder = self.folder / "preempt-state"
        job = self.cluster.submit(
            TEMPLATES / "preempt.sbatch",
            *self.command(log=log, checkpoint=folder, checkpoint_every=0, **options),
            options=[*size, f"--output={output}"], environment=SURROUNDINGS)
        deadline = time.monotonic() + 60
        while not output.exists() or "epoch 2/" not in output.read_text():
            self.assertLess(time.monotonic(), deadline, "the first run did not begin")
            time.sleep(0.05)
        self.cluster.run("scancel", "-s", "USR1", str(job))
        self.assertEqual(self.cluster.wait(job), "COMPLETED", output.read_text())
        text = output.read_text()
        saved = re.search(r"asked to stop; step (\d+) is saved", text)
        self.assertIsNotNone(saved, text)
        self.assertIn(f"going on after step {saved[1]} ", text)
        again = json.loads(log.read_text().splitlines()[-1])
        for key in ("parameters_crc32c", "test_accuracy"):
            self.assertEqual(again[key], whole[key], text)


if __name__ == "__main__":
    unittest.main()
