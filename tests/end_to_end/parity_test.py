"""The program against Python's transformers, tokenizers and PyTorch, live.

Run with an interpreter that has tests/fixtures/requirements.txt (./test makes one in .venv).
"""

import json
import subprocess
import sys
import unittest

import tokenizers
import torch
import transformers

from harness import DOTS1, GPT2, LLAMA, MIXTRAL, QWEN3, ROOT, SHOAL, TEXT, EndToEndTest

torch.set_num_threads(1)

# Text that breaks tokenizers: scripts, combining marks, emoji sequences, odd spaces, controls,
# contractions.
HOSTILE = [
    "plain words, 12345 numbers and     runs  of spaces\t\ttabs\n\n\nnewlines\r\n",
    "don't WE'LL i'm they've 's 't ' 'd''ll",
    "naïve café Ångström ﬁ ligature İstanbul ǅ straße",
    "e\u0301 a\u0308\u0323 \u0300lonely",
    "中文字符 日本語テキスト 한국어 ไทย हिन्दी العربية עברית",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 ☃️ \U0001f9ff",
    "\u00a0nbsp\u2003em\u3000ideographic\u200bzero\u2028line\u2029para\ufeffbom",
    "\x00\x01\x7f\x80 \u0085 control",
    "x²³ ½ Ⅷ ٣٤٥ ௧௨ 1,000.00 3.14e-10 #1 $5",
    "<|endoftext|> inside <|endoftext|><|endoftext|> text",
    '_under_score_ snake_case CamelCase http://a.b/c?d=e&f=%20 {"json": [1, 2]}',
    "\U0010ffff \ud7ff \ue000 𝔘𝔫𝔦 𐍈",
]


def llama(**changes):
    keys = {**LLAMA, "vocab_size": 300, **changes}
    keys.pop("model_type")
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**keys))


def mixtral(**changes):
    keys = {**MIXTRAL, "vocab_size": 300, **changes}
    keys.pop("model_type")
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**keys))


def dots1(**changes):
    keys = {**DOTS1, "vocab_size": 300, "sliding_window": None, **changes}
    keys.pop("model_type")
    return transformers.Dots1ForCausalLM(transformers.Dots1Config(**keys))


def qwen3(**changes):
    keys = {**QWEN3, "vocab_size": 300, **changes}
    keys.pop("model_type")
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**keys))


def gpt2(**changes):
    keys = {**GPT2, "vocab_size": 300, **changes}
    keys.pop("model_type")
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**keys))


