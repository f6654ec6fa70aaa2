#!/usr/bin/env python3
"""Runs one GRPO job with Shoal and with TRL and compares time a step and memory.

    PEERS_PYTHON=<python of requirements.txt> bench/rlhf/grpo.py [--repeats 3]

The job: a Llama from random weights (saved once, read by both), 2 prompts of 24 words a step, 4
answers each of up to 64 tokens, the share of vowels as reward, KL to a copy of the model in the
loss, AdamW at a constant rate, one process of two threads, float32. Shoal asks the reward of a
Python program over a pipe. Answers are drawn by generators that differ, so losses are not compared
here: tests/trainer/rlhf/trl_test.cc holds them, and their gradients, to TRL's on fixed tensors.
Each measurement is a JSON line; then a table follows. Cases take turns, so that a slow minute of
the machine hits both.
"""

import argparse
import statistics
import sys

from side_by_side import STEPS, WARM_UP, compare, run_shoal, run_trl

RECIPE = """\
task: grpo
run: {{name: grpo, seed: 1}}
model: {{name_or_path: {model}, init: pretrained}}
rlhf:
  prompts: {prompts}
  rewards: [{{kind: program, command: "{python} {reward}"}}]
  rollout: {{prompts: 2, group_size: 4, max_new_tokens: 64}}
  kl: {{coef: 0.04, unbiased_gradient: false}}
training: {{max_steps: {steps}, global_batch_size: 8, gradient_accumulation_steps: 1, max_grad_norm: 1.0}}
optimizer: {{name: adamw, learning_rate: 1.0e-5, adam_beta1: 0.9, adam_beta2: 0.999, adam_epsilon: 1.0e-8}}
scheduler: {{type: constant}}
checkpoint: {{export_hf: never}}
logging: {{steps: 1, report_to: [jsonl]}}
"""
REWARD = """\
import json, sys
for line in sys.stdin:
    text = json.loads(line)["completion"]
    print(sum(c in "aeiou" for c in text) / (len(text) + 1), flush=True)
"""


def shoal(work):
    reward = work / "reward.py"
    reward.write_text(REWARD)
    recipe = RECIPE.format(
        model=work / "model", prompts=work / "pairs.jsonl", steps=STEPS, python=sys.executable, reward=reward
    )
    rows, figures = run_shoal(work, recipe)
    return dict(answer_tokens=statistics.mean(row["answer_tokens"] for row in rows[WARM_UP:]), **figures)


def trl(work):
    return run_trl(work, "trl_grpo.py")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    results = compare(2 * STEPS, {"shoal": shoal, "trl": trl}, options.repeats, {})
    for name, rows in results.items():
        tokens = statistics.median(row["answer_tokens"] for row in rows)
        print(f"{name:6} answers of {tokens:.1f} tokens")


if __name__ == "__main__":
    main()
