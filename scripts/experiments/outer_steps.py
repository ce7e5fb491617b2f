#!/usr/bin/env python3
"""Outer steps of four replicas of a small language model: codecs, learning rates and momenta.

    PYTHONPATH=build/release/python outer_steps.py [--specs "none 1 0;ternary(density=0.05) 1 0.5"]
        [--seeds 3] [--steps 500] [--out results/outer_steps.json]

Replicas train with AdamW and meet every 20 steps (thinwire.OuterOptimizer). A setting is a codec, the
outer learning rate and the outer momentum, with an n behind it for Nesterov's. Bits are those that an
element took one way. A run that the file of results has already is not repeated.
"""

import language_runs
from small_transformer import loss_of

INNER_STEPS = 20
TODAY, DECAYED = "ternary(density=0.05)", "ternary(density=0.05, residual_decay=0.95)"
SETTINGS = (f"{TODAY} 0.7 0.9n", f"{TODAY} 1 0", f"{DECAYED} 0.7 0.9n", f"{DECAYED} 1 0",
            f"{DECAYED} 1 0.5n", f"{DECAYED} 1 0.5", f"{DECAYED} 0.7 0.5n", "none 0.7 0.9n",
            "none 1 0", "none 1 0.5n", "none 1 0.5", "ecsq(bits=1, residual_decay=0.95) 0.7 0.9n",
            "ecsq(bits=1, residual_decay=0.95) 1 0", "ecsq(bits=1, residual_decay=0.95) 1 0.5n",
            "ecsq(bits=1, residual_decay=0.95) 1 0.5")


def train(training, setting, seed):
    import thinwire

    codec, rate, momentum = setting.rsplit(" ", 2)
    model = training.model(seed)
    inner = training.optimizer(model)
    optimizer = thinwire.OuterOptimizer(
        model, inner, inner_steps=INNER_STEPS, learning_rate=float(rate),
        momentum=float(momentum.rstrip("n")), nesterov=momentum.endswith("n"), compression=codec,
        seed=seed)
    for _, batch in training.steps(seed, inner):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    if training.options.steps % INNER_STEPS != 0:
        optimizer.outer_step()
    stats = optimizer.stats()
    return {"loss": training.held_out_loss(model),
            "bits": 32 * stats["sent_bytes"] / stats["dense_bytes"], "meetings": stats["outer_steps"]}


def main():
    options, settings = language_runs.parse(__doc__.splitlines()[0], "outer_steps.json", SETTINGS)
    language_runs.run(options, settings, train)
    language_runs.print_table(options, settings)


if __name__ == "__main__":
    main()
