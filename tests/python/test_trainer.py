"""A transformers.Trainer whose gradients are compressed."""

import json
import os
import socket
import tempfile
import unittest

os.environ["HF_HUB_OFFLINE"] = "1"

from ranks import error_of, run_ranks

import torch

try:
    import accelerate  # noqa: F401
    import transformers
    MISSING = ""
except ImportError as error:
    MISSING = f"{error}; pip install -r requirements-test.txt accelerate"


def make_trainer(folder, backend="gloo"):
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=32, n_positions=16, n_embd=32, n_layer=1, n_head=2))
    data = [{"input_ids": row, "labels": row} for row in torch.randint(0, 32, (64, 16))]
    arguments = transformers.TrainingArguments(
        output_dir=folder, per_device_train_batch_size=4, max_steps=6, logging_steps=3,
        use_cpu=True, report_to=[], save_strategy="no", ddp_backend=backend, disable_tqdm=True)
    return transformers.Trainer(model, arguments, train_dataset=data)


def job(rank, world, folder, port):
    import thinwire
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    trainer = make_trainer(folder)
    writer = thinwire.scalars.Writer(f"{folder}/log.{rank}")
    compression = thinwire.scalars.compress_trainer(trainer, "quantize(bits=4)", writer=writer)
    trainer.train()
    writer.close()
    with open(f"{folder}/log.{rank}", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    torch.distributed.destroy_process_group()
    return compression.handle.stats(), [line["steps"] for line in lines], weights


def alone(rank, world, folder):
    import thinwire
    trainer = make_trainer(folder, None)
    thinwire.scalars.compress_trainer(trainer, "quantize(bits=4)")
    return error_of(trainer.train)


@unittest.skipIf(MISSING, MISSING)
class Trainer(unittest.TestCase):
    def test_trains_compressed_and_logs(self):
        with tempfile.TemporaryDirectory() as folder, socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            port = listening.getsockname()[1]
            listening.close()
            results = run_ranks(2, job, folder, port, backend=None)
        for stats, steps, weights in results:
            self.assertEqual(stats["steps"], 6)
            self.assertGreater(stats["ratio"], 4)
            self.assertEqual(steps[:2], [3, 6])
            self.assertTrue(torch.equal(weights, results[0][2]))

    def test_one_rank_is_told_that_there_is_nothing_to_compress(self):
        with tempfile.TemporaryDirectory() as folder:
            (_, text), = run_ranks(1, alone, folder, backend=None)
        self.assertIn("has not wrapped the model", text)


if __name__ == "__main__":
    unittest.main()
