"""GRPO and PPO from recipes: the same tokens, rewards and curve on any mesh, and after any kill."""

import json
import math
import os
import signal
import unittest

from harness import ROOT, EndToEndTest, rank_processes, start, wait_for

# A short answer is a good one: something that a tiny model can learn at once.
REWARD = [dict(kind="length", target_tokens=1), dict(kind="regex", pattern="e", weight=0.1)]
ROLLOUT = dict(prompts=4, group_size=4, max_new_tokens=6)
MESHES = [
    (1, []),
    (1, ["training.per_device_train_batch_size=2"]),
    (2, ["zero.stage=0"]),
    (2, ["zero.stage=3"]),
    (2, ["parallelism.tensor_parallel=2"]),
    (2, ["parallelism.pipeline_parallel=2", "training.per_device_train_batch_size=4"]),
]


class RlhfTest(EndToEndTest):
    def setUp(self):
        super().setUp()
        self.train("seed", "-n", 1, training=dict(max_steps=2), checkpoint=dict(export_hf="final"))
        lines = [dict(prompt=f"Section {i}. the", answer=i) for i in range(7)]
        self.prompts = self.folder / "prompts.jsonl"
        self.prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def recipe_of(self, name, task="grpo", rlhf=None, **sections):
        given = dict(
            task=task,
            rlhf={
                **dict(prompts=str(self.prompts), eval_prompts=str(self.prompts)),
                **dict(rewards=REWARD, rollout=ROLLOUT),
                **(rlhf or {}),
            },
            model=dict(
                name_or_path=str(self.folder / "seed/export"),
                init="pretrained",
                dtype="float64",
            ),
            tokenizer=None,
            data=None,
            training=dict(max_steps=6, global_batch_size=8),
            optimizer=dict(learning_rate=1e-3),
            checkpoint=dict(export_hf="never"),
        )
        given.update(sections)
        path = self.write_recipe(name, **{k: v for k, v in given.items() if k != "task"})
        whole = json.loads(path.read_text())
        whole["task"] = task
        whole["model"].pop("config")
        whole["training"].pop("gradient_accumulation_steps")
        path.write_text(json.dumps(whole, indent=1))
        return path

    def run_on(self, name, path, ranks, *overrides):
        output = self.shoal("run", path, "-n", ranks, f"run.output_dir={self.folder / name}", *overrides)
        self.assertNotIn("differ by a factor", output)
        return self.metrics(name)

    def assert_same(self, got, want, what):
        self.assertEqual(len(got), len(want), what)
        for ours, theirs in zip(got, want):
            for key in theirs:
                if key in ("loss", "grad_norm", "kl") or "reward" in key or "value" in key:
                    scale = max(1.0, abs(theirs[key]))
                    self.assertLessEqual(
                        abs(ours[key] - theirs[key]),
                        1e-9 * scale,
                        f"{what}, step {theirs['step']}, {key}: got {ours[key]!r}, want {theirs[key]!r}",
                    )
                elif "tokens" in key and "second" not in key and key != "tokens":
                    self.assertEqual(ours[key], theirs[key], f"{what}, {key}")

    def test_any_mesh_gives_the_same_curve(self):
        path = self.recipe_of("grpo", rlhf=dict(kl=dict(coef=0.05)))
        want = None
        for i, (ranks, overrides) in enumerate(MESHES):
            got = self.run_on(f"mesh{i}", path, ranks, *overrides)
            rewards = [row["reward"] for row in got if "reward" in row]
            self.assertEqual(len(rewards), 6)
            self.assertGreater(len(set(rewards)), 1)
            for row in got:
                self.assertLess(row.get("logprob_error", 0), 1e-10)
            want = want or got
            self.assert_same(got, want, f"{ranks} ranks {overrides}")

    def test_ppo_on_any_mesh(self):
        rlhf = dict(kl=dict(coef=0.05), critic=dict(learning_rate=3e-3))
        path = self.recipe_of("ppo", task="ppo", rlhf=rlhf)
        want = None
        for ranks, overrides in MESHES[0], MESHES[3], MESHES[4]:
            got = self.run_on(f"ppo{ranks}{len(overrides)}{overrides}", path, ranks, *overrides)
            self.assertTrue(all("value_loss" in row for row in got if "loss" in row))
            want = want or got
            self.assert_same(got, want, f"{ranks} ranks {overrides}")

    def test_adapters_against_the_model_without_them(self):
        model = dict(
            name_or_path=str(self.folder / "seed/export"),
            init="pretrained",
            dtype="float64",
            lora=dict(rank=4, target_modules=["all-linear"]),
        )
        path = self.recipe_of("lora", rlhf=dict(kl=dict(coef=0.05)), model=model)
        want = self.run_on("lora1", path, 1)
        kl = [row["kl"] for row in want if "kl" in row]
        self.assertEqual(kl[0], 0, "the reference is where the policy begins")
        self.assertGreater(kl[-1], 0)
        self.assert_same(self.run_on("lora2", path, 2, "zero.stage=3"), want, "two ranks")

    def test_an_environment_on_any_mesh(self):
        recipe = ROOT / "recipes/rlhf/cartpole.yaml"
        overrides = [
            "model.dtype=float64",
            "training.max_steps=8",
            "training.global_batch_size=8",
            "rlhf.environment.num_envs=4",
            "rlhf.environment.steps=8",
            "rlhf.environment.eval_episodes=3",
            "rlhf.rollout.epochs=2",
            "checkpoint.save_steps=0",
            "checkpoint.export_hf=never",
            "logging.steps=1",
        ]
        want = None
        for i in (0, 3, 4):
            ranks, mesh = MESHES[i]
            got = self.run_on(f"cartpole{i}", recipe, ranks, *overrides, *mesh)
            want = want or got
            self.assert_same(got, want, f"{ranks} ranks {mesh}")

    def test_balances_the_pole(self):
        rows = self.run_on("cartpole", ROOT / "recipes/rlhf/cartpole.yaml", 2)
        self.assertGreaterEqual(rows[-1]["eval_reward"], 475)

    def test_goes_on_after_any_kill(self):
        """Of one rank, of the other, of the program with all its ranks."""
        for task in ("grpo", "ppo"):
            path = self.recipe_of(
                f"{task}-kill",
                task=task,
                rlhf=dict(kl=dict(coef=0.05)),
                training=dict(max_steps=40, global_batch_size=8),
                checkpoint=dict(save_steps=4, export_hf="never"),
            )
            want = self.run_on(f"{task}-whole", path, 2)
            killed = self.folder / f"{task}-killed"
            for step, victim in ((4, 0), (12, 1), (20, None)):
                process = start("run", path, "-n", 2, f"run.output_dir={killed}")
                saved = killed / f"checkpoints/step-{step}"
                try:
                    wait_for(lambda: saved.exists() or process.poll() is not None, 120, "checkpoint")
                    if victim is not None:
                        os.kill(rank_processes(process.pid)[victim], signal.SIGKILL)
                        process.communicate(timeout=60)
                finally:
                    self.end(process)
                self.assertNotEqual(process.returncode, 0, "ended before it was killed")
            got = self.run_on(killed.name, path, 2)
            last = {(row["step"], "loss" in row): row for row in got}
            self.assert_same([last[row["step"], "loss" in row] for row in want], want, task)

    def test_in_bfloat16(self):
        path = self.recipe_of("bfloat16", rlhf=dict(kl=dict(coef=0.05)))
        rows = self.run_on("bfloat16", path, 2, "model.dtype=bfloat16", "zero.stage=3")
        errors = [row["logprob_error"] for row in rows if "logprob_error" in row]
        self.assertEqual(len(errors), 6)
        self.assertLess(max(errors), 5e-3)
        self.assertTrue(all(math.isfinite(row["loss"]) for row in rows if "loss" in row))

    def test_dropout_is_off(self):
        path = self.recipe_of("dropout")
        rate = "model.config.attention_dropout=0.3"
        output = self.shoal("run", path, "-n", 1, rate, f"run.output_dir={self.folder / 'off'}")
        self.assertIn("dropout   off", output)
        want = self.run_on("none", path, 1)
        self.assert_same(self.metrics("off"), want, rate)

    def test_learns_what_is_rewarded(self):
        path = self.recipe_of(
            "learn",
            rlhf=dict(rewards=[dict(kind="regex", pattern="e")]),
            model=dict(name_or_path=str(self.folder / "seed/export"), init="pretrained"),
            training=dict(max_steps=30, global_batch_size=16),
            optimizer=dict(learning_rate=1e-2),
        )
        rows = [row for row in self.run_on("learn", path, 2) if "reward" in row]
        first = sum(row["reward"] for row in rows[:5]) / 5
        last = sum(row["reward"] for row in rows[-5:]) / 5
        self.assertGreater(last, first + 0.2)

    def test_errors_name_their_place(self):
        def fails(name, what, *overrides, **given):
            path = self.recipe_of(name, **given)
            output = self.shoal(
                "run", path, "-n", 2, f"run.output_dir={self.folder / name}", *overrides, expect=None
            )
            self.assertIn(what, output)

        dead = [dict(kind="program", command="read line; exit 1")]
        silent = [dict(kind="program", command="sleep 100", timeout_s=0.5)]
        fails("dead", "ended before it had answered", rlhf=dict(rewards=dead))
        fails("silent", "was silent", rlhf=dict(rewards=silent))
        fails("uneven", "does not divide into steps", "rlhf.rollout.prompts=5")
        fails("middle", "expected a multiple of the 2 steps", "training.max_steps=5")
        fails("alone", "expected 2 or more", "rlhf.rollout.group_size=1")
        fails("lost", "prompts.json", f"rlhf.prompts={self.folder}/prompts.json")
        self.prompts.write_text('{"prompt": "good"}\n{"text": "bad"}\n')
        fails("bad", "prompts.jsonl:2")


if __name__ == "__main__":
    unittest.main()