class ParityTest(EndToEndTest):
    def rows(self, count=3, length=24, vocab=300):
        return torch.randint(
            3, vocab, (count, length), generator=torch.Generator().manual_seed(1)
        ).tolist()

    def write_tokens(self, rows):
        path = self.folder / "tokens.json"
        path.write_text(json.dumps({"input_ids": rows}))
        return path

    def assert_scores_equal(self, folder, model, rows, places=1e-4):
        got = json.loads(self.shoal("score", folder, "--file", self.write_tokens(rows)))["logprobs"]
        with torch.no_grad():
            for row, ours in zip(rows, got):
                ids = torch.tensor([row])
                logprobs = model(ids).logits.double().log_softmax(-1)[0, :-1]
                want = logprobs.gather(1, ids[0, 1:, None])[:, 0]
                torch.testing.assert_close(
                    torch.tensor(ours, dtype=torch.float64), want, rtol=0, atol=places
                )

    def test_greedy_text_equals_generate(self):
        script = ROOT / "tests/inference/generate_parity.py"
        done = subprocess.run(
            [sys.executable, script, SHOAL, self.folder], capture_output=True, text=True, check=False
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_models_that_transformers_wrote(self):
        models = {
            "llama": llama(),
            "untied": llama(tie_word_embeddings=False, rope_theta=500000.0),
            "biased": llama(attention_bias=True, mlp_bias=True, num_key_value_heads=1),
            "wide_heads": llama(head_dim=16),
            "mixtral": mixtral(),
            "mixtral_one": mixtral(num_experts_per_tok=1, num_local_experts=3),
            "dots1": dots1(),
            "dots1_plain": dots1(n_group=1, topk_group=1, norm_topk_prob=False, attention_bias=True),
            "qwen3": qwen3(),
            "gpt2": gpt2(),
            "gpt2_relu": gpt2(activation_function="relu", n_inner=80),
        }
        for name, model in models.items():
            with self.subTest(model=name):
                torch.manual_seed(3)
                for weight in model.parameters():  # Norms and biases away from ones and zeros
                    weight.data.add_(torch.randn_like(weight) * 0.05)
                for key, buffer in model.named_buffers():
                    if key.endswith("e_score_correction_bias"):
                        buffer.add_(torch.randn_like(buffer) * 0.2)
                model.eval().save_pretrained(self.folder / name)
                self.assert_scores_equal(self.folder / name, model, self.rows())

    def test_sharded_safetensors(self):
        model = llama().eval()
        model.save_pretrained(self.folder / "shards", max_shard_size="20KB")
        self.assertTrue((self.folder / "shards/model.safetensors.index.json").exists())
        self.assert_scores_equal(self.folder / "shards", model, self.rows())

    def test_exports_open_in_python(self):
        for name, config, stage, experts in (
            ("llama", LLAMA, 3, 1),
            ("gpt2", GPT2, 1, 1),
            ("mixtral", MIXTRAL, 2, 2),
            ("dots1", DOTS1, 3, 2),
            ("qwen3", QWEN3, 1, 1),
        ):
            with self.subTest(model=name):
                self.train(
                    name,
                    "-n",
                    2,
                    f"zero.stage={stage}",
                    f"parallelism.expert_parallel={experts}",
                    model=dict(config=config),
                    checkpoint=dict(export_hf="final"),
                )
                export = self.folder / name / "export"
                model, report = transformers.AutoModelForCausalLM.from_pretrained(
                    export, dtype=torch.float32, output_loading_info=True
                )
                for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
                    self.assertFalse(report[problem], f"{problem}: {report[problem]}")
                self.assert_scores_equal(export, model.eval(), self.rows(vocab=320))
                tokenizer = tokenizers.Tokenizer.from_file(str(export / "tokenizer.json"))
                self.assert_ids_equal(export, tokenizer)
                slow = transformers.AutoTokenizer.from_pretrained(export)
                self.assertEqual(slow("The License").input_ids, tokenizer.encode("The License").ids)

    def assert_ids_equal(self, folder, tokenizer):
        for text in HOSTILE + [TEXT.read_text()]:
            path = self.folder / "text.txt"
            path.write_bytes(text.encode())
            got = json.loads(self.shoal("tokenize", folder, "--file", path))
            self.assertEqual(
                got, tokenizer.encode(text, add_special_tokens=False).ids, repr(text[:60])
            )

    def test_tokenizer_that_python_trained(self):
        tokenizer = tokenizers.ByteLevelBPETokenizer()
        tokenizer.train_from_iterator(
            [TEXT.read_text(), *HOSTILE],
            vocab_size=600,
            show_progress=False,
            special_tokens=["<|endoftext|>"],
        )
        folder = self.folder / "tokenizer"
        folder.mkdir()
        tokenizer.save(str(folder / "tokenizer.json"))
        self.assert_ids_equal(
            folder, tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        )

    def test_greedy_generation(self):
        self.train("run", "-n", 2, checkpoint=dict(export_hf="final"))
        export = self.folder / "run/export"
        model = transformers.AutoModelForCausalLM.from_pretrained(
            export, dtype=torch.float32
        ).eval()
        tokenizer = tokenizers.Tokenizer.from_file(str(export / "tokenizer.json"))
        ids = tokenizer.encode("The License").ids
        model.generation_config.eos_token_id = None
        want = model.generate(
            torch.tensor([ids]), max_new_tokens=12, do_sample=False, pad_token_id=0
        )
        output = self.shoal(
            "generate",
            export,
            "--prompt",
            "The License",
            "--max-new-tokens",
            12,
            "--temperature",
            0,
        )
        self.assertIn(tokenizer.decode(want[0].tolist()).strip(), output)

    def test_training_losses_equal_pytorch_s(self):
        steps, batch = 20, 4
        for name, model in (
            ("llama", llama(tie_word_embeddings=False)),
            ("gpt2", gpt2()),
        ):
            with self.subTest(model=name):
                model.train().save_pretrained(self.folder / f"{name}-start")
                rows = self.rows(steps * batch, 32)
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
                want = {}
                for step in range(steps):
                    ids = torch.tensor(rows[step * batch : (step + 1) * batch])
                    loss = model(input_ids=ids, labels=ids).loss
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    want[step + 1] = loss.item()
                got = self.train(
                    name,
                    "-n",
                    2,
                    tokenizer=None,
                    model=dict(
                        config={},
                        name_or_path=str(self.folder / f"{name}-start"),
                        init="pretrained",
                    ),
                    data=dict(
                        train=[dict(path=str(self.write_tokens(rows)))],
                        packing=False,
                        shuffle=False,
                        holdout=0,
                    ),
                    training=dict(max_steps=steps, global_batch_size=batch, max_grad_norm=0),
                    optimizer=dict(learning_rate=1e-3, weight_decay=0.01, decay_all=True),
                )
                self.assert_losses(got, want, relative=1e-5)


if __name__ == "__main__":
    unittest.main()
