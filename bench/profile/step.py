#!/usr/bin/env python3
"""Where one training step goes: shares by kind of work, at the sizes that the peers are compared at.

    bench/profile/step.py --cases S:float32,S:bfloat16,M:float32,M:bfloat16,L:float32

Runs the program on two ranks of one thread with `profiling` (docs/profiling.md) and prints a table
of its figures: means over ranks and recorded steps.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "bench", "peers"))
import workload  # noqa: E402

FIRST, STEPS = 3, 3  # Recorded
KINDS = ["matmul", "attention", "norm", "activation", "cross_entropy", "embedding", "optimizer", "other",
         "communication", "waiting"]  # fmt: skip

RECIPE = """\
run: {{name: step, output_dir: {out}, seed: 1}}
model:
  dtype: {dtype}
  config:
    model_type: llama
    hidden_size: {hidden}
    num_hidden_layers: {layers}
    num_attention_heads: {heads}
    num_key_value_heads: {heads}
    intermediate_size: {ffn}
    vocab_size: {vocab}
    max_position_embeddings: 1024
    tie_word_embeddings: false
data: {{train: [{{path: {tokens}}}], seq_length: {seq_length}, packing: false, shuffle: false}}
training: {{max_steps: {max_steps}, global_batch_size: {batch}, gradient_accumulation_steps: 1}}
optimizer: {{name: adamw, learning_rate: 1.0e-4}}
scheduler: {{type: constant}}
zero: {{stage: {stage}, overlap_comm: {overlap}}}
checkpoint: {{export_hf: never}}
logging: {{steps: 1, report_to: [jsonl]}}
profiling: {{start_step: {first}, steps: {steps}}}
"""


def write_recipe(folder, size, **options):
    """A recipe of random tokens; the paths of the recipe and of its run's folder."""
    tokens = os.path.join(folder, f"tokens-{size}.json")
    c = workload.SIZES[size]
    if not os.path.exists(tokens):
        numbers = random.Random(1)
        rows = [
            [numbers.randrange(3, c["vocab"]) for _ in range(c["seq_length"])]
            for _ in range((FIRST + STEPS + 1) * c["batch"])
        ]
        with open(tokens, "w") as file:
            json.dump({"input_ids": rows}, file)
    out = os.path.join(folder, "run")
    shutil.rmtree(out, ignore_errors=True)
    recipe = os.path.join(folder, "recipe.yaml")
    with open(recipe, "w") as file:
        file.write(
            RECIPE.format(
                out=out,
                tokens=tokens,
                max_steps=FIRST + STEPS - 1,
                first=FIRST,
                steps=STEPS,
                **{"overlap": "auto", **options},
                **c,
            )
        )
    return recipe, out


def read_metrics(out):
    """Rows of the steps that were recorded, and the row of the profile."""
    with open(os.path.join(out, "metrics.jsonl")) as file:
        rows = [json.loads(line) for line in file]
    steps = [row for row in rows if "loss" in row and row["step"] >= FIRST]
    return steps, next(row for row in rows if "profile_rank0_seconds" in row)


def mean_over_ranks(profile, key, ranks=2):
    return sum(profile[f"profile_rank{rank}_{key}"] for rank in range(ranks)) / ranks


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shoal", default=os.path.join(ROOT, "build/release/shoal"))
    parser.add_argument("--cases", default="S:float32,S:bfloat16,M:float32,M:bfloat16,L:float32")
    parser.add_argument("--stage", type=int, default=3)
    args = parser.parse_args()
    print("| size | s a step | " + " | ".join(k.replace("_", " ") for k in KINDS)
          + " | products, of the peak |")  # fmt: skip
    print("|---" * (len(KINDS) + 3) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for case in args.cases.split(","):
            size, dtype = case.split(":")
            recipe, out = write_recipe(folder, size, dtype=dtype, stage=args.stage)
            subprocess.run(
                [args.shoal, "run", recipe, "-n", "2"],
                check=True,
                capture_output=True,
                env=dict(os.environ, OMP_NUM_THREADS="1"),
            )
            steps, profile = read_metrics(out)
            seconds = mean_over_ranks(profile, "seconds")
            shares = [mean_over_ranks(profile, kind + "_seconds") / seconds for kind in KINDS]
            print(f"| {size} {dtype} | {seconds / STEPS:.3f} | "
                  + " | ".join(f"{100 * share:.1f} %" for share in shares)
                  + f" | {100 * mean_over_ranks(profile, 'products_of_peak'):.0f} % |",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
