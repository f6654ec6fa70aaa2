"""Every command on the model of one tiny run."""

import json
import math
import pathlib
import shutil
import subprocess
import tempfile
import unittest

from harness import SHOAL, TEXT, EndToEndTest, environment


class CommandsTest(EndToEndTest):
    """The run is made once, by the first test."""

    trained = None

    @classmethod
    def setUpClass(cls):
        cls.shared = pathlib.Path(tempfile.mkdtemp(prefix="shoal-e2e-"))
        cls.addClassCleanup(shutil.rmtree, cls.shared, ignore_errors=True)

    def run_folder(self):
        if CommandsTest.trained is None:
            own, self.folder = self.folder, self.shared
            self.train(
                "run",
                "-n",
                2,
                checkpoint=dict(export_hf="final"),
                eval=dict(steps=3),
                sample=dict(prompts=["The"], max_new_tokens=4),
            )
            self.folder = own
            CommandsTest.trained = self.shared / "run"
        return self.trained

    def test_run_leaves_what_it_promises(self):
        run = self.run_folder()
        for name in (
            "metrics.jsonl",
            "recipe.resolved.yaml",
            "report.html",
            "export/config.json",
            "export/model.safetensors",
            "export/tokenizer.json",
            "export/generation_config.json",
        ):
            self.assertTrue((run / name).exists(), name)
        self.assertTrue(list((run / "tensorboard").iterdir()))
        self.assertTrue((run / "checkpoints/step-6").is_dir())
        rows = self.metrics(run)
        steps = [row for row in rows if "loss" in row]
        self.assertEqual([row["step"] for row in steps], [1, 2, 3, 4, 5, 6])
        for key in (
            "grad_norm",
            "learning_rate",
            "tokens",
            "tokens_per_second",
            "step_seconds",
            "peak_rss_bytes",
            "bytes_sent",
        ):
            self.assertIn(key, steps[0])
        self.assertTrue(any("eval_loss" in row for row in rows))

    def test_the_resolved_recipe_runs_again(self):
        run = self.run_folder()
        self.shoal(
            "run", run / "recipe.resolved.yaml", "-n", 2, f"run.output_dir={self.folder / 'again'}"
        )
        want = self.losses(run)
        self.assert_losses(self.losses("again"), want)

    def test_tokenize_then_score(self):
        export = self.run_folder() / "export"
        text = self.folder / "text.txt"
        text.write_text("The quick brown fox — licensed under the License.")
        ids = json.loads(self.shoal("tokenize", export, "--file", text))
        self.assertGreater(len(ids), 5)
        tokens = self.folder / "tokens.json"
        tokens.write_text(json.dumps({"input_ids": [ids, ids[:4]]}))
        logprobs = json.loads(self.shoal("score", export, "--file", tokens))["logprobs"]
        self.assertEqual([len(row) for row in logprobs], [len(ids) - 1, 3])
        self.assertTrue(all(math.isfinite(p) and p <= 0 for row in logprobs for p in row))
        for short, long in zip(logprobs[1], logprobs[0]):
            self.assertAlmostEqual(short, long, places=4)

    def test_generate(self):
        export = self.run_folder() / "export"
        arguments = (
            "generate",
            export,
            "--prompt",
            "The License",
            "--max-new-tokens",
            8,
            "--temperature",
            0,
        )
        first = self.shoal(*arguments)
        self.assertIn("The License", first)
        # The last line is the statistics, on standard error.
        self.assertEqual(first.splitlines()[:-1], self.shoal(*arguments).splitlines()[:-1])
        # Two ranks share each matrix; one of them prints.
        self.assertEqual(
            first.splitlines()[:-1], self.shoal(*arguments, "-n", 2).splitlines()[:-1]
        )

    def test_generate_beams(self):
        export = self.run_folder() / "export"
        arguments = ("generate", export, "--prompt", "The License", "--max-new-tokens", 6)
        best = self.shoal(*arguments, "--num-beams", 4).splitlines()[:-1]
        several = self.shoal(*arguments, "--num-beams", 4, "--num-return-sequences", 2)
        self.assertIn("--- sequence 0, score -", several)
        self.assertIn("--- sequence 1, score -", several)
        self.assertIn("\n".join(best), several)
        refused = self.shoal(*arguments, "--num-beams", 2, "--temperature", 1, expect=64)
        self.assertIn("--num-beams searches and --temperature samples", refused)

    def test_a_gpu_that_is_not_there(self):
        export = self.run_folder() / "export"
        tokens = self.folder / "tokens.json"
        tokens.write_text('{"input_ids": [[1, 2, 3]]}')
        hidden = environment(CUDA_VISIBLE_DEVICES="")
        for command in (
            ("generate", export, "--prompt", "The"),
            ("chat", export, "--turn-start", "{role}: "),
            ("score", export, "--file", tokens),
        ):
            refused = self.shoal(*command, "--device", "cuda", expect=64, env=hidden)
            self.assertRegex(refused, r"^shoal: --device cuda, but this [^\n]*--device cpu\n$")
        asked = self.shoal("score", export, "--file", tokens, "--device", "cpu")
        self.assertEqual(asked, self.shoal("score", export, "--file", tokens, env=hidden))

    def test_chat(self):
        export = self.run_folder() / "export"
        self.assertIn("has no chat template", self.shoal("chat", export, expect=66))
        done = subprocess.run(
            [SHOAL, "chat", export, "--turn-start", "{role}: ", "--turn-end", "\n", "--max-new-tokens", "5"],
            input="The License\n/reset\n\nThe License\n/quit\nnever read\n",
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        # Two answers, alike since the second conversation began anew.
        half = len(done.stdout) // 2
        self.assertEqual(done.stdout[:half], done.stdout[half:])

    def test_export_of_a_checkpoint_equals_the_run_s(self):
        run = self.run_folder()
        for source in (run, run / "checkpoints/step-6"):
            target = self.folder / f"from-{source.name}"
            self.shoal("export", source, target)
            self.assertEqual(
                (target / "model.safetensors").read_bytes(),
                (run / "export/model.safetensors").read_bytes(),
            )

    def test_training_continues_from_an_export(self):
        losses = self.train(
            "tuned",
            "-n",
            2,
            tokenizer=None,  # The export's
            model=dict(
                config={}, name_or_path=str(self.run_folder() / "export"), init="pretrained"
            ),
        )
        first = self.losses(self.run_folder())
        self.assertLess(losses[6], first[6])

    def test_inspect(self):
        run = self.run_folder()
        for what in (run / "checkpoints/step-6", run / "export/model.safetensors"):
            self.assertIn("model.embed_tokens.weight", self.shoal("inspect", what))

    def test_report_of_several_runs(self):
        other = self.train("other", "-n", 2, "optimizer.learning_rate=0.001")
        self.assertEqual(len(other), 6)
        page = self.folder / "report.html"
        self.shoal("report", self.run_folder(), self.folder / "other", "--output", page)
        text = page.read_text()
        self.assertIn("learning_rate", text)
        self.assertNotIn("http://", text.replace("http://www.w3.org/", ""))
        self.assertNotIn('src="http', text)

    def test_check_and_schema(self):
        path = self.write_recipe("checked")
        self.shoal("check", path)
        self.assertIn("zero", self.shoal("schema"))

    def test_doctor_and_version(self):
        self.assertIn("0.1.0", self.shoal("--version"))
        self.assertIn("MPI", self.shoal("doctor"))

    def test_every_command_has_help_with_an_example(self):
        for command in (
            "run",
            "check",
            "schema",
            "generate",
            "chat",
            "score",
            "tokenize",
            "export",
            "inspect",
            "doctor",
            "report",
        ):
            self.assertIn(f"shoal {command}", self.shoal(command, "--help"))

    def test_commands_refuse_what_is_not_there(self):
        for command in (
            ("generate", "/nonexistent", "--prompt", "x"),
            ("export", "/nonexistent", self.folder / "x"),
            ("inspect", "/nonexistent"),
            ("report", "/nonexistent"),
            ("tokenize", "/nonexistent", "--file", TEXT),
        ):
            self.assertIn("/nonexistent", self.shoal(*command, expect=None))


if __name__ == "__main__":
    unittest.main()
