"""A transformers.Trainer whose gradients are compressed."""

import json
import os
import tempfile
import unittest

os.environ["HF_HUB_OFFLINE"] = "1"

from free_port import free_port
from ranks import error_of, run_ranks

import torch

try:
    import accelerate  # noqa: F401
    import transformers
    MISSING = ""
except ImportError as error:
    MISSING = f"{error}; pip install -r requirements-test.txt accelerate"


def make_trainer(folder, backend="gloo", **more):
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=32, n_positions=16, n_embd=32, n_layer=1, n_head=2))
    data = [{"input_ids": row, "labels": row} for row in torch.randint(0, 32, (64, 16))]
    arguments = transformers.TrainingArguments(
        output_dir=folder, per_device_train_batch_size=4, max_steps=6, logging_steps=3,
        use_cpu=True, report_to=[], ddp_backend=backend, disable_tqdm=True,
        **{"save_strategy": "no", **more})
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


def train_whole(rank, world, folder, port):
    """Weights after six steps with checkpoints, after the last three from one, and from one that has
    lost thinwire's part."""
    import thinwire
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    weights = []
    for resume in (None, True, True):
        trainer = make_trainer(folder, save_strategy="steps", save_steps=3)
        compression = thinwire.scalars.compress_trainer(trainer, "topk(density=0.05)")
        trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-3" if resume else None)
        assert compression.handle.stats()["steps"] in (3, 6)
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
        if len(weights) == 2:
            os.remove(f"{folder}/checkpoint-3/thinwire-{rank}.pt")
    torch.distributed.destroy_process_group()
    return [torch.equal(other, weights[0]) for other in weights[1:]]


def accelerated(rank, world, port):
    """accelerate by itself."""
    import thinwire
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
    handle = thinwire.compress(model, "quantize(bits=4)")
    for step in range(4):
        torch.manual_seed(10 * step + rank)
        with accelerator.accumulate(model):
            accelerator.backward(model(torch.randn(8, 64)).pow(2).mean())
            optimizer.step()
            optimizer.zero_grad()
    torch.distributed.destroy_process_group()
    return handle.stats()["steps"], handle.stats()["ratio"], model.module.weight.detach()


def alone(rank, world, folder):
    import thinwire
    trainer = make_trainer(folder, None)
    thinwire.scalars.compress_trainer(trainer, "quantize(bits=4)")
    return error_of(trainer.train)


@unittest.skipIf(MISSING, MISSING)
class Trainer(unittest.TestCase):
    def test_trains_compressed_and_logs(self):
        with tempfile.TemporaryDirectory() as folder:
            results = run_ranks(2, job, folder, free_port(), backend=None)
        for stats, steps, weights in results:
            self.assertEqual(stats["steps"], 6)
            self.assertGreater(stats["ratio"], 4)
            self.assertEqual(steps[:2], [3, 6])
            self.assertTrue(torch.equal(weights, results[0][2]))

    def test_goes_on_from_its_checkpoint_with_the_same_bits(self):
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(run_ranks(2, train_whole, folder, free_port(), backend=None),
                             [[True, False]] * 2)

    def test_accelerate_by_itself(self):
        results = run_ranks(2, accelerated, free_port(), backend=None)
        for steps, ratio, weight in results:
            self.assertEqual(steps, 2)
            self.assertGreater(ratio, 4)
            self.assertTrue(torch.equal(weight, results[0][2]))

    def test_one_rank_is_told_that_there_is_nothing_to_compress(self):
        with tempfile.TemporaryDirectory() as folder:
            (_, text), = run_ranks(1, alone, folder, backend=None)
        self.assertIn("has not wrapped the model", text)


if __name__ == "__main__":
    unittest.main()
