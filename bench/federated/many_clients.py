"""Many small clients: how many a second, and what a million dormant ones weigh.

    python3 bench/federated/many_clients.py [--dormant 1000000] [--rounds 10]

1. 1,000 clients of 10 rows (8 x 8 pixels), all of them each round, one step, a perceptron 64-32-10
   (2,410 weights); beside it the same as a plain PyTorch loop where this Python has torch.
2. `--dormant` clients of one row (4 x 4 pixels), 1,000 of them a round.

Prints a Markdown table.
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHOAL = os.environ.get("SHOAL", str(ROOT / "build/release/shoal"))


def write_rows(path, rows, pixels):
    draw = random.Random(7)
    with open(path, "w") as file:
        file.write(",".join(f"p{i}" for i in range(pixels)) + ",class\n")
        lines = [
            ",".join(map(str, (draw.randrange(17) for _ in range(pixels)))) + f",{draw.randrange(10)}\n"
            for _ in range(min(rows, 20000))
        ]
        for i in range(rows):
            file.write(lines[i % len(lines)])


def run(folder, ranks, size, hidden, rounds, federated, batch):
    recipe = dict(
        task="federated",
        run=dict(name="many", output_dir=str(folder / "run")),
        model=dict(config=dict(model_type="image_classifier", image_size=size, max_pixel=16,
                               num_hidden_layers=0, hidden_size=hidden)),
        data=dict(train=[dict(path=str(folder / "rows.csv"), format="csv")]),
        training=dict(max_steps=rounds, per_device_train_batch_size=batch,
                      gradient_accumulation_steps=1, max_grad_norm=0),
        optimizer=dict(name="sgd", learning_rate=0.1),
        scheduler=dict(type="constant"),
        federated=federated,
        checkpoint=dict(export_hf="never"),
        logging=dict(report_to=["jsonl"]),
    )
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    subprocess.run(["rm", "-rf", folder / "run"], check=True)
    begin = time.perf_counter()
    subprocess.run([SHOAL, "run", folder / "recipe.yaml", "-n", str(ranks)], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                   env=dict(os.environ, OMP_NUM_THREADS="1"))
    total = time.perf_counter() - begin
    rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    seconds = statistics.median(row["step_seconds"] for row in rows if "step_seconds" in row)
    return seconds, max(row.get("peak_rss_bytes", 0) for row in rows), total


def plain_loop(rounds):
    """Seconds a round; None without torch."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    x, y = torch.rand(1000, 10, 64), torch.randint(10, (1000, 10))
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        total = {k: torch.zeros_like(v) for k, v in state.items()}
        for client in range(1000):
            model.load_state_dict(state)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            torch.nn.functional.cross_entropy(model(x[client]), y[client]).backward()
            optimizer.step()
            optimizer.zero_grad()
            for k, v in model.state_dict().items():
                total[k] += v
        state = {k: v / 1000 for k, v in total.items()}
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dormant", type=int, default=1000000)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shoal-many-") as scratch:
        folder = pathlib.Path(scratch)
        print("| | a round | clients/s | largest rank | whole run |\n|---|---|---|---|---|")

        def row(name, clients, seconds, rss=None, total=None):
            print(f"| {name} | {seconds * 1e3:.1f} ms | {clients / seconds:,.0f} "
                  f"| {f'{rss / 1e6:.0f} MB' if rss else ''} "
                  f"| {f'{total:.1f} s' if total else ''} |", flush=True)

        write_rows(folder / "rows.csv", 10000, 64)
        for ranks in (1, 2):
            for stacked in (1, 32):
                row(f"1,000 clients, {ranks} rank(s), {stacked} a stack", 1000,
                    *run(folder, ranks, 8, 32, arguments.rounds,
                         dict(num_clients=1000, partition="iid", stacked_clients=stacked), 10))
        seconds = plain_loop(arguments.rounds)
        if seconds:
            row("1,000 clients, PyTorch loop, 1 thread", 1000, seconds)
        write_rows(folder / "rows.csv", arguments.dormant, 16)
        row(f"1,000 of {arguments.dormant:,} a round, 2 ranks", 1000,
            *run(folder, 2, 4, 32, arguments.rounds,
                 dict(num_clients=arguments.dormant, partition="iid", clients_per_round=1000), 1))


if __name__ == "__main__":
    main()
