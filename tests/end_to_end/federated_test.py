"""Federated runs: the same bytes on any number of ranks, after a kill too; bad recipes say where."""

import hashlib
import json
import signal
import struct
import unittest

from harness import LLAMA, ROOT, EndToEndTest, rank_processes, start, wait_for

import os

BOOKS = ["README.md", "docs/architecture.md", "docs/recipes.md", "docs/families.md", "CONTRIBUTING.md"]
SECTIONS = dict(
    task="federated",
    model=dict(config=dict(LLAMA, max_position_embeddings=64)),
    training=dict(max_steps=6, global_batch_size=4, gradient_accumulation_steps=1, max_grad_norm=1),
    optimizer=dict(name="sgd", learning_rate=0.5, weight_decay=0),
    zero=dict(stage=0),
    checkpoint=dict(save_steps=1, save_total_limit=100, export_hf="never"),
)


def tensors(path):
    """name -> bytes of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    body = data[8 + length :]
    return {
        name: body[slice(*entry["data_offsets"])]
        for name, entry in header.items()
        if name != "__metadata__"
    }


class FederatedTest(EndToEndTest):
    def federated_recipe(self, name, federated=None, **sections):
        merged = {**SECTIONS, **sections}
        merged["federated"] = dict(
            clients_per_round=3, local_steps=2, server=dict(name="yogi", learning_rate=0.01)
        )
        merged["federated"].update(federated or {})
        merged["data"] = dict(
            train=[dict(path=str(ROOT / book), format="text") for book in BOOKS], holdout=0.1
        )
        task = merged.pop("task")
        path = self.write_recipe(name, **merged)
        text = json.loads(path.read_text())
        text["task"] = task
        path.write_text(json.dumps(text, indent=1))
        return path

    def weights(self, name, step):
        """Digest of all tensors of a checkpoint, whatever ranks wrote them."""
        pieces = {}
        for path in sorted((self.folder / name / f"checkpoints/step-{step}").glob("*.safetensors")):
            pieces.update(tensors(path))
        self.assertTrue(pieces)
        digest = hashlib.sha256()
        for key in sorted(pieces):
            digest.update(key.encode() + pieces[key])
        return digest.hexdigest()

    def run_recipe(self, path, name, ranks, *overrides):
        return self.shoal(
            "run", path, "-n", ranks, f"run.output_dir={self.folder / name}", *overrides
        )

    def test_the_same_bytes_on_1_2_and_4_ranks(self):
        path = self.federated_recipe("ranks")
        for ranks in (1, 2, 4):
            self.run_recipe(path, f"on{ranks}", ranks)
        self.run_recipe(path, "turn", 2, "federated.assignment=round_robin")
        want = self.weights("on1", 6)
        for name in ("on2", "on4", "turn"):
            self.assertEqual(self.weights(name, 6), want, name)
            self.assert_losses(self.losses(name), self.losses("on1"))
        evals = [row["eval_loss"] for row in self.metrics("on4") if "eval_loss" in row]
        self.assertEqual(evals, [r["eval_loss"] for r in self.metrics("on1") if "eval_loss" in r])
        losses = self.losses("on1")
        self.assertLess(losses[6], losses[1])

    def test_dropout_drops_the_same_on_any_ranks(self):
        model = dict(config=dict(LLAMA, max_position_embeddings=64, attention_dropout=0.3))
        path = self.federated_recipe("dropout", model=model)
        for ranks in (1, 3):
            self.run_recipe(path, f"drops{ranks}", ranks)
        self.assertEqual(self.weights("drops3", 6), self.weights("drops1", 6))
        self.run_recipe(path, "keeps", 1, "model.config.attention_dropout=0")
        self.assertNotEqual(self.weights("keeps", 6), self.weights("drops1", 6))

    def test_a_killed_rank_and_a_resume_give_the_same(self):
        for federated in (dict(), dict(algorithm="scaffold", server=dict(name="sgd"))):
            name = federated.get("algorithm", "yogi")
            path = self.federated_recipe(
                name, federated, training=dict(SECTIONS["training"], max_steps=12, max_grad_norm=0)
            )
            self.run_recipe(path, f"{name}-whole", 2)
            process = start(
                "run", path, "-n", 2, f"run.output_dir={self.folder / (name + '-killed')}"
            )
            saved = self.folder / f"{name}-killed/checkpoints/step-3"
            wait_for(lambda: saved.exists() or process.poll() is not None, 120, "checkpoint")
            for victim in rank_processes(process.pid)[-1:]:
                os.kill(victim, signal.SIGKILL)
            process.communicate(timeout=60)
            self.assertNotEqual(process.returncode, 0)
            output = self.run_recipe(path, f"{name}-killed", 3)
            self.assertIn("resumed", output)
            self.assertEqual(self.weights(f"{name}-killed", 12), self.weights(f"{name}-whole", 12))
            self.assert_losses(self.losses(f"{name}-killed"), self.losses(f"{name}-whole"))

    def test_adapters_alone_are_trained_and_sent(self):
        path = self.federated_recipe(
            "adapters",
            training=dict(SECTIONS["training"], max_steps=2),
            model=dict(
                config=dict(LLAMA, max_position_embeddings=64),
                lora=dict(rank=2, target_modules=["q_proj", "v_proj"]),
            ),
        )
        self.run_recipe(path, "adapters", 2)
        sent = [row["bytes_sent"] for row in self.metrics("adapters") if "bytes_sent" in row]
        hidden, layers, r = LLAMA["hidden_size"], LLAMA["num_hidden_layers"], 2
        kv = hidden // LLAMA["num_attention_heads"] * LLAMA["num_key_value_heads"]
        adapters = layers * r * (hidden + hidden + hidden + kv)
        # An int64 all-reduce of the adapters and the divisor, and a few rows of figures.
        self.assertLess(sent[0], 8 * (adapters + 1) + 1000)

    def test_it_exports_what_it_trained(self):
        path = self.federated_recipe(
            "export",
            training=dict(SECTIONS["training"], max_steps=2),
            checkpoint=dict(export_hf="final"),
        )
        self.run_recipe(path, "export", 2)
        self.assertTrue((self.folder / "export/export/model.safetensors").exists())
        self.shoal("generate", self.folder / "export/export", "--prompt", "The", "--max-new-tokens", 4)

    def test_mistakes_say_where(self):
        for overrides, words in (
            (["federated.group_size=3"], "divisor of the 2 ranks"),
            (["federated.clients_per_round=77"], "clients a round"),
            (["federated.algorithm=scaffold", "optimizer.momentum=0.9"], "plain SGD"),
            (["federated.num_clients=4"], "partition natural"),
            (["federated.server.momentum=0.5"], "is of name sgd"),
            (["federated.privacy.clip_norm=1"], "weighting: equal"),
            (["federated.aggregation=median", "federated.secure_aggregation.enabled=true"], "hides"),
            (["task=pretrain"], "is of task federated"),
        ):
            path = self.federated_recipe("mistake")
            output = self.shoal(
                "run", path, "-n", 2, f"run.output_dir={self.folder / 'bad'}", *overrides, expect=None
            )
            self.assertIn(words, output)


if __name__ == "__main__":
    unittest.main()
