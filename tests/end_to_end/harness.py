"""What the end-to-end tests share: the real program on tiny recipes, and a look at its processes.

The program is $SHOAL, or build/release/shoal. Needs only Python's standard library.
"""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHOAL = os.environ.get("SHOAL", str(ROOT / "build/release/shoal"))
TEXT = ROOT / "LICENSE"

LLAMA = dict(
    model_type="llama",
    vocab_size=320,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    max_position_embeddings=64,
    tie_word_embeddings=True,
)
MIXTRAL = dict(
    LLAMA,
    model_type="mixtral",
    intermediate_size=24,
    tie_word_embeddings=False,
    num_local_experts=4,
    num_experts_per_tok=2,
    router_aux_loss_coef=0.02,
)
DOTS1 = dict(
    LLAMA,
    model_type="dots1",
    tie_word_embeddings=False,
    first_k_dense_replace=1,
    num_hidden_layers=3,
    moe_intermediate_size=16,
    n_routed_experts=8,
    n_shared_experts=1,
    num_experts_per_tok=2,
    n_group=4,
    topk_group=2,
    norm_topk_prob=True,
    routed_scaling_factor=1.5,
)
QWEN3 = dict(LLAMA, model_type="qwen3", head_dim=12)
GPT2 = dict(
    model_type="gpt2",
    vocab_size=320,
    n_positions=64,
    n_embd=32,
    n_layer=2,
    n_head=4,
    resid_pdrop=0,
    embd_pdrop=0,
    attn_pdrop=0,
)


def recipe(**sections):
    """A whole tiny recipe; `sections` are merged into it, one level deep. None removes one."""
    result = dict(
        run=dict(name="tiny", seed=7, deterministic=True),
        model=dict(dtype="float32", config=LLAMA),
        tokenizer=dict(train=dict(vocab_size=320, special_tokens=["<|endoftext|>"])),
        data=dict(train=[dict(path=str(TEXT), format="text")], seq_length=32, holdout=0.1),
        training=dict(max_steps=6, global_batch_size=8, gradient_accumulation_steps=1),
        optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=0.1),
        scheduler=dict(type="constant"),
        zero=dict(stage=3),
        checkpoint=dict(export_hf="never"),
    )
    for name, keys in sections.items():
        result[name] = {**result.get(name, {}), **(keys or {})}
        if keys is None:
            del result[name]
    return result


def environment(**extra):
    return dict(os.environ, OMP_NUM_THREADS="1", **extra)


def start(*arguments, **options):
    """The program, started in a session of its own, output to pipes."""
    return subprocess.Popen(
        [SHOAL, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        start_new_session=True,
        env=options.pop("env", environment()),
        **options,
    )


def descendants(pid):
    """All processes below `pid`."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = pathlib.Path("/proc", entry, "stat").read_text()
            except OSError:
                continue
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def rank_processes(pid):
    """Processes below `pid` that are MPI ranks of the program."""
    ranks = []
    for process in descendants(pid):
        try:
            variables = pathlib.Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            program = os.readlink(f"/proc/{process}/exe")
        except OSError:
            continue
        if os.path.samefile(program, SHOAL) and any(
            v.startswith(b"OMPI_COMM_WORLD_RANK=") for v in variables
        ):
            ranks.append(process)
    return ranks


def shared_memory_of(processes):
    """Files in /dev/shm that the processes have mapped."""
    files = set()
    for process in processes:
        for line in pathlib.Path(f"/proc/{process}/maps").read_text().splitlines():
            path = line.split(maxsplit=5)[-1]
            if path.startswith("/dev/shm/") and not path.endswith("(deleted)"):
                files.add(path)
    return files


def wait_for(condition, seconds, what):
    """Polls until `condition()` is true; TimeoutError names what did not come."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"no {what} within {seconds} s")
        time.sleep(0.02)


class EndToEndTest(unittest.TestCase):
    """Gives each test a folder, and runs the program in it."""

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="shoal-e2e-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def write_recipe(self, name="recipe", **sections):
        """JSON is YAML."""
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(recipe(**sections), indent=1))
        return path

    def shoal(self, *arguments, expect=0, **options):
        """Runs the program to its end; its output. `expect`: the exit code, None: any but 0."""
        process = start(*arguments, **options)
        try:
            output, _ = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            self.end(process)
            raise
        message = f"shoal {' '.join(map(str, arguments))} left with {process.returncode}:\n{output}"
        if expect is None:
            self.assertNotEqual(process.returncode, 0, message)
        else:
            self.assertEqual(process.returncode, expect, message)
        return output

    def end(self, process):
        """SIGKILL to a started program and all that it started."""
        for victim in [process.pid, *descendants(process.pid)]:
            try:
                os.kill(victim, 9)
            except ProcessLookupError:
                pass
        process.communicate()

    def train(self, name, *arguments, command=None, **sections):
        """Trains a tiny recipe in folder `name`; its losses by step."""
        path = self.write_recipe(name, **sections)
        arguments = [path, *arguments, f"run.output_dir={self.folder / name}"]
        if command:
            done = subprocess.run(
                [*command, SHOAL, "run", *map(str, arguments)],
                cwd=ROOT,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment(),
                timeout=300,
            )
            self.assertEqual(done.returncode, 0, done.stdout)
        else:
            self.shoal("run", *arguments)
        return self.losses(name)

    def metrics(self, name):
        """Rows of metrics.jsonl of the run `name`, or of a run's folder."""
        lines = (self.folder / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def losses(self, name):
        """step -> loss; a step that was run again after a resume counts with its last row."""
        return {row["step"]: row["loss"] for row in self.metrics(name) if "loss" in row}

    def assert_losses(self, got, want, relative=0.0):
        """Equal steps, and losses equal to the last bit or within a relative difference."""
        self.assertEqual(sorted(got), sorted(want))
        for step in sorted(want):
            difference = abs(got[step] - want[step])
            self.assertLessEqual(
                difference,
                relative * abs(want[step]),
                f"step {step}: got {got[step]!r}, want {want[step]!r}",
            )
