"""`shoal plan` tells what a run then does: bytes held and sent."""

import json
import re
import unittest

from harness import DOTS1, LLAMA, MIXTRAL, EndToEndTest


class PlanTest(EndToEndTest):
    def plan(self, path, *arguments):
        return json.loads(self.shoal("plan", path, "--hardware", "h100", "--json", *arguments))

    def test_planned_bytes_are_those_of_the_run(self):
        model = dict(dtype="float32", config=dict(LLAMA, num_hidden_layers=3, vocab_size=65536))
        batch = dict(max_steps=2, global_batch_size=16, gradient_accumulation_steps=2)
        for name, ranks, overrides in (
            ("zero3", 2, []),
            ("tensor", 2, ["parallelism.tensor_parallel=2", "training.label_smoothing_factor=0.1"]),
            (
                "all",
                8,
                [
                    "parallelism.tensor_parallel=2",
                    "parallelism.pipeline_parallel=2",
                    "zero.stage=2",
                    "model.dtype=bfloat16",
                    "training.activation_checkpointing=selective",
                ],
            ),
        ):
            path = self.write_recipe(name, model=model, training=batch)
            arguments = ["-n", ranks, *overrides]
            ranks_planned = self.plan(path, *arguments)["ranks"]
            rank = ranks_planned[0]
            output = self.shoal("run", path, *arguments, f"run.output_dir={self.folder / name}")
            row = [row for row in self.metrics(name) if "loss" in row][-1]
            self.assertEqual(rank["sent_bytes"]["total"], row["bytes_sent"], name)
            total = max(r["memory_bytes"]["total_estimate"] for r in ranks_planned)
            self.assertLess(abs(total / row["peak_tensor_bytes"] - 1), 0.03, name)
            held = re.search(r"held/rank weights ([\d.]+ \w+),", output).group(1)
            text = self.shoal("plan", path, "--hardware", "h100", *arguments)
            self.assertIn(f"bytes_sent of metrics.jsonl: {row['bytes_sent']}", text)
            if name != "all":
                self.assertRegex(text, rf"weights +{re.escape(held)}")

    def test_planned_bytes_of_experts(self):
        # Every token chooses all experts, so what their ranks send one another is known.
        size = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=3, vocab_size=8192)
        mixtral = dict(MIXTRAL, **size, num_experts_per_tok=4)
        dots1 = dict(
            DOTS1,
            **size,
            moe_intermediate_size=64,
            n_routed_experts=4,
            n_shared_experts=2,
            num_experts_per_tok=4,
            n_group=1,
            topk_group=1,
        )
        batch = dict(max_steps=2, global_batch_size=32, gradient_accumulation_steps=1)
        for name, config, ranks, overrides in (
            ("alone", mixtral, 1, []),
            ("experts", mixtral, 2, ["parallelism.expert_parallel=2", "zero.stage=2"]),
            ("tensor", mixtral, 2, ["parallelism.tensor_parallel=2", "model.dtype=bfloat16"]),
            ("dots1", dots1, 1, ["moe.bias_update_rate=0.01"]),
            ("dots1-experts", dots1, 2, ["parallelism.expert_parallel=2", "zero.stage=3"]),
            ("dots1-tensor", dots1, 2, ["parallelism.tensor_parallel=2", "model.dtype=bfloat16"]),
        ):
            model = dict(dtype="float32", config=config)
            path = self.write_recipe(name, model=model, training=batch)
            arguments = ["-n", ranks, *overrides]
            ranks_planned = self.plan(path, *arguments)["ranks"]
            self.shoal("run", path, *arguments, f"run.output_dir={self.folder / name}")
            row = [row for row in self.metrics(name) if "loss" in row][-1]
            self.assertEqual(ranks_planned[0]["sent_bytes"]["total"], row["bytes_sent"], name)
            total = max(r["memory_bytes"]["total_estimate"] for r in ranks_planned)
            self.assertLess(abs(total / row["peak_tensor_bytes"] - 1), 0.03, name)

    def test_the_suggested_overrides_are_a_recipe(self):
        path = self.write_recipe()
        arguments = ["-n", 4, "--hardware", "h100", "--suggest"]
        best = json.loads(self.shoal("plan", path, *arguments, "--json"))["best"][0]
        text = self.shoal("plan", path, *arguments)
        self.assertIn("the first: " + " ".join(best["overrides"]), text)
        self.shoal("check", path, "-n", 4, *best["overrides"])

    def test_what_is_wrong_is_named(self):
        path = self.write_recipe()
        self.assertIn(
            "did you mean h100?", self.shoal("plan", path, "--hardware", "h10", expect=64)
        )
        hardware = self.folder / "ours.yaml"
        hardware.write_text("ranks_per_hosts: 8\n")
        self.assertIn(
            "did you mean ranks_per_host?",
            self.shoal("plan", path, "--hardware", hardware, expect=64),
        )
        self.assertIn(
            "do not divide over tensor_parallel 3",
            self.shoal("plan", path, "-n", 3, "parallelism.tensor_parallel=3", expect=64),
        )


if __name__ == "__main__":
    unittest.main()
