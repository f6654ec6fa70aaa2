"""Ranks that share sequences: the losses of one rank, the bytes and the memory that `shoal plan` tells."""

import json
import unittest

from harness import DOTS1, GPT2, LLAMA, EndToEndTest, recipe

RING = ["parallelism.context_parallel=2"]
ULYSSES = [*RING, "parallelism.context_method=ulysses"]


class ContextTest(EndToEndTest):
    def test_shared_sequences_do_not_change_losses(self):
        for config in (LLAMA, dict(GPT2, attn_pdrop=0.1, resid_pdrop=0.1)):
            model = dict(dtype="float64", config=config)
            batch = dict(max_steps=3, global_batch_size=8, gradient_accumulation_steps=2)
            for data in (dict(document_mask=True), dict(packing=False)):
                settings = dict(model=model, training=batch, data=data, eval=dict(steps=3))
                base = f"{config['model_type']}-{'-'.join(data)}"
                want = self.train(f"{base}-one", "-n", 1, **settings)
                for name, ranks, overrides in (
                    ("ring", 4, ["parallelism.context_parallel=4", "comm.transport=mpi"]),
                    ("ulysses", 4, [*ULYSSES, "parallelism.tensor_parallel=2"]),
                    ("all", 8, [*RING, "parallelism.tensor_parallel=2", "parallelism.pipeline_parallel=2"]),
                ):
                    name = f"{base}-{name}"
                    got = self.train(name, "-n", ranks, *overrides, **settings)
                    self.assert_losses(got, want, relative=1e-11)
                    self.assertAlmostEqual(
                        self.eval_loss(name) / self.eval_loss(f"{base}-one"), 1, delta=1e-11
                    )

    def test_experts(self):
        settings = dict(
            model=dict(dtype="float64", config=dict(DOTS1, aux_loss_alpha=0.05)),
            training=dict(max_steps=3, global_batch_size=8, gradient_accumulation_steps=2),
            moe=dict(capacity_factor=0.8, router_z_loss_coef=0.01, bias_update_rate=0.01),
        )
        want = self.train("whole-experts", "-n", 1, **settings)
        whole = self.metrics("whole-experts")[2]
        for name, arguments in (
            ("ring-shared", ["-n", 4, *RING, "parallelism.expert_parallel=2"]),
            ("ulysses-shared", ["-n", 4, *ULYSSES, "parallelism.expert_parallel=2"]),
            ("ring", ["-n", 2, *RING]),
            ("ulysses", ["-n", 2, *ULYSSES, "training.activation_checkpointing=full"]),
        ):
            name = f"{name}-experts"
            self.assert_losses(self.train(name, *arguments, **settings), want, relative=1e-11)
            row = self.metrics(name)[2]
            for figure in ("expert_load_max", "router_balance_loss", "router_z_loss", "dropped_share"):
                self.assertAlmostEqual(row[figure], whole[figure], delta=1e-11 * abs(whole[figure]))
            if "shared" in name:
                continue  # What experts are sent depends on what tokens choose
            path = self.folder / f"{name}.yaml"
            plan = json.loads(self.shoal("plan", path, "--hardware", "h100", "--json", *arguments))
            self.assertEqual(plan["ranks"][0]["sent_bytes"]["total"], row["bytes_sent"], name)

    def eval_loss(self, name):
        return [row["eval_loss"] for row in self.metrics(name) if "eval_loss" in row][-1]

    def test_answers(self):
        lines = self.folder / "answers.jsonl"
        lines.write_text(
            "".join(
                json.dumps({"prompt": f"Say {'so ' * (i % 5)}", "completion": f" yes {i}" * (1 + i % 4)}) + "\n"
                for i in range(40)
            )
        )
        self.train("start", "-n", 1, checkpoint=dict(export_hf="final"))
        settings = dict(
            tokenizer=None,
            data=dict(train=[dict(path=str(lines))], holdout=0),
            training=dict(max_steps=3, global_batch_size=8, gradient_accumulation_steps=1),
        )
        path = self.folder / "answers.yaml"
        start = dict(dtype="float64", name_or_path=str(self.folder / "start/export"), init="pretrained")
        path.write_text(json.dumps(dict(recipe(**settings), task="sft", model=start)))
        want = None
        for name, arguments in (("one", ["-n", 1]), ("ring", ["-n", 4, *RING]), ("ulysses", ["-n", 4, *ULYSSES])):
            self.shoal("run", path, *arguments, f"run.output_dir={self.folder / name}")
            got = self.losses(name)
            want = want or got
            self.assert_losses(got, want, relative=1e-11)

    def test_a_checkpoint_goes_on_with_sequences_whole_and_back(self):
        model = dict(dtype="float64")
        want = self.train("whole", "-n", 1, model=model)
        for first, then in ((["-n", 4, *RING], ["-n", 1]), (["-n", 1], ["-n", 4, *ULYSSES])):
            name = f"moved{len(first)}"
            self.train(name, *first, "training.max_steps=3", "checkpoint.save_steps=3", model=model)
            got = self.train(name, *then, model=model)
            self.assertIn(6, got)
            self.assert_losses(
                {step: loss for step, loss in got.items() if step > 3},
                {step: loss for step, loss in want.items() if step > 3},
                relative=1e-11,
            )

    def test_planned_bytes_are_those_of_the_run(self):
        config = dict(LLAMA, num_hidden_layers=3, hidden_size=64, max_position_embeddings=2048)
        batch = dict(max_steps=2, global_batch_size=4, gradient_accumulation_steps=2)
        data = dict(seq_length=2048, holdout=0)
        for method, overrides in (("ring", RING), ("ulysses", ULYSSES)):
            for dtype, keeps in (("float32", "none"), ("bfloat16", "none"), ("bfloat16", "selective")):
                name = f"{method}-{dtype}-{keeps}"
                path = self.write_recipe(
                    name, model=dict(dtype=dtype, config=config), training=batch, data=data
                )
                arguments = ["-n", 2, *overrides, f"training.activation_checkpointing={keeps}"]
                plan = json.loads(
                    self.shoal("plan", path, "--hardware", "h100", "--json", *arguments)
                )["ranks"][0]
                self.shoal("run", path, *arguments, f"run.output_dir={self.folder / name}")
                row = [row for row in self.metrics(name) if "loss" in row][-1]
                self.assertEqual(plan["sent_bytes"]["total"], row["bytes_sent"], name)
                self.assertGreater(plan["sent_bytes"]["context"], 0)
                total = plan["memory_bytes"]["total_estimate"]
                self.assertLess(abs(total / row["peak_tensor_bytes"] - 1), 0.03, name)

    def test_parity_compares_shared_sequences_with_whole_ones(self):
        path = self.write_recipe(model=dict(dtype="float64"))
        output = self.shoal("parity", path, "-n", 1, "--ranks-b", 2, "--steps", 2, "--b", *RING)
        self.assertIn("equal within 1e-10 over 2 steps", output)

    def test_what_does_not_go_together_is_refused(self):
        path = self.write_recipe()
        for command in ("run", "plan"):
            output = self.shoal(command, path, "-n", 3, "parallelism.context_parallel=3", expect=64)
            self.assertIn("expected a multiple of 2 * context_parallel 3 = 6, such as 30 or 36", output)
        deep = ["parallelism.context_parallel=8", "parallelism.context_method=ulysses"]
        for command in ("run", "plan"):
            output = self.shoal(command, path, "-n", 8, *deep, expect=64)
            self.assertIn("got 8, expected a divisor of the 4 heads with context_method ulysses", output)


if __name__ == "__main__":
    unittest.main()
