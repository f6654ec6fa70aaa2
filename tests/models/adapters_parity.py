#!/usr/bin/env python3
"""Holds adapters and reward models against Python's peft and transformers, live.

    adapters_parity.py SHOAL FOLDER

1. peft writes random adapters of random Llama and GPT-2 models: `SHOAL score ADAPTERS` must agree.
2. `SHOAL run` trains adapters (task dpo): peft must open the adapter folder, transformers the merged
   export, and all must agree, with each other and with `SHOAL score`.
3. `SHOAL run` trains a reward model: transformers must open it as a sequence classification with
   one label, and its scores must order the pairs as the run's last evaluation says.

Exits 1 on the first difference, with got, want and where. Needs torch, transformers and peft.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

TOLERANCE = 1e-4
LLAMA = dict(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
)


def run(*command):
    done = subprocess.run(
        [str(each) for each in command], capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS="1")
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    return done.stdout


def logprobs(model, ids):
    with torch.no_grad():
        rows = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    return rows[:-1].gather(1, torch.tensor(ids[1:]).unsqueeze(1)).squeeze(1)


def shoal_logprobs(shoal, folder, ids):
    path = pathlib.Path(f"{folder}.tokens.json")
    path.write_text(json.dumps({"input_ids": [ids]}))
    return torch.tensor(json.loads(run(shoal, "score", folder, "--file", path))["logprobs"][0], dtype=torch.float64)


def agree(what, got, want):
    difference = (got - want).abs()
    place = int(difference.argmax())
    if not difference[place] <= TOLERANCE:
        sys.exit(f"{what}, token {place + 1}: got {got[place]:.9f}, want {want[place]:.9f}")
    print(f"{what:60} largest difference {difference[place]:.2e}")


def peft_to_shoal(shoal, folder):
    llama = LlamaForCausalLM(LlamaConfig(**LLAMA))
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=64, n_layer=2, n_head=4, n_positions=128))
    cases = [
        ("llama-default", llama, dict(target_modules=["q_proj", "v_proj"])),
        ("llama-all", llama, dict(target_modules="all-linear")),
        ("llama-rslora", llama, dict(target_modules=["o_proj", "mlp.down_proj"], use_rslora=True)),
        ("gpt2", gpt2, dict(target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True)),
    ]
    for name, base, settings in cases:
        base.save_pretrained(folder / f"{name}-base")
        fresh = AutoModelForCausalLM.from_pretrained(folder / f"{name}-base")
        adapted = get_peft_model(fresh, LoraConfig(r=4, lora_alpha=10, task_type="CAUSAL_LM", **settings))
        with torch.no_grad():
            for weight_name, weight in adapted.named_parameters():
                if "lora_" in weight_name:
                    weight.normal_(0, 0.2)
        adapted.eval().save_pretrained(folder / name)
        ids = torch.randint(0, 320, (90,)).tolist()
        want = logprobs(adapted, ids)
        without = logprobs(AutoModelForCausalLM.from_pretrained(folder / f"{name}-base").eval(), ids)
        if (want - without).abs().max() < 0.01:
            sys.exit(f"{name}: the adapters change nothing")
        agree(f"peft's {name} in shoal", shoal_logprobs(shoal, folder / name, ids), want)


def write_recipe(folder, name, **sections):
    recipe = dict(
        run=dict(name=name, output_dir=str(folder / name), seed=3),
        training=dict(max_steps=6, global_batch_size=8, gradient_accumulation_steps=1),
        optimizer=dict(name="adamw", learning_rate=3e-3),
    )
    recipe.update(sections)
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(recipe))
    return path


def base_model(shoal, folder):
    text = folder / "text.txt"
    text.write_text("".join(f"{i} plus {j} is {i + j}.\n" for i in range(60) for j in range(60)))
    config = dict(LLAMA, model_type="llama")
    recipe = write_recipe(
        folder,
        "base",
        model=dict(config=config),
        tokenizer=dict(train=dict(vocab_size=320, special_tokens=["<|endoftext|>", "<pad>"])),
        data=dict(train=[dict(path=str(text))], seq_length=32),
    )
    run(shoal, "run", recipe, "-n", 1)
    with open(folder / "pairs.jsonl", "w") as file:
        for i in range(60):
            row = dict(prompt=f"{i} plus {i} is", chosen=f" {2 * i}.", rejected=f" plus {i}.")
            file.write(json.dumps(row) + "\n")
    return folder / "base" / "export"


def shoal_to_peft(shoal, folder, base):
    recipe = write_recipe(
        folder,
        "dpo",
        task="dpo",
        model=dict(
            name_or_path=str(base), init="pretrained", lora=dict(rank=4, alpha=8, target_modules=["all-linear"])
        ),
        data=dict(train=[dict(path=str(folder / "pairs.jsonl"))], seq_length=32),
    )
    run(shoal, "run", recipe, "-n", 2)
    merged, adapter = folder / "dpo/export", folder / "dpo/export/adapter"
    ids = torch.randint(0, 320, (60,)).tolist()
    want = logprobs(AutoModelForCausalLM.from_pretrained(merged).eval(), ids)
    start = AutoModelForCausalLM.from_pretrained(base).eval()
    if (logprobs(start, ids) - want).abs().max() < 1e-3:
        sys.exit("dpo: training changed nothing")
    agree("trained adapters in peft, and merged", logprobs(PeftModel.from_pretrained(start, adapter).eval(), ids), want)
    agree("trained adapters in shoal, and merged", shoal_logprobs(shoal, adapter, ids), want)
    agree("merged weights in shoal", shoal_logprobs(shoal, merged, ids), want)


def reward_model(shoal, folder, base):
    pairs = str(folder / "pairs.jsonl")
    recipe = write_recipe(
        folder,
        "reward",
        task="reward",
        model=dict(name_or_path=str(base), init="pretrained"),
        data=dict(train=[dict(path=pairs)], eval=[dict(path=pairs)], seq_length=32),
        training=dict(max_steps=24, global_batch_size=8, gradient_accumulation_steps=1),
    )
    run(shoal, "run", recipe, "-n", 2)
    rows = [json.loads(line) for line in (folder / "reward/metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "eval_loss" in row][-1]
    export = folder / "reward/export"
    model, report = AutoModelForSequenceClassification.from_pretrained(export, output_loading_info=True)
    leftover = {kind: names for kind, names in report.items() if names}
    if leftover or model.config.num_labels != 1:
        sys.exit(f"{export}: {model.config.num_labels} labels, transformers reports {leftover}")
    tokenizer = AutoTokenizer.from_pretrained(export)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    margins = []
    for line in pathlib.Path(pairs).read_text().splitlines():
        row = json.loads(line)
        scores = []
        for key in ("chosen", "rejected"):
            ids = tokenizer(row["prompt"])["input_ids"] + tokenizer(row[key])["input_ids"] + [end]
            with torch.no_grad():
                scores.append(model.eval()(torch.tensor([ids])).logits[0, 0].double())
        margins.append(scores[0] - scores[1])
    margins = torch.stack(margins)
    accuracy = float((margins > 0).double().mean())
    if abs(accuracy - last["eval_accuracy"]) > 1e-9 or accuracy < 0.9:
        sys.exit(f"reward: {accuracy} of the pairs in order by transformers, {last['eval_accuracy']} by shoal")
    agree("reward margin in transformers", margins.mean().view(1), torch.tensor([last["eval_margin"]]).double())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shoal")
    parser.add_argument("folder", type=pathlib.Path)
    arguments = parser.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    peft_to_shoal(arguments.shoal, arguments.folder)
    base = base_model(arguments.shoal, arguments.folder)
    shoal_to_peft(arguments.shoal, arguments.folder, base)
    reward_model(arguments.shoal, arguments.folder, base)


if __name__ == "__main__":
    main()
