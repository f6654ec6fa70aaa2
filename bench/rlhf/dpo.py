#!/usr/bin/env python3
"""Runs one DPO job with Shoal and with TRL and compares losses first, then time a step and memory.

    PEERS_PYTHON=<python of requirements.txt> bench/rlhf/dpo.py [--repeats 3] [--lora] [--loss ipo]

The job: a Llama from random weights (saved once, read by both), pairs of made-up answers in file
order, AdamW at a constant rate, one process of two threads, float32. TRL holds a copy of the model
as its reference and asks it every step; Shoal asks the reference about all pairs before the first
step (TRL does so with --precompute). With --lora both go on from the same fresh adapters of q and v, rank 8.
Each measurement is a JSON line; then a table follows. Cases take turns, so that a slow minute of
the machine hits both.
"""

import argparse

from side_by_side import STEPS, compare, run_shoal, run_trl

RECIPE = """\
task: dpo
run: {{name: dpo, seed: 1}}
model:
  name_or_path: {model}
  init: pretrained
tokenizer: {{name_or_path: {tokenizer}}}
data: {{train: [{{path: {pairs}}}], seq_length: 256, shuffle: false}}
training: {{max_steps: {steps}, global_batch_size: 8, gradient_accumulation_steps: 1, max_grad_norm: 1.0}}
optimizer: {{name: adamw, learning_rate: 1.0e-4, adam_beta1: 0.9, adam_beta2: 0.999, adam_epsilon: 1.0e-8}}
scheduler: {{type: constant}}
preference: {{loss: {loss}, beta: 0.1}}
checkpoint: {{export_hf: never}}
logging: {{steps: 1, report_to: [jsonl]}}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loss", choices=["dpo", "ipo"], default="dpo")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--precompute", action="store_true", help="TRL too asks its reference once, before the steps")
    options = parser.parse_args()

    def shoal(work):
        recipe = RECIPE.format(
            model=work / ("adapters" if options.lora else "model"),
            tokenizer=work / "model",
            pairs=work / "pairs.jsonl",
            steps=STEPS,
            loss=options.loss,
        )
        rows, figures = run_shoal(work, recipe)
        return dict(losses=[row["loss"] for row in rows], **figures)

    def trl(work):
        flags = [f"--{name}" for name in ("lora", "precompute") if getattr(options, name)]
        return run_trl(work, "trl_dpo.py", "--loss", options.loss, *flags)

    labels = dict(loss=options.loss, lora=options.lora)
    results = compare(8 * STEPS, {"shoal": shoal, "trl": trl}, options.repeats, labels)
    ours, theirs = results["shoal"][0]["losses"], results["trl"][0]["losses"]
    worst = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
    print(f"largest relative difference of {len(ours)} losses: {worst:.2e}")


if __name__ == "__main__":
    main()
