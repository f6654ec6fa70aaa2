#!/usr/bin/env python3
"""Holds the program against Hugging Face transformers, live.

    transformers_parity.py SHOAL FOLDER [--export DIR ...]

Writes fresh random checkpoints with transformers into FOLDER (Llama and GPT-2, tied and not, every rope type that
Shoal reads, Mixtral, dots1, Qwen3, one file and shards, float32 and bfloat16), asks `SHOAL score` for log-probabilities and compares. Each
--export is a folder that Shoal wrote: transformers must open it with no weight missing or left over, and agree with
`SHOAL score` about it. Exits 1 on the first difference, with got, want and where.

Needs torch, transformers and safetensors (versions: tests/fixtures/make_model_fixtures.py).
"""

import argparse
import itertools
import json
import pathlib
import subprocess
import sys

import torch
from transformers import (AutoModelForCausalLM, Dots1Config, Dots1ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig,
                          LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, Qwen3Config, Qwen3ForCausalLM)

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.15}
ROPES = [
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
    {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 64},
    {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64},
]


def llama(index, rope, **changes):
    config = LlamaConfig(**{"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
                            "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 256,
                            "rope_parameters": dict(rope)} | changes)
    return f"llama-{index}", LlamaForCausalLM(config)


def gpt2(index, **changes):
    config = GPT2Config(**{"vocab_size": 320, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256,
                           "bos_token_id": 0, "eos_token_id": 0} | changes)
    return f"gpt2-{index}", GPT2LMHeadModel(config)


def mixtral(index, **changes):
    config = MixtralConfig(**{"vocab_size": 320, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 3,
                              "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 256,
                              "num_local_experts": 6} | changes)
    return f"mixtral-{index}", MixtralForCausalLM(config)


def dots1(index, **changes):
    config = Dots1Config(**{"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
                            "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 256,
                            "moe_intermediate_size": 24, "n_routed_experts": 8, "n_shared_experts": 1,
                            "num_experts_per_tok": 3, "first_k_dense_replace": 1, "sliding_window": None} | changes)
    return f"dots1-{index}", Dots1ForCausalLM(config)


def qwen3(index, **changes):
    config = Qwen3Config(**{"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
                            "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 256,
                            "head_dim": 16} | changes)
    return f"qwen3-{index}", Qwen3ForCausalLM(config)


def checkpoints():
    count = itertools.count()
    for rope in ROPES:
        yield llama(next(count), rope)
    yield llama(next(count), ROPES[0], tie_word_embeddings=True, attention_bias=True, mlp_bias=True)
    yield llama(next(count), ROPES[0], head_dim=24, num_key_value_heads=8)
    yield llama(next(count), ROPES[0], num_key_value_heads=1, hidden_act="gelu_pytorch_tanh")
    yield gpt2(next(count))
    yield gpt2(next(count), tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True)
    yield mixtral(next(count))
    yield mixtral(next(count), num_experts_per_tok=1, num_local_experts=3, tie_word_embeddings=True)
    yield mixtral(next(count), num_experts_per_tok=4, hidden_act="gelu_pytorch_tanh", head_dim=16)
    yield dots1(next(count))
    yield dots1(next(count), n_group=4, topk_group=2, norm_topk_prob=True, routed_scaling_factor=2.5, n_shared_experts=2)
    yield dots1(next(count), first_k_dense_replace=0, attention_bias=True, head_dim=12, hidden_act="gelu_pytorch_tanh")
    yield qwen3(next(count))
    yield qwen3(next(count), tie_word_embeddings=True, attention_bias=True, num_key_value_heads=8)
    yield gpt2(next(count), n_inner=100, activation_function="gelu", scale_attn_weights=False)


def randomize(model):
    with torch.no_grad():
        for name, weight in model.named_parameters():
            norm = "norm" in name or "ln_" in name
            weight.copy_(torch.randn_like(weight) * 0.08 + (1 if norm and name.endswith("weight") else 0))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.randn_like(buffer) * 0.2)


def score(shoal, folder, tokens):
    path = folder.parent / f"{folder.name}.tokens.json"
    path.write_text(json.dumps({"input_ids": tokens}))
    result = subprocess.run([shoal, "score", str(folder), "--file", str(path)], capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"shoal score {folder} failed ({result.returncode}):\n{result.stderr}")
    return json.loads(result.stdout)["logprobs"]


def compare(shoal, folder, dtype):
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    leftover = {kind: names for kind, names in report.items() if names}
    if leftover:
        sys.exit(f"{folder}: transformers reports {leftover}")
    model.eval()
    limit = min(model.config.max_position_embeddings, 200)
    vocabulary = model.config.vocab_size
    tokens = [torch.randint(0, vocabulary, (n,)).tolist() for n in (2, limit // 3, limit)]
    worst = 0.0
    for row, (ids, got) in enumerate(zip(tokens, score(shoal, folder, tokens), strict=True)):
        with torch.no_grad():
            logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
        want = logprobs[:-1].gather(1, torch.tensor(ids[1:]).unsqueeze(1)).squeeze(1)
        got = torch.tensor(got, dtype=torch.float64)
        if got.shape != want.shape:
            sys.exit(f"{folder} row {row}: {tuple(got.shape)} log-probabilities, want {tuple(want.shape)}")
        difference = (got - want).abs()
        place = int(difference.argmax())
        if not difference[place] <= TOLERANCE[dtype]:
            sys.exit(f"{folder} row {row} token {place + 1}: got {got[place]:.9f}, want {want[place]:.9f}")
        worst = max(worst, float(difference[place]))
    print(f"{folder.name:12} {str(dtype):15} largest difference {worst:.2e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shoal")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--export", type=pathlib.Path, action="append", default=[])
    arguments = parser.parse_args()
    torch.manual_seed(1)
    for name, model in checkpoints():
        randomize(model)
        folder = arguments.folder / name
        model.save_pretrained(folder)
        compare(arguments.shoal, folder, torch.float32)
    name, model = llama("sharded", ROPES[0])
    randomize(model)
    model.save_pretrained(arguments.folder / name, max_shard_size="100KB")
    compare(arguments.shoal, arguments.folder / name, torch.float32)
    name, model = llama("bfloat16", ROPES[0])
    model.to(torch.bfloat16).save_pretrained(arguments.folder / name)
    compare(arguments.shoal, arguments.folder / name, torch.bfloat16)
    for folder in arguments.export:
        dtype = json.loads((folder / "config.json").read_text())["dtype"]
        compare(arguments.shoal, folder, getattr(torch, dtype))


if __name__ == "__main__":
    main()
