#!/usr/bin/env python3
"""PyTorch's own DistributedDataParallel with its PowerSGD hook, on the task of train_fashion_mnist.

Started like a rank of torchrun (RANK, WORLD_SIZE, MASTER_ADDR, ...). Model, data, order of the
images and hyperparameters are those of train_fashion_mnist --model mlp, and so is the log.
"""

import argparse
import gzip
import json
import pathlib
import time

import numpy
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

MEAN, DEVIATION = 0.2860, 0.3530


def read_idx(path, header):
    with gzip.open(path) as file:
        return numpy.frombuffer(file.read(), numpy.uint8, offset=header).copy()


def read_set(folder, prefix):
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", 8)
    return ((torch.from_numpy(images).float() / 255 - MEAN) / DEVIATION,
            torch.from_numpy(labels).long())


def make_model():
    nn = torch.nn
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256),
                         nn.ReLU(), nn.Linear(256, 10))


def accuracy_of(model, images, labels, rank, world):
    with torch.no_grad():
        mine = torch.arange(rank, len(labels), world)
        correct = sum((model(images[part]).argmax(1) == labels[part]).sum()
                      for part in mine.split(500))
    dist.all_reduce(correct)
    return correct.item() / len(labels)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rank", type=int, default=4, help="rank of the approximation")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--eval-every", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target-accuracy", type=float, default=2)
    parser.add_argument("--data", type=pathlib.Path,
                        default=pathlib.Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--log", type=pathlib.Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(options.seed)
    model = make_model()
    ddp = torch.nn.parallel.DistributedDataParallel(model)
    # No steps of plain all-reduce first: the other rows have none either.
    ddp.register_comm_hook(powerSGD_hook.PowerSGDState(
        None, matrix_approximation_rank=options.rank, start_powerSGD_iter=2),
        powerSGD_hook.powerSGD_hook)
    optimizer = torch.optim.SGD(model.parameters(), options.lr, momentum=0.9)
    images, labels = read_set(options.data, "train")
    test_images, test_labels = read_set(options.data, "t10k")
    steps_per_epoch = len(labels) // (options.batch_size * world)
    events, seconds, accuracy, began = [], 0.0, 0.0, time.perf_counter()
    for step in range(options.steps):
        epoch, in_epoch = divmod(step, steps_per_epoch)
        if in_epoch == 0:
            generator = torch.Generator().manual_seed(options.seed * 1_000_003 + epoch + 1)
            order = torch.randperm(len(labels), generator=generator)[rank::world]
        batch = order[in_epoch * options.batch_size:(in_epoch + 1) * options.batch_size]
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(ddp(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        loss.item()
        if (step + 1) % options.eval_every == 0 or step + 1 == options.steps:
            seconds += time.perf_counter() - began
            accuracy = accuracy_of(model, test_images, test_labels, rank, world)
            events.append({"event": "test", "step": step + 1, "test_accuracy": accuracy,
                           "train_seconds": seconds})
            began = time.perf_counter()
            if accuracy >= options.target_accuracy:
                break
    if rank == 0:
        events.append({"event": "result", "compression": f"PyTorch PowerSGD rank {options.rank}",
                       "world_size": world, "test_accuracy": accuracy, "train_seconds": seconds})
        options.log.write_text("".join(json.dumps(event) + "\n" for event in events))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
