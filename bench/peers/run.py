#!/usr/bin/env python3
"""Trains one workload (workload.py) with Shoal and with its peers, in one run, and compares them.

    PEERS_PYTHON=<python with requirements.txt> bench/peers/run.py --sizes S,M --repeats 3

Every case runs once before any runs twice, and the order turns round each time, so that a slow
minute of the machine hits all alike. Each measurement is printed as a JSON line and appended to
--results; --from-results rebuilds the table from that file without measuring.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import table
import workload

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
RANKS = 2
# program: the ZeRO stage or other kind of parallelism that it is compared at
PEER_STAGES = {
    "ddp": 0,
    "zero_redundancy": 1,
    "deepspeed_zero1": 1,
    "fsdp2_zero2": 2,
    "deepspeed_zero2": 2,
    "fsdp2_zero3": 3,
    "deepspeed_zero3": 3,
    "torch_tensor": "tensor",
    "torch_pipeline": "pipeline",
}
SHOAL_PROGRAMS = [f"shoal_zero{stage}" for stage in range(4)] + ["shoal_tensor", "shoal_pipeline"]
PROGRAMS = SHOAL_PROGRAMS + list(PEER_STAGES)
GPU_PROGRAMS = ["pytorch", "shoal_zero0"]

RECIPE = """\
run: {{name: peers, output_dir: {out}, seed: {seed}, device: {device}}}
model: {{name_or_path: {model}, init: pretrained, dtype: {dtype}}}
data:
  train: [{{path: {tokens}}}]
  seq_length: {seq_length}
  packing: false
  shuffle: false
training:
  max_steps: {steps}
  global_batch_size: {batch}
  gradient_accumulation_steps: {micro_batches}
  max_grad_norm: 0
optimizer:
  name: adamw
  learning_rate: 3.0e-4
  adam_beta1: 0.9
  adam_beta2: 0.999
  adam_epsilon: 1.0e-8
  weight_decay: 0.01
  decay_all: true
