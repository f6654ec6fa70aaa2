"""The job that every program in the comparison runs, stated once.

Model  Llama: RMSNorm, rotary positions, SwiGLU, as many key as query heads, untied embeddings.
Data   uniform random tokens from a fixed seed; step s takes rows [s B, (s+1) B) of one table, rank
       r of n the r-th n-th of those.
Loss   next-token cross entropy, mean over the T - 1 predicted places of every row.
AdamW  constant learning rate, weight decay on every weight, no clipping, no accumulation.
"""

import json
import os

SIZES = {
    "S": dict(hidden=256, layers=4, heads=4, ffn=688, vocab=4096, seq_length=256, batch=8),
    "M": dict(hidden=512, layers=8, heads=8, ffn=1376, vocab=8192, seq_length=512, batch=8),
    "L": dict(hidden=1024, layers=12, heads=16, ffn=2752, vocab=16384, seq_length=512, batch=2),
}
SEED = 1234
ADAMW = dict(lr=3e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
PIPELINE_MICRO_BATCHES = 4  # Of the pipelines; where the batch is smaller, as many as it holds
STEPS_OF_DATA = 32  # Steps before a run would see a row twice


def num_parameters(size):
    c = SIZES[size]
    layer = 4 * c["hidden"] ** 2 + 3 * c["hidden"] * c["ffn"] + 2 * c["hidden"]
    return c["layers"] * layer + 2 * c["vocab"] * c["hidden"] + c["hidden"]


def model_folder(work, size):
    return os.path.join(work, f"model-{size}")


def tokens_file(work, size):
    return os.path.join(work, f"tokens-{size}.json")


def read_tokens(work, size):
    with open(tokens_file(work, size)) as file:
        return json.load(file)["input_ids"]


def prepare(work, size):
    """Writes initial weights and data of one size, unless they are there. Needs transformers."""
    if os.path.exists(tokens_file(work, size)):
        return
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    c = SIZES[size]
    os.makedirs(work, exist_ok=True)
    torch.manual_seed(SEED)
    config = LlamaConfig(
        hidden_size=c["hidden"],
        num_hidden_layers=c["layers"],
        num_attention_heads=c["heads"],
        num_key_value_heads=c["heads"],
        intermediate_size=c["ffn"],
        vocab_size=c["vocab"],
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        use_cache=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(model_folder(work, size))
    rows = torch.randint(3, c["vocab"], (STEPS_OF_DATA * c["batch"], c["seq_length"]))
    part = tokens_file(work, size) + ".part"
    with open(part, "w") as file:
        json.dump({"input_ids": rows.tolist()}, file)
    os.replace(part, tokens_file(work, size))


if __name__ == "__main__":
    import sys

    for name in sys.argv[2:]:
        prepare(sys.argv[1], name)
