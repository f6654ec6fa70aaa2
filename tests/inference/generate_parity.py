#!/usr/bin/env python3
"""Holds `shoal generate` against Hugging Face transformers' generate(), live.

    generate_parity.py SHOAL FOLDER [--export DIR ...]

Writes fresh random checkpoints (Llama, Mixtral, dots1, Qwen3 and GPT-2) with a byte-level BPE tokenizer and generation_config.json into
FOLDER, and compares the texts that both programs write greedily: several prompts, several end-of-sequence ids, a
repetition penalty, an empty prompt, the default of max_new_tokens; and by beam search, and on two tensor-parallel ranks. Each --export is a folder that Shoal wrote,
compared in the same way. Exits 1 on the first difference, with got and want.

Needs torch, transformers and tokenizers (versions: tests/fixtures/requirements.txt).
"""

import argparse
import pathlib
import subprocess
import sys

import tokenizers
import torch
from transformers import (AutoModelForCausalLM, Dots1Config, Dots1ForCausalLM, GenerationConfig, GPT2Config,
                          GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, Qwen3Config,
                          Qwen3ForCausalLM)

TEXT = ["the quick brown fox jumps over the lazy dog", "In the beginning was the Word, and the Word was with God",
        "naïve café — 你好 — 🙂 done\n\tand so on", "0123456789 1+1=2"]
PROMPTS = ["the quick", "In the beginning", "naïve café — 你好", "\n\n", "x", "the " * 30]
MARGIN = 1e-3  # A best logit that leads by less may fall either way by rounding


def make_tokenizer(folder):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>", "<end>"],
                                             initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TEXT * 5, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def make_checkpoints(folder):
    llama = LlamaConfig(vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
                        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1)
    gpt2 = GPT2Config(vocab_size=300, n_embd=64, n_layer=3, n_head=4, n_positions=256, bos_token_id=0, eos_token_id=1)
    mixtral = MixtralConfig(vocab_size=300, hidden_size=64, intermediate_size=48, num_hidden_layers=3,
                            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
                            num_local_experts=5, bos_token_id=0, eos_token_id=1)
    dots1 = Dots1Config(vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
                        num_key_value_heads=2, max_position_embeddings=256, moe_intermediate_size=24, n_routed_experts=8,
                        n_shared_experts=1, num_experts_per_tok=3, first_k_dense_replace=1, n_group=4, topk_group=2,
                        norm_topk_prob=True, sliding_window=None, bos_token_id=0, eos_token_id=1)
    qwen3 = Qwen3Config(vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
                        num_key_value_heads=2, head_dim=16, max_position_embeddings=256, bos_token_id=0, eos_token_id=1)
    torch.manual_seed(11)
    for name, model in (("llama", LlamaForCausalLM(llama)), ("gpt2", GPT2LMHeadModel(gpt2)),
                        ("mixtral", MixtralForCausalLM(mixtral)), ("dots1", Dots1ForCausalLM(dots1)),
                        ("qwen3", Qwen3ForCausalLM(qwen3))):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.dim() == 1))
            for key, buffer in model.named_buffers():
                if key.endswith("e_score_correction_bias"):
                    buffer.copy_(torch.randn_like(buffer) * 0.2)
        path = folder / name
        model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=[1, 2], pad_token_id=0, max_new_tokens=40,
                                                   repetition_penalty=1.2 if name == "gpt2" else 1.0)
        model.save_pretrained(path)
        make_tokenizer(path)
        yield path


def want_of(model, tokenizer, prompt):
    """The text transformers writes, and whether every choice on the way was clear."""
    ids = tokenizer.encode(prompt).ids or [model.generation_config.bos_token_id]
    room = model.config.max_position_embeddings - len(ids)  # GPT-2's n_positions answers to this name too
    defaults = {"max_new_tokens": min(model.generation_config.max_new_tokens or 128, room)}
    out = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
                         return_dict_in_generate=True, output_scores=True, pad_token_id=0, **defaults)
    leads = [(row[0].topk(2).values @ torch.tensor([1.0, -1.0])).item() for row in out.scores]
    return prompt + tokenizer.decode(out.sequences[0, len(ids):].tolist()) + "\n", min(leads) > MARGIN


def beams_of(model, tokenizer, prompt, beams):
    """The text of the best beam, and whether float64 finds the same."""
    ids = tokenizer.encode(prompt).ids
    texts = []
    for dtype in (torch.float32, torch.float64):
        out = model.to(dtype).generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False, pad_token_id=0,
            max_new_tokens=20, num_beams=beams, length_penalty=0.5, early_stopping=True)
        texts.append(prompt + tokenizer.decode(out[0, len(ids):].tolist()) + "\n")
    model.float()
    return texts[0], texts[0] == texts[1]


def compare_beams(shoal, path, model, tokenizer):
    compared = 0
    for prompt, beams in zip(PROMPTS, (2, 3, 4, 5, 3, 4)):
        want, clear = beams_of(model, tokenizer, prompt, beams)
        if not clear:
            continue
        run = subprocess.run([shoal, "generate", str(path), "--prompt", prompt, "--num-beams", str(beams),
                              "--length-penalty", "0.5", "--early-stopping", "yes", "--max-new-tokens", "20"],
                             capture_output=True, check=False)
        got = run.stdout.decode(errors="replace")
        if run.returncode != 0 or got != want:
            sys.exit(f"{path}: {beams} beams, prompt {prompt!r}\n got {got!r}\nwant {want!r}\n{run.stderr.decode()}")
        compared += 1
    if compared == 0:
        sys.exit(f"{path}: no beam search could be compared")
    print(f"{path}: {compared} beam searches, equal text")


def compare(shoal, path):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    if model.config.model_type in ("mixtral", "dots1"):
        model.set_experts_implementation("eager")  # The others take no float64
    tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    compared = 0
    for prompt in PROMPTS + [""]:
        if not prompt and model.generation_config.bos_token_id is None:
            continue
        want, clear = want_of(model, tokenizer, prompt)
        if not clear:
            continue
        ranks = ["-n", "2"] if compared == 1 else []
        run = subprocess.run([shoal, "generate", str(path), "--temperature", "0", "--prompt-file", "-", *ranks],
                             input=prompt.encode(), capture_output=True, check=False)
        got = run.stdout.decode(errors="replace")
        if run.returncode != 0 or got != want:
            sys.exit(f"{path}: prompt {prompt!r}\n got {got!r}\nwant {want!r}\n{run.stderr.decode()}")
        compared += 1
    if compared == 0:
        sys.exit(f"{path}: no prompt could be compared")
    print(f"{path}: {compared} prompts, equal text")
    compare_beams(shoal, path, model, tokenizer)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shoal")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--export", type=pathlib.Path, action="append", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for path in [*make_checkpoints(arguments.folder), *arguments.export]:
        compare(arguments.shoal, path)


if __name__ == "__main__":
    main()
