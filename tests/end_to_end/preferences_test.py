"""Tasks sft, dpo and reward: the program on tiny recipes."""

import json
import math
import unittest

from harness import EndToEndTest

PAIRS = 26


class PreferencesTest(EndToEndTest):
    def setUp(self):
        super().setUp()
        self.train("base", "-n", 1, checkpoint=dict(export_hf="final"))
        with open(self.folder / "pairs.jsonl", "w") as pairs, open(self.folder / "answers.jsonl", "w") as answers:
            for i in range(PAIRS):
                prompt = "You may " + "use " * (i % 5)
                row = dict(prompt=prompt, chosen=f"the Work {i}", rejected="Derivative " * (1 + i % 3))
                pairs.write(json.dumps(row) + "\n")
                answers.write(json.dumps(dict(prompt=prompt, completion=row["chosen"])) + "\n")

    def job(self, name, *arguments, task, lora=False, **sections):
        model = dict(name_or_path=str(self.folder / "base/export"), init="pretrained", dtype="float64")
        if lora:
            model["lora"] = dict(rank=2, alpha=4, target_modules=["all-linear"])
        file = "answers.jsonl" if task == "sft" else "pairs.jsonl"
        path = self.folder / f"{name}.yaml"
        recipe = dict(
            task=task,
            run=dict(name=name, seed=7, output_dir=str(self.folder / name)),
            model=model,
            data=dict(train=[dict(path=str(self.folder / file))], holdout=0.25, seq_length=48),
            training=dict(max_steps=5, global_batch_size=8, gradient_accumulation_steps=1),
            optimizer=dict(name="adamw", learning_rate=1e-2),
            eval=dict(steps=5),
            checkpoint=dict(export_hf="never"),
        )
        for key, values in sections.items():
            recipe[key] = {**recipe.get(key, {}), **values}
        path.write_text(json.dumps(recipe, indent=1))
        self.shoal("run", path, *arguments)
        return self.losses(name)

    def test_layouts_and_batches_do_not_change_the_loss(self):
        for task, lora in (("sft", False), ("dpo", False), ("dpo", True), ("reward", True)):
            want = self.job(f"{task}{lora}", "-n", 1, task=task, lora=lora)
            for name, ranks, overrides in (
                ("single", 1, ["training.gradient_accumulation_steps=8"]),
                ("zero3", 2, ["zero.stage=3", "training.gradient_accumulation_steps=2"]),
                ("tensor", 2, ["parallelism.tensor_parallel=2"]),
                ("pipeline", 2, ["parallelism.pipeline_parallel=2", "training.gradient_accumulation_steps=2"]),
            ):
                got = self.job(f"{task}{lora}{name}", "-n", ranks, *overrides, task=task, lora=lora)
                self.assert_losses(got, want, relative=1e-10)
                ends = [self.metrics(run)[-1] for run in (f"{task}{lora}", f"{task}{lora}{name}")]
                self.assertAlmostEqual(ends[0]["eval_loss"], ends[1]["eval_loss"], delta=1e-10)

    def test_the_first_loss_is_ln_2_exactly(self):
        ln2 = math.log(2)
        for lora in (False, True):
            for dtype in ("float64", "float32"):
                losses = self.job(
                    f"{lora}{dtype}", "-n", 2, f"model.dtype={dtype}", task="dpo", lora=lora, eval=dict(steps=0)
                )
                self.assertLessEqual(abs(losses[1] - ln2), 1e-15 if dtype == "float64" else 3e-8)
                self.assertLess(losses[5], ln2)

    def test_other_losses_learn(self):
        for loss, beta in (("ipo", 0.1), ("kto", 0.5), ("simpo", 2.0)):
            preference = dict(loss=loss, beta=beta)
            losses = self.job(loss, "-n", 1, task="dpo", lora=True, preference=preference)
            self.assertLess(losses[5], losses[1])
            got = self.job(
                f"{loss}2",
                "-n",
                2,
                "training.gradient_accumulation_steps=2",
                task="dpo",
                lora=True,
                preference=preference,
            )
            self.assert_losses(got, losses, relative=1e-10)

    def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(self):
        settings = dict(run=dict(deterministic=True), scheduler=dict(type="constant"))
        for task, lora in (("dpo", False), ("dpo", True), ("reward", False)):
            want = self.job(f"{task}{lora}", "-n", 2, task=task, lora=lora, **settings)
            name = f"{task}{lora}resumed"
            self.job(name, "-n", 2, "training.max_steps=2", task=task, lora=lora, **settings)
            got = self.job(name, "-n", 2, task=task, lora=lora, **settings)
            self.assert_losses(got, want)

    def test_what_a_run_resolved_is_a_recipe_again(self):
        for task in ("sft", "dpo", "reward"):
            self.job(task, "-n", 1, task=task, lora=task == "dpo", training=dict(max_steps=1))
            resolved = self.folder / task / "recipe.resolved.yaml"
            self.assertIn("resolved.yaml: ok", self.shoal("check", resolved))

    def test_what_does_not_go_together_is_refused(self):
        path = self.write_recipe(
            "wrong", preference=dict(loss="kto", gamma=1.0), reward_model=dict(centering=0.1)
        )
        output = self.shoal("check", path, expect=None)
        self.assertIn("preference: is of task dpo", output)
        self.assertIn("reward_model: is of task reward", output)


if __name__ == "__main__":
    unittest.main()
