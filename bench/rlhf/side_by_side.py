"""What dpo.py and grpo.py share: a job run by Shoal and by TRL in turn, and their medians side by side."""

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
ROOT = HERE.parent.parent
STEPS, WARM_UP, THREADS = 10, 3, 2


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


def run_to_end(command, **environment):
    done = subprocess.run(
        list(map(str, command)), env=dict(os.environ, **environment), capture_output=True, text=True
    )
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)


def run_shoal(work, recipe):
    """The rows of a step of a run of the recipe (its text), and the figures that both programs give."""
    out = work / "shoal"
    shutil.rmtree(out, ignore_errors=True)
    path = work / "recipe.yaml"
    path.write_text(recipe)
    shoal = os.environ.get("SHOAL", ROOT / "build/release/shoal")
    run_to_end([shoal, "run", path, "-n", 1, f"run.output_dir={out}"], OMP_NUM_THREADS=str(THREADS))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    return rows, dict(
        step_s=statistics.median(row["step_seconds"] for row in rows[WARM_UP:]),
        peak_mb=max(row["peak_rss_bytes"] for row in rows) / 1e6,
    )


def trl(work, script, *arguments):
    command = [os.environ["PEERS_PYTHON"], HERE / script, "--work", work]
    run_to_end([*command, "--threads", THREADS, *arguments])


def run_trl(work, script, *arguments):
    """What the script measured."""
    out = work / "trl.json"
    trl(work, script, "--out", out, "--steps", STEPS, *arguments)
    result = json.loads(out.read_text())
    result["step_s"] = statistics.median(result.pop("step_seconds")[WARM_UP:])
    return result


def compare(pairs, programs, repeats, labels):
    """Prepares the model and `pairs` pairs, runs {"shoal": work -> figures, "trl": ...} in turn, prints each
    result with `labels` and then the medians; all results by program."""
    work = pathlib.Path(tempfile.mkdtemp(prefix="shoal-trl-"))
    try:
        make_pairs(work / "pairs.jsonl", pairs)
        trl(work, "trl_dpo.py", "--prepare")
        results = {name: [] for name in programs}
        for repeat in range(repeats):
            for name in sorted(programs, reverse=repeat % 2 == 1):
                result = programs[name](work)
                print(json.dumps(dict(program=name, **labels, **result)), flush=True)
                results[name].append(result)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    median = {
        key: {name: statistics.median(r[key] for r in rows) for name, rows in results.items()}
        for key in ("step_s", "peak_mb")
    }
    for name in programs:
        print(f"{name:6} {median['step_s'][name] * 1000:8.1f} ms a step {median['peak_mb'][name]:8.0f} MB")
    faster = median["step_s"]["trl"] / median["step_s"]["shoal"]
    share = median["peak_mb"]["shoal"] / median["peak_mb"]["trl"]
    print(f"times faster: {faster:.2f}   share of memory: {share:.2f}")
    return results
