"""TRL's side of grpo.py: trains and writes what it measured."""

import argparse
import json
import pathlib
import time

parser = argparse.ArgumentParser()
parser.add_argument("--work", type=pathlib.Path, required=True)
parser.add_argument("--out", type=pathlib.Path)
parser.add_argument("--steps", type=int)
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoTokenizer, LlamaForCausalLM, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

torch.set_num_threads(args.threads)
MODEL = args.work / "model"
seconds, tokens = [], []


class Clock(TrainerCallback):
    def on_step_begin(self, *_, **__):
        self.start = time.perf_counter()

    def on_step_end(self, *_, **__):
        seconds.append(time.perf_counter() - self.start)

    def on_log(self, args, state, control, logs, **_):
        tokens.extend(value for key, value in logs.items() if key == "completions/mean_length")


def reward(completions, **_):
    return [sum(c in "aeiou" for c in text) / (len(text) + 1) for text in completions]


def peak_mb():
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1000


lines = (args.work / "pairs.jsonl").read_text().splitlines()
tokenizer = AutoTokenizer.from_pretrained(MODEL, padding_side="left")
trainer = GRPOTrainer(
    model=LlamaForCausalLM.from_pretrained(MODEL, attn_implementation="sdpa", dtype=torch.float32),
    reward_funcs=reward,
    args=GRPOConfig(
        output_dir=str(args.work / "trl"),
        max_steps=args.steps,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=64,
        beta=0.04,
        use_bias_correction_kl=False,
        temperature=1.0,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        seed=1,
    ),
    train_dataset=Dataset.from_list([{"prompt": json.loads(line)["prompt"]} for line in lines]),
    processing_class=tokenizer,
    callbacks=[Clock()],
)
trainer.train()
result = dict(step_seconds=seconds, answer_tokens=sum(tokens) / len(tokens), peak_mb=peak_mb())
args.out.write_text(json.dumps(result))
