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
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

from dpo import make_pairs

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STEPS, WARM_UP = 10, 3
THREADS = 2

RECIPE = """\
task: grpo
run: {{name: grpo, output_dir: {out}, seed: 1}}
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


def run_shoal(work):
    out = work / "shoal"
    shutil.rmtree(out, ignore_errors=True)
    reward, recipe = work / "reward.py", work / "grpo.yaml"
    reward.write_text(REWARD)
    recipe.write_text(
        RECIPE.format(
            out=out,
            model=work / "model",
            prompts=work / "pairs.jsonl",
            steps=STEPS,
            python=sys.executable,
            reward=reward,
        )
    )
    shoal = os.environ.get("SHOAL", str(ROOT / "build/release/shoal"))
    environment = dict(os.environ, OMP_NUM_THREADS=str(THREADS))
    done = subprocess.run(
        [shoal, "run", str(recipe), "-n", "1"], env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    return dict(
        step_s=statistics.median(row["step_seconds"] for row in rows[WARM_UP:]),
        answer_tokens=statistics.mean(row["answer_tokens"] for row in rows[WARM_UP:]),
        peak_mb=max(row["peak_rss_bytes"] for row in rows) / 1e6,
    )


def run_trl(work):
    out = work / "trl.json"
    command = [os.environ["PEERS_PYTHON"], str(HERE / "trl_grpo.py"), "--work", str(work), "--out", str(out)]
    command += ["--steps", str(STEPS), "--threads", str(THREADS)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    result = json.loads(out.read_text())
    result["step_s"] = statistics.median(result.pop("step_seconds")[WARM_UP:])
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    work = pathlib.Path(tempfile.mkdtemp(prefix="shoal-grpo-"))
    try:
        make_pairs(work / "pairs.jsonl", 2 * STEPS)
        subprocess.run(
            [os.environ["PEERS_PYTHON"], str(HERE / "trl_dpo.py"), "--work", str(work), "--prepare"], check=True
        )
        programs = {"shoal": run_shoal, "trl": run_trl}
        results = {name: [] for name in programs}
        for repeat in range(options.repeats):
            for name in sorted(programs, reverse=repeat % 2 == 1):
                result = programs[name](work)
                print(json.dumps(dict(program=name, **result)), flush=True)
                results[name].append(result)
        step = {name: statistics.median(r["step_s"] for r in rows) for name, rows in results.items()}
        memory = {name: statistics.median(r["peak_mb"] for r in rows) for name, rows in results.items()}
        tokens = {name: statistics.median(r["answer_tokens"] for r in rows) for name, rows in results.items()}
        for name in programs:
            print(
                f"{name:6} {step[name] * 1000:8.1f} ms a step of answers of {tokens[name]:.1f} tokens"
                f" {memory[name]:8.0f} MB"
            )
        print(f"times faster: {step['trl'] / step['shoal']:.2f}   share of memory: {memory['shoal'] / memory['trl']:.2f}")
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
