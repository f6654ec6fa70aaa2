"""Federated averaging beside Flower's simulation and a plain PyTorch loop: one job, all in turn.

    PEERS_PYTHON bench/federated/compare.py [--reps 3] [--clients 10] [--alpha 0.3]

Needs a Python with torch, flwr and scikit-learn. Prints a Markdown table: rounds a second of the rounds
alone, the whole run with its start, and the accuracy that each ends with.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHOAL = os.environ.get("SHOAL", str(ROOT / "build/release/shoal"))
ROUNDS, SEED = 20, 1234


def write_tables(folder, clients, alpha):
    """train.csv (column client, 64 pixels, class) and eval.csv; alpha 0: shuffled and dealt out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x, x_eval, y, y_eval = train_test_split(
        digits.data.astype(np.int64), digits.target, test_size=0.2, random_state=SEED,
        stratify=digits.target)
    rng = np.random.RandomState(SEED)
    owner = np.zeros(len(y), np.int64)
    if alpha == 0:
        for client, rows in enumerate(np.array_split(rng.permutation(len(y)), clients)):
            owner[rows] = client
    else:
        while True:
            for label in range(10):
                rows = rng.permutation(np.where(y == label)[0])
                cuts = (np.cumsum(rng.dirichlet([alpha] * clients)) * len(rows)).astype(int)[:-1]
                for client, part in enumerate(np.split(rows, cuts)):
                    owner[part] = client
            if np.bincount(owner, minlength=clients).min() >= 10:
                break
    names = ",".join(f"p{i}" for i in range(64)) + ",class"
    np.savetxt(folder / "train.csv", np.column_stack([owner, x, y]), "%d", ",",
               header="client," + names, comments="")
    np.savetxt(folder / "eval.csv", np.column_stack([x_eval, y_eval]), "%d", ",", header=names,
               comments="")


def recipe(folder, stacked):
    return f"""
task: federated
run: {{name: compare, output_dir: {folder}/run, seed: {SEED}}}
model:
  config: {{model_type: image_classifier, image_size: 8, max_pixel: 16, num_hidden_layers: 0, hidden_size: 64}}
data:
  train: [{{path: {folder}/train.csv, format: csv}}]
  eval: [{{path: {folder}/eval.csv, format: csv}}]
training: {{max_steps: {ROUNDS}, per_device_train_batch_size: 32, gradient_accumulation_steps: 1, max_grad_norm: 0}}
optimizer: {{name: sgd, learning_rate: 0.1, momentum: 0.9}}
scheduler: {{type: constant}}
federated: {{partition: natural, client_column: client, stacked_clients: {stacked}}}
eval: {{steps: 1}}
checkpoint: {{export_hf: never}}
logging: {{report_to: [jsonl]}}
"""


def run_shoal(folder, ranks, stacked):
    (folder / "recipe.yaml").write_text(recipe(folder, stacked))
    subprocess.run(["rm", "-rf", folder / "run"], check=True)
    begin = time.perf_counter()
    subprocess.run([SHOAL, "run", folder / "recipe.yaml", "-n", str(ranks)], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                   env=dict(os.environ, OMP_NUM_THREADS="1"))
    total = time.perf_counter() - begin
    rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    seconds = [row["step_seconds"] for row in rows if "step_seconds" in row]
    return dict(total_s=total, rounds_s=sum(seconds), round_median_s=statistics.median(seconds),
                accuracy=[row["eval_accuracy"] for row in rows if "eval_accuracy" in row][-1])


def run_peer(folder, name):
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, pathlib.Path(__file__).with_name("flower_peer.py"), name,
         folder / "train.csv", folder / "eval.csv"],
        check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    total = time.perf_counter() - begin
    line = next(l for l in done.stdout.splitlines() if l.startswith("RESULT "))
    return {**json.loads(line[7:]), "total_s": total}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--alpha", type=float, default=0.3, help="0: shuffled and dealt out")
    parser.add_argument("--without", default="", help="a case to leave out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shoal-federated-") as scratch:
        folder = pathlib.Path(scratch)
        write_tables(folder, arguments.clients, arguments.alpha)
        cases = {
            "Flower simulation, 2 actors": lambda: run_peer(folder, "flower"),
            "PyTorch loop, 1 thread": lambda: run_peer(folder, "plain"),
            "Shoal, 1 rank": lambda: run_shoal(folder, 1, 16),
            "Shoal, 2 ranks": lambda: run_shoal(folder, 2, 16),
            "Shoal, 1 rank, clients one by one": lambda: run_shoal(folder, 1, 1),
        }
        results = {name: [] for name in cases if not arguments.without or arguments.without not in name}
        for _ in range(arguments.reps):
            for name in results:
                results[name].append(cases[name]())
        print("| | round, median | rounds/s | whole run | accuracy |")
        print("|---|---|---|---|---|")
        for name, runs in results.items():
            middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            print(f"| {name} | {middle['round_median_s'] * 1e3:.1f} ms "
                  f"| {1 / middle['round_median_s']:.1f} | {middle['total_s']:.2f} s "
                  f"| {100 * middle['accuracy']:.2f} % |")


if __name__ == "__main__":
    main()
