"""TRL's side of dpo.py: prepares the model that both read, or trains and writes what it measured."""

import argparse
import json
import pathlib
import time

parser = argparse.ArgumentParser()
parser.add_argument("--work", type=pathlib.Path, required=True)
parser.add_argument("--prepare", action="store_true")
parser.add_argument("--out", type=pathlib.Path)
parser.add_argument("--steps", type=int)
parser.add_argument("--loss")
parser.add_argument("--lora", action="store_true")
parser.add_argument("--precompute", action="store_true")
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()

import torch  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

torch.set_num_threads(args.threads)
MODEL, ADAPTERS = args.work / "model", args.work / "adapters"
VOCABULARY = 4096


def prepare():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    texts = [json.loads(line) for line in (args.work / "pairs.jsonl").read_text().splitlines()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        show_progress=False,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([text for row in texts for text in row.values()], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>"
    ).save_pretrained(MODEL)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=688,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(MODEL)
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(LlamaForCausalLM.from_pretrained(MODEL), lora)
    adapted.save_pretrained(ADAPTERS)


def peak_mb():
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1000


def train():
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    losses, seconds = [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            seconds.append(time.perf_counter() - self.start)

        def on_log(self, args, state, control, logs, **_):
            if "loss" in logs:
                losses.append(logs["loss"])

    class InOrder(DPOTrainer):
        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(self.train_dataset if dataset is None else dataset)

    rows = [json.loads(line) for line in (args.work / "pairs.jsonl").read_text().splitlines()]
    model = LlamaForCausalLM.from_pretrained(MODEL, attn_implementation="sdpa", dtype=torch.float32)
    if args.lora:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, ADAPTERS, is_trainable=True)
    trainer = InOrder(
        model=model,
        args=DPOConfig(
            output_dir=str(args.work / "trl"),
            max_steps=args.steps,
            per_device_train_batch_size=8,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            max_length=257,
            loss_type=["sigmoid" if args.loss == "dpo" else args.loss],
            beta=0.1,
            precompute_ref_log_probs=args.precompute,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            seed=1,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(MODEL),
        callbacks=[Clock()],
    )
    trainer.train()
    args.out.write_text(json.dumps(dict(losses=losses, step_seconds=seconds, peak_mb=peak_mb())))


if args.prepare:
    prepare()
else:
    train()