scheduler: {{type: constant}}
zero: {{stage: {stage}}}
parallelism: {{tensor_parallel: {tensor}, pipeline_parallel: {pipeline}}}
checkpoint: {{export_hf: never}}
logging: {{steps: 1, report_to: [jsonl]}}
"""


def parallelism_of(program, batch):
    """The recipe's share of a program's name."""
    name = program.removeprefix("shoal_")
    pipeline = name == "pipeline"
    return dict(
        stage=int(name[-1]) if name.startswith("zero") else 0,
        tensor=RANKS if name == "tensor" else 1,
        pipeline=RANKS if pipeline else 1,
        micro_batches=min(batch, workload.PIPELINE_MICRO_BATCHES) if pipeline else 1,
    )


def shoal_command(case, args, out):
    c = workload.SIZES[case["size"]]
    recipe = os.path.join(out, "recipe.yaml")
    with open(recipe, "w") as file:
        file.write(
            RECIPE.format(
                out=os.path.join(out, "run"),
                device=args.device,
                seed=workload.SEED,
                dtype=case["dtype"],
                steps=case["steps"],
                model=workload.model_folder(args.work, case["size"]),
                tokens=workload.tokens_file(args.work, case["size"]),
                seq_length=c["seq_length"],
                batch=c["batch"],
                **parallelism_of(case["program"], c["batch"]),
            )
        )
    return [args.shoal, "run", recipe, "-n", str(RANKS)]


def peer_command(case, args, out):
    command = [args.python]
    if case["program"] != "pytorch":
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    return command + [
        os.path.join(HERE, "train_peer.py"),
        "--peer",
        case["program"],
        "--size",
        case["size"],
        "--dtype",
        case["dtype"],
        "--steps",
        str(case["steps"]),
        "--threads",
        str(case["threads"]),
        "--device",
        args.device,
        "--work",
        args.work,
        "--out",
        out,
    ]


def environment(threads, args):
    env = dict(
        os.environ,
        DS_ACCELERATOR="cpu",
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_VERBOSITY="error",
        GLOO_SOCKET_IFNAME="lo",
        PYTHONWARNINGS="ignore",
    )
    if args.device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    env["PATH"] = os.path.dirname(args.python) + os.pathsep + env.get("PATH", "")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        env[name] = str(threads)
    return env


def launch(command, env, out, first_step, timeout):
    """Runs a command to its end; the seconds until `first_step()` was true."""
    start = time.monotonic()
    with open(os.path.join(out, "log.txt"), "w") as log:
        process = subprocess.Popen(
            command, env=env, stdout=log, stderr=subprocess.STDOUT, cwd=HERE, start_new_session=True
        )
        first = None
        try:
            while process.poll() is None:
                if time.monotonic() - start > timeout:
                    raise TimeoutError(f"no end after {timeout} s")
                if first is None and first_step():
                    first = time.monotonic() - start
                time.sleep(0.01 if first is None else 0.1)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
    if process.returncode != 0:
        with open(os.path.join(out, "log.txt")) as log:
            raise RuntimeError(f"exit code {process.returncode}: " + log.read()[-1500:])
    return first


def measure_shoal(case, args, out):
    metrics = os.path.join(out, "run", "metrics.jsonl")

    def first_step():
        return os.path.exists(metrics) and os.path.getsize(metrics) > 0

    first = launch(
        shoal_command(case, args, out),
        environment(case["threads"], args),
        out,
        first_step,
        args.timeout,
    )
    with open(metrics) as file:
        rows = [row for row in map(json.loads, file) if "loss" in row]
    return dict(
        losses=[row["loss"] for row in rows],
        first_step_seconds=first,
        step_seconds=[row["step_seconds"] for row in rows],
        peak_rss_bytes=max(row["peak_rss_bytes"] for row in rows),
    )


def measure_peer(case, args, out):
    first = launch(
        peer_command(case, args, out),
        environment(case["threads"], args),
        out,
        lambda: os.path.exists(os.path.join(out, "first_step")),
        args.timeout,
    )
    ranks = []
    for rank in range(1 if case["program"] == "pytorch" else RANKS):
        with open(os.path.join(out, f"rank{rank}.json")) as file:
            ranks.append(json.load(file))
    return dict(
        losses=[statistics.mean(losses) for losses in zip(*(r["losses"] for r in ranks))],
        first_step_seconds=first,
        step_seconds=[max(times) for times in zip(*(r["step_seconds"] for r in ranks))],
        peak_rss_bytes=max(r["peak_rss_bytes"] for r in ranks),
    )


def measure(case, args):
    """The case with its figures, or with `error`."""
    out = tempfile.mkdtemp(prefix="run-", dir=args.work)
    try:
        run = measure_shoal if case["program"].startswith("shoal") else measure_peer
        result = run(case, args, out)
        c = workload.SIZES[case["size"]]
        timed = result["step_seconds"][case["warmup"] :]
        result["tokens_per_second"] = c["batch"] * c["seq_length"] / statistics.median(timed)
        return {**case, **result}
    except (RuntimeError, TimeoutError, OSError, KeyError, ValueError) as error:
        return {**case, "error": f"{type(error).__name__}: {error}"}
    finally:
        shutil.rmtree(out, ignore_errors=True)


def cases(args):
    """Every case of the run, in order: traces first, then each repeat turned round."""
    for size in args.sizes:
        if args.trace_steps:
            base = dict(
                size=size, dtype="float32", repeat=0, warmup=1, steps=args.trace_steps, trace=True
            )
            yield dict(base, program="pytorch", threads=RANKS)
            for program in SHOAL_PROGRAMS if args.device == "cpu" else ["shoal_zero0"]:
                yield dict(base, program=program, threads=1)
    for repeat in range(args.repeats):
        for size in args.sizes:
            for dtype in args.dtypes:
                for program in args.programs if repeat % 2 == 0 else reversed(args.programs):
                    yield dict(
                        program=program,
                        size=size,
                        dtype=dtype,
                        repeat=repeat,
                        threads=1,
                        warmup=args.warmup,
                        steps=args.warmup + args.steps,
                    )


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def names(text):
        return text.split(",")

    parser.add_argument("--sizes", type=names, default=["S"])
    parser.add_argument("--dtypes", type=names, default=["float32", "bfloat16"])
    parser.add_argument("--programs", type=names, help="default: all of them")
    parser.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        default="cpu",
        help=f"cuda: one rank on one GPU; programs {' and '.join(GPU_PROGRAMS)}",
    )
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--warmup", type=int, default=3, help="steps before those")
    parser.add_argument(
        "--trace-steps", type=int, default=20, help="steps of the loss comparison; 0: none"
    )
    parser.add_argument("--timeout", type=float, default=900, help="seconds a case")
    parser.add_argument("--shoal", default=os.path.join(ROOT, "build/release/shoal"))
    parser.add_argument(
        "--python",
        default=os.environ.get("PEERS_PYTHON"),
        help="interpreter with requirements.txt (default: $PEERS_PYTHON)",
    )
    parser.add_argument("--work", default=os.path.join(ROOT, "build/bench-peers"))
    parser.add_argument("--results", help="JSON lines (default: <work>/results.jsonl)")
    parser.add_argument("--from-results", action="store_true", help="no measuring: the table only")
    parser.add_argument("--table", help="write the Markdown table here (default: standard output)")
    args = parser.parse_args()
    programs = PROGRAMS
    if args.device == "cuda":
        global RANKS, PEER_STAGES
        RANKS, PEER_STAGES, programs = 1, {"pytorch": 0}, GPU_PROGRAMS
    args.programs = args.programs or programs
    args.results = args.results or os.path.join(args.work, "results.jsonl")
    unknown = set(args.programs) - set(programs)
    if unknown:
        parser.error(
            f"no program named {', '.join(sorted(unknown))}: choose from {', '.join(programs)}"
        )
    if not args.python and not args.from_results:
        parser.error(
            "give --python or PEERS_PYTHON: an interpreter with bench/peers/requirements.txt"
        )
    return args


def main():
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that launch() ends what it started
    failures = 0
    if not args.from_results:
        os.makedirs(args.work, exist_ok=True)
        subprocess.run(
            [args.python, os.path.join(HERE, "workload.py"), args.work, *args.sizes],
            check=True,
            env=environment(RANKS, args),
        )
        for case in cases(args):
            row = measure(case, args)
            failures += "error" in row
            print(
                json.dumps({k: v for k, v in row.items() if k not in ("step_seconds", "losses")}),
                flush=True,
            )
            with open(args.results, "a") as file:
                file.write(json.dumps(row) + "\n")
    with open(args.results) as file:
        text = table.markdown([json.loads(line) for line in file], PEER_STAGES)
    if args.table:
        with open(args.table, "w") as file:
            file.write(text)
    else:
        print(text)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
