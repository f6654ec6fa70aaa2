"""Every recipe under recipes/ passes `shoal check`, builds its model and runs two steps."""

import unittest

from harness import LLAMA, ROOT, EndToEndTest

# Recipes whose model another one leaves.
START_FROM_OTHERS = ("finetune", "sft", "reward", "dpo", "ppo", "grpo_arithmetic")

# A rollout that is one step of four rows; sequences of which a step takes no minute.
SMALLER = {
    "long_context.yaml": ["data.seq_length=512"],
    "offload.yaml": [
        "model.config.hidden_size=256",
        "model.config.num_hidden_layers=3",
        "model.config.intermediate_size=704",
        "model.config.num_attention_heads=8",
    ],
    "grpo_arithmetic.yaml": ["rlhf.rollout.prompts=2", "rlhf.rollout.group_size=2"],
    "ppo.yaml": [
        "rlhf.rollout.prompts=4",
        "rlhf.rollout.epochs=1",
        "rlhf.rewards.0.kind=length",
        "rlhf.rewards.0.path=",
        "rlhf.rewards.0.target_tokens=2",
        "rlhf.critic.path=",
        "data.seq_length=128",  # The tiny model's tokenizer cuts prompts finer
    ],
    "cartpole.yaml": [
        "rlhf.environment.num_envs=2",
        "rlhf.environment.steps=8",
        "rlhf.environment.eval_episodes=2",
        "rlhf.rollout.epochs=1",
    ],
}


class RecipesTest(EndToEndTest):
    def tiny_export(self):
        model = dict(config=dict(LLAMA, max_position_embeddings=256))
        export = dict(export_hf="final")
        self.train("seed", "-n", 1, "training.max_steps=1", model=model, checkpoint=export)
        return self.folder / "seed/export"

    def test_every_recipe(self):
        recipes = sorted((ROOT / "recipes").rglob("*.yaml"))
        self.assertTrue(recipes)
        for path in recipes:
            with self.subTest(recipe=path.name):
                overrides = [
                    "training.max_steps=2",
                    "training.global_batch_size=4",
                    "eval.max_batches=1",
                    "sample.max_new_tokens=2",
                    f"run.output_dir={self.folder / path.stem}",
                ]
                if path.stem in START_FROM_OTHERS:
                    overrides.append(f"model.name_or_path={self.tiny_export()}")
                if path.name in SMALLER:
                    overrides += [*SMALLER[path.name], "checkpoint.save_steps=0"]
                self.shoal("check", path, "-n", 2, *overrides)
                self.shoal("run", path, "-n", 2, *overrides)
                head = path.read_text().split("\n\n")[0]
                for what in ("Hardware:", "Time:", "Expected:"):
                    self.assertIn(what, head, f"{path.name}'s head comment")


if __name__ == "__main__":
    unittest.main()
