"""`shoal parity`: layouts that agree, differences that are named, recipes that are refused."""

import os
import re
import signal
import unittest

from harness import GPT2, ROOT, EndToEndTest, environment, rank_processes, start, wait_for

DIVERGED = 77
USAGE = 64


class ParityCommandTest(EndToEndTest):
    def setUp(self):
        super().setUp()
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()

    def environment(self):
        return environment(TMPDIR=str(self.temporary))

    def parity(self, *arguments, **options):
        """The lines that `shoal parity` prints; it must leave nothing behind."""
        output = self.shoal("parity", *arguments, env=self.environment(), **options)
        self.assertEqual(os.listdir(self.temporary), [], output)
        return output.strip().splitlines()

    def test_meshes_agree_in_float64(self):
        for name, model in (("llama", {}), ("gpt2", dict(config=GPT2))):
            with self.subTest(model=name):
                recipe = self.write_recipe(
                    name, model=model, training=dict(gradient_accumulation_steps=2)
                )
                lines = self.parity(
                    recipe,
                    "model.dtype=float64",
                    *("-n", 1, "--ranks-b", 4, "--a", "zero.stage=0"),
                    *("--b", "zero.stage=3", "parallelism.tensor_parallel=2"),
                    "parallelism.pipeline_parallel=2",
                )
                self.assertRegex(lines[-1], r"^equal within 1e-10 over 3 steps: largest difference")
                for row in ("start", "step 3", "loss", "gradient", "weights", "adam_v"):
                    self.assertTrue(any(line.startswith(row) for line in lines), (row, lines))

    def test_stages_are_equal_to_the_last_bit(self):
        lines = self.parity(
            self.write_recipe(),
            *("-n", 2, "--tolerance", 0, "--steps", 2),
            *("--a", "zero.stage=0", "--b", "zero.stage=3"),
        )
        self.assertEqual(lines[-1], "equal to the last bit over 2 steps")

    def test_a_difference_is_named(self):
        """Two files; precision is the one thing that may differ and changes the numbers."""
        lines = self.parity(
            self.write_recipe("single"),
            self.write_recipe("double", model=dict(dtype="float64")),
            *("--tolerance", 1e-12),
            expect=DIVERGED,
        )
        verdict = r"^shoal: (start|step 1): .* of (model|lm_head)\S+ differs first: \S+ relative at"
        self.assertTrue(any(re.match(verdict, line) for line in lines), lines)

    def test_the_default_tolerance_takes_the_coarser_type(self):
        lines = self.parity(self.write_recipe(), "--b", "model.dtype=float64")
        self.assertIn("equal within 0.0002 over 3 steps", lines[-1])

    def test_incomparable_recipes_are_refused_in_one_line(self):
        recipe = self.write_recipe()
        lines = self.parity(recipe, "--b", "optimizer.learning_rate=0.5", expect=USAGE)
        self.assertEqual(len(lines), 1, lines)
        self.assertIn("optimizer.learning_rate is 0.003 in A and 0.5 in B", lines[0])
        lines = self.parity(recipe, "--b", "training.global_batch_size=16", expect=USAGE)
        self.assertIn("training.global_batch_size is 8 in A and 16 in B", lines[0])
        lines = self.parity(recipe, "--ranks-b", 3, expect=USAGE)
        self.assertIn("training.global_batch_size", lines[0])

    def test_tasks_without_recorded_steps_are_refused(self):
        for recipe in "rlhf/cartpole.yaml", "federated/digits.yaml":
            lines = self.parity(ROOT / "recipes" / recipe, expect=USAGE)
            self.assertEqual(len(lines), 1, lines)
            self.assertIn("pretrain, sft, dpo or reward", lines[0])

    def test_a_failing_side_is_told(self):
        output = self.parity(
            self.write_recipe(), "--b", "model.freeze=[nothing_is_called_so]", expect=USAGE
        )
        self.assertIn("model.freeze", "\n".join(output))

    def test_keep(self):
        kept = self.folder / "kept"
        recipe = self.write_recipe()
        self.parity(recipe, "--steps", 1, "--keep", kept)
        for name in ("a/step-0", "a/step-1", "b/step-1"):
            self.assertTrue((kept / name / "MANIFEST").exists(), name)
        lines = self.parity(recipe, "--keep", kept, expect=USAGE)
        self.assertIn("is not empty", lines[0])

    def test_fewer_steps_than_asked(self):
        lines = self.parity(self.write_recipe(), "--steps", 9)
        self.assertEqual(lines[-1], "equal to the last bit over 6 steps")

    def test_a_signal_leaves_nothing(self):
        steps = dict(max_steps=100000)
        process = start(
            *("parity", self.write_recipe(training=steps), "-n", 2, "--steps", 100000),
            env=self.environment(),
        )
        try:
            wait_for(
                lambda: list(self.temporary.glob("*/a/step-1")) or process.poll() is not None,
                120,
                "first step",
            )
            ranks = rank_processes(process.pid)
            self.assertEqual(len(ranks), 2)
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=60)
        except BaseException:
            self.end(process)
            raise
        self.assertEqual(process.returncode, 128 + signal.SIGTERM, output)
        self.assertEqual(os.listdir(self.temporary), [], output)


if __name__ == "__main__":
    unittest.main()
