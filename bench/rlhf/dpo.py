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
import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STEPS, WARM_UP = 10, 3
THREADS = 2

RECIPE = """\
task: dpo
run: {{name: dpo, output_dir: {out}, seed: 1}}
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


def make_pairs(path, count):
    """Prompts of 24 words, answers of 24 to 48."""
    rng = random.Random(5)
    text = (ROOT / "LICENSE").read_text().split()

    def words(n):
        first = rng.randrange(len(text) - n)
        return " ".join(text[first : first + n])

    with open(path, "w") as file:
        for _ in range(count):
            row = dict(prompt=words(24))
            for key in ("chosen", "rejected"):
                row[key] = " " + words(rng.randint(24, 48))
            file.write(json.dumps(row) + "\n")


def run_shoal(work, options):
    out = work / "shoal"
    shutil.rmtree(out, ignore_errors=True)
    recipe = work / "dpo.yaml"
    recipe.write_text(
        RECIPE.format(
            out=out,
            model=work / ("adapters" if options.lora else "model"),
            tokenizer=work / "model",
            pairs=work / "pairs.jsonl",
            steps=STEPS,
            loss=options.loss,
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
        losses=[row["loss"] for row in rows],
        step_s=statistics.median(row["step_seconds"] for row in rows[WARM_UP:]),
        peak_mb=max(row["peak_rss_bytes"] for row in rows) / 1e6,
    )


def run_trl(work, options):
    out = work / "trl.json"
    command = [os.environ["PEERS_PYTHON"], str(HERE / "trl_dpo.py"), "--work", str(work), "--out", str(out)]
    command += ["--steps", str(STEPS), "--loss", options.loss, "--threads", str(THREADS)]
    command += ["--lora"] if options.lora else []
    command += ["--precompute"] if options.precompute else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    result = json.loads(out.read_text())
    result["step_s"] = statistics.median(result.pop("step_seconds")[WARM_UP:])
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loss", choices=["dpo", "ipo"], default="dpo")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--precompute", action="store_true", help="TRL too asks its reference once, before the steps")
    options = parser.parse_args()
    work = pathlib.Path(tempfile.mkdtemp(prefix="shoal-dpo-"))
    try:
        make_pairs(work / "pairs.jsonl", 8 * STEPS)
        subprocess.run(
            [os.environ["PEERS_PYTHON"], str(HERE / "trl_dpo.py"), "--work", str(work), "--prepare"], check=True
        )
        programs = {"shoal": run_shoal, "trl": run_trl}
        results = {name: [] for name in programs}
        for repeat in range(options.repeats):
            for name in sorted(programs, reverse=repeat % 2 == 1):
                result = programs[name](work, options)
                print(json.dumps(dict(program=name, loss=options.loss, lora=options.lora, **result)), flush=True)
                results[name].append(result)
        ours, theirs = results["shoal"][0]["losses"], results["trl"][0]["losses"]
        worst = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
        print(f"largest relative difference of {len(ours)} losses: {worst:.2e}")
        step = {name: statistics.median(r["step_s"] for r in rows) for name, rows in results.items()}
        memory = {name: statistics.median(r["peak_mb"] for r in rows) for name, rows in results.items()}
        for name in programs:
            print(f"{name:6} {step[name] * 1000:8.1f} ms a step {memory[name]:8.0f} MB")
        print(f"times faster: {step['trl'] / step['shoal']:.2f}   share of memory: {memory['shoal'] / memory['trl']:.2f}")
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
