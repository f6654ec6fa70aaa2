"""Every recipe under recipes/ passes `shoal check`, builds its model and runs two steps."""

import unittest

from harness import LLAMA, ROOT, EndToEndTest


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
                if path.name == "finetune.yaml":  # Starts from the model that the quickstart leaves
                    overrides.append(f"model.name_or_path={self.tiny_export()}")
                self.shoal("check", path, *overrides)
                self.shoal("run", path, "-n", 2, *overrides)
                head = path.read_text().split("\n\n")[0]
                for what in ("Hardware:", "Time:", "Expected:"):
                    self.assertIn(what, head, f"{path.name}'s head comment")


if __name__ == "__main__":
    unittest.main()
