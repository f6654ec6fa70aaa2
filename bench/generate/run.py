#!/usr/bin/env python3
"""Greedy generation beside Python transformers' generate(), on the same weights and prompts, in one run.

    PEERS_PYTHON=/path/to/python bench/generate/run.py [--sizes M] [--batches 1,8] [--repeats 3] [--table FILE]

Each program loads the same random Llama (bench/peers/workload.py's sizes), reads prompts of 64 tokens and adds 128,
five times; both are started in turn, --repeats times, and the best median of each counts. Needs generate_bench
(cmake --build build/release --target generate_bench) and a Python with bench/peers/requirements.txt.

- tokens/s: new tokens of the whole batch over the median time, prompts included.
- ms a step: of the tokens after the first.
- of bandwidth: the time to read every weight once at the rate that the machine's memory was measured at in the same
  process (shoal doctor's), over the time of a step.
- equal ids: share of the new tokens that both programs agree on up to the first one that differs. Random weights
  decide between tokens that are nearly alike, so in bfloat16 programs part early.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPT, NEW = 64, 128
DTYPES = ("float32", "bfloat16")
sys.path.insert(0, str(ROOT / "bench/peers"))
import workload  # noqa: E402


def worker(arguments):
    """Runs inside the peers' Python."""
    import statistics
    import time

    import torch
    from transformers import LlamaForCausalLM

    torch.set_num_threads(arguments.threads)
    model = LlamaForCausalLM.from_pretrained(arguments.worker, dtype=getattr(torch, arguments.dtype)).eval()
    ids = torch.tensor(json.loads(arguments.prompts.read_text())["input_ids"])

    def generate(count):
        start = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count,
                                 min_new_tokens=count, eos_token_id=None, pad_token_id=0, use_cache=True)
        return time.perf_counter() - start, out

    generate(8)
    first = [generate(1)[0] for _ in range(5)]
    whole = [generate(NEW) for _ in range(5)]
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    print(json.dumps({"median_s": statistics.median(t for t, _ in whole), "first_token_s": statistics.median(first),
                      "peak_rss_bytes": peak, "tokens": whole[-1][1][:, PROMPT:].tolist()}))


def start(command, threads):
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment, check=False)
    if run.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{run.stderr}")
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else None


def equal_share(got, want):
    equal = total = 0
    for a, b in zip(got, want):
        total += len(b)
        equal += next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), len(b))
    return equal / total


def measure(arguments, python, size, work):
    rows = []
    folder = workload.model_folder(work, size)
    for dtype in DTYPES:
        for batch in map(int, arguments.batches.split(",")):
            prompts = work / f"prompts-{batch}.json"
            prompts.write_text(json.dumps({"input_ids": [row[:PROMPT] for row in workload.read_tokens(work, size)[:batch]]}))
            shoal, peer = [], []
            for _ in range(arguments.repeats):
                shoal.append(start([arguments.bench, folder, prompts, dtype, NEW, 5, arguments.threads],
                                   arguments.threads))
                peer.append(start([python, __file__, "--worker", folder, "--prompts", prompts, "--dtype", dtype,
                                   "--threads", arguments.threads], arguments.threads))
            best, other = (min(runs, key=lambda run: run["median_s"]) for runs in (shoal, peer))
            step = (best["median_s"] - best["first_token_s"]) / (NEW - 1)
            other_step = (other["median_s"] - other["first_token_s"]) / (NEW - 1)
            rows.append([size, dtype, batch, f"{batch * NEW / best['median_s']:.0f}",
                         f"{batch * NEW / other['median_s']:.0f}", f"{other['median_s'] / best['median_s']:.2f}",
                         f"{best['first_token_s'] * 1e3:.1f}", f"{other['first_token_s'] * 1e3:.1f}",
                         f"{step * 1e3:.2f}", f"{other_step * 1e3:.2f}",
                         f"{best['weight_bytes'] / best['read_bytes_per_s'] / step * 100:.0f} %",
                         f"{best['read_bytes_per_s'] / 1e9:.1f}",
                         f"{best['peak_rss_bytes'] / 1e6:.0f}", f"{other['peak_rss_bytes'] / 1e6:.0f}",
                         f"{equal_share(best['tokens'], other['tokens']) * 100:.0f} %"])
            print("  ".join(map(str, rows[-1])), file=sys.stderr, flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="M")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bench", type=pathlib.Path, default=ROOT / "build/release/bench/generate_bench")
    parser.add_argument("--table", type=pathlib.Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--prompts", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return
    python = os.environ.get("PEERS_PYTHON", sys.executable)
    rows = []
    for size in arguments.sizes.split(","):
        with tempfile.TemporaryDirectory() as work:
            start([python, ROOT / "bench/peers/workload.py", work, size], arguments.threads)
            rows += measure(arguments, python, size, pathlib.Path(work))
    header = ["size", "dtype", "batch", "Shoal tokens/s", "Python", "ratio", "first token ms", "Python", "ms a step",
              "Python", "of bandwidth", "GB/s", "peak MB", "Python", "equal ids"]
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in [header, ["---"] * len(header), *rows]]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if arguments.table:
        arguments.table.write_text(text)


if __name__ == "__main__":
    main()
